"""The units of `jobs.evaluate`: ranges of generated images, real images, views or orbit frames.

A unit's rows are tensors by name, stored as safetensors in one column of a parquet file; the same
ranges give the same rows on any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from nfs.arcface.identity import ArcfaceIdentity
from nfs.artifacts import Store
from nfs.config.base import tree_hash
from nfs.config.evaluate import EvaluateConfig, FaceFeatures
from nfs.errors import ArtifactError
from nfs.perceptual.dlib_face import DlibDistance
from nfs.perceptual.extractors import FeatureExtractor, build_extractor
from nfs.runtime.memory import peak_memory
from nfs.runtime.seeding import derive_seed
from nfs.stylenerf.export import KIND, growth_stage, load_generator
from nfs.stylenerf.image_builders import open_images
from nfs.stylenerf.orbits import orbit_rows
from nfs.stylenerf.portrayal import describe_subject
from nfs.stylenerf.spec import GeneratorSpec
from nfs.stylenerf.views import Gallery
from nfs.training.checkpoint import EMA, WEIGHTS, read_model

if TYPE_CHECKING:
    from nfs.stylenerf.dataset import TrainingImages

UNITS = "units"
SCHEMA = pa.schema([("key", pa.string()), ("facts", pa.string()), ("rows", pa.large_binary())])
GENERATED, REAL, VIEWS, ORBIT = "generated", "real", "views", "orbit"
MAX_LABELS = 1024


class Evaluated:
    """The things that are evaluated, loaded when they are first needed.

    Args:
        config: Settings of the job.
        device: Where the networks work; the driver may have no GPU.
    """

    def __init__(self, config: EvaluateConfig, device: str = "cpu"):
        self.config, self.device = config, torch.device(device)

    @cached_property
    def model(self) -> dict[str, Any]:
        """Content of the checkpoint's `model.json`."""
        model = read_model(self.config.checkpoint)
        if model.get("kind") != KIND:
            raise ArtifactError(
                f"checkpoint={self.config.checkpoint}: holds a {model.get('kind')!r} model, "
                f"need {KIND!r}"
            )
        return model

    @cached_property
    def spec(self) -> GeneratorSpec:
        """Sizes of the generator."""
        return GeneratorSpec.from_dict(self.model["generator"])

    @property
    def alpha(self) -> float:
        """Growth stage that is rendered."""
        asked = self.config.alpha
        return growth_stage(self.model) if asked is None else asked

    @cached_property
    def gallery(self) -> Gallery:
        """The generator and its subjects."""
        config = self.config
        generator = load_generator(config.checkpoint, ema=config.weights == "ema")
        generator.to(self.device).requires_grad_(False)
        return Gallery(generator, seed=config.seed, alpha=self.alpha, labels=self._labels())

    @cached_property
    def images(self) -> TrainingImages:
        """The real images."""
        data = self.config.data
        assert data is not None
        return open_images(data, resolution=self.spec.img_resolution, seed=self.config.seed)

    @cached_property
    def features(self) -> FeatureExtractor:
        """The network of the distances."""
        extractor = build_extractor(self.config.features, ArcfaceIdentity.from_checkpoint)
        extractor.to(self.device)
        return extractor

    @cached_property
    def identity(self) -> DlibDistance | ArcfaceIdentity:
        """The network that judges identities."""
        source = self.config.identity
        if isinstance(source, FaceFeatures):
            return DlibDistance.load().to(self.device)
        return ArcfaceIdentity.from_checkpoint(source.checkpoint).to(self.device)

    def chosen_reals(self) -> list[int]:
        """Return the numbers of the real images that are described."""
        count = min(self.config.num_real or len(self.images), len(self.images))
        return np.linspace(0, len(self.images) - 1, count).round().astype(int).tolist()

    def real_image(self, index: int) -> Tensor:
        """Return an image as training sees it, uint8 `[3, R, R]`."""
        rng = np.random.default_rng(derive_seed("evaluation", index))
        return torch.from_numpy(self.images.get(index, rng)["image"])

    def mark(self, kind: str) -> str:
        """Return a text that changes when units of this kind would."""
        config = self.config
        if kind == REAL:
            data = config.data.tree() if config.data is not None else None
            return tree_hash(
                {
                    "images": self.images.fingerprint(),
                    "data": data,
                    "size": self.images.resolution,
                    "numbers": [config.num_real, config.seed],
                    "network": [self.features.names.frechet, self.features.checksum],
                }
            )
        facts: dict[str, Any] = {"weights": self._weights_digest(), "alpha": self.alpha}
        if kind == GENERATED:
            facts["network"] = [self.features.names.frechet, self.features.checksum]
        if kind == VIEWS:
            facts["identity"] = [self.identity.name, self.identity.checksum]
        return tree_hash(facts)

    def _labels(self) -> Tensor | None:
        config = self.config
        dim = self.spec.c_dim
        if dim == 0:
            return None
        if config.data is None or not config.data.labels:
            return torch.eye(dim)
        count = min(len(self.images), MAX_LABELS)
        chosen = np.linspace(0, len(self.images) - 1, count).round().astype(int)
        return torch.from_numpy(np.stack([self.images.label(int(i)) for i in chosen]))

    def _weights_digest(self) -> str:
        store = Store(self.config.checkpoint)
        name = EMA if self.config.weights == "ema" and store.exists(EMA) else WEIGHTS
        return hashlib.sha256(store.read_bytes(name)).hexdigest()


def plan_units(kind: str, count: int, step: int, mark: str) -> list[dict[str, Any]]:
    """Return the units of `count` items, `step` items each; their keys sort in order."""
    return [
        {
            "key": f"{kind}-{mark}-{start:09d}",
            "path": f"{kind} {start}..{min(start + step, count) - 1}",
            "kind": kind,
            "start": start,
            "stop": min(start + step, count),
        }
        for start in range(0, count, step)
    ]


class EvaluateUnit:
    """Makes the rows of one range per call; built once per worker.

    Args:
        tree: `EvaluateConfig` as plain values.
    """

    primary = UNITS

    def __init__(self, tree: dict[str, Any]):
        self.config = EvaluateConfig.from_tree(tree, source="evaluate")
        device = "cuda" if self.config.launch.gpus_per_worker > 0 else "cpu"
        self.evaluated = Evaluated(self.config, device)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, pa.Table]:
        """Return the rows of items start..stop-1, with the seconds they took and memory peaks."""
        start_s = time.monotonic()
        make = {
            GENERATED: self._generated,
            REAL: self._real,
            VIEWS: self._views,
            ORBIT: self._orbit,
        }[item["kind"]]
        rows = make(range(int(item["start"]), int(item["stop"])))
        facts = {"seconds": time.monotonic() - start_s, **peak_memory(self.evaluated.device)}
        data = save({name: tensor.contiguous().cpu() for name, tensor in rows.items()})
        columns = {"key": [item["key"]], "facts": [json.dumps(facts)], "rows": [data]}
        return {UNITS: pa.table(columns, schema=SCHEMA)}

    def failure(self, item: Mapping[str, Any], status: str, error: str) -> dict[str, pa.Table]:
        """Return an empty table that says why; the job stops with it."""
        del item
        metadata = {"status": status, "error": error}
        return {UNITS: SCHEMA.empty_table().replace_schema_metadata(metadata)}

    def _batches(self, indices: range) -> Iterator[range]:
        step = self.config.batch_size
        for start in range(indices.start, indices.stop, step):
            yield range(start, min(start + step, indices.stop))

    def _generated(self, indices: range) -> dict[str, Tensor]:
        gallery, features = self.evaluated.gallery, self.evaluated.features
        parts = [features.extract(gallery.samples(batch)) for batch in self._batches(indices)]
        return {"features": torch.cat(parts)}

    def _real(self, indices: range) -> dict[str, Tensor]:
        evaluated = self.evaluated
        numbers = evaluated.chosen_reals()
        parts = []
        for batch in self._batches(indices):
            images = torch.stack([evaluated.real_image(numbers[i]) for i in batch])
            parts.append(evaluated.features.extract(images.to(evaluated.device)))
        return {"features": torch.cat(parts)}

    def _views(self, indices: range) -> dict[str, Tensor]:
        evaluated = self.evaluated
        rows = [describe_subject(evaluated.gallery, i, evaluated.identity) for i in indices]
        shown = [row for i, row in zip(indices, rows, strict=True) if i < self.config.grid_size]
        found = {
            name: torch.cat([row[name] for row in rows])
            for name in ("thumbnail", "numbers", "embedding")
        }
        for name in ("image", "depth") if shown else ():
            found[name] = torch.cat([row[name] for row in shown])
        return found

    def _orbit(self, indices: range) -> dict[str, Tensor]:
        config = self.config
        parts = [
            orbit_rows(
                self.evaluated.gallery,
                batch,
                num_subjects=config.orbit_latents,
                num_frames=config.orbit_frames,
            )
            for batch in self._batches(indices)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def read_rows(uri: str, keys: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of units in order, one unit in memory at a time."""
    for key in keys:
        yield load(_column(uri, key, "rows"))


def read_facts(uri: str, keys: Sequence[str]) -> list[dict[str, float]]:
    """Return the seconds and memory peaks of units."""
    return [json.loads(_column(uri, key, "facts")) for key in keys]


def _column(uri: str, key: str, name: str) -> Any:
    with Store(uri).open_parquet(f"{UNITS}/{key}.parquet") as parquet:
        return parquet.read(columns=[name])[name][0].as_py()
