"""Measuring and showing a generator during its training, with all ranks at work.

Legend: K subjects of the grid, N samples, V views, R image side, h and w of the depth map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nfs.config.base import tree_hash
from nfs.perceptual.extractors import FeatureExtractor, compare_sets
from nfs.perceptual.protocol import IdentityEmbedding
from nfs.runtime.collect import Ranks, agreed, collect
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.orbits import orbit_frames, orbit_rows, write_frames
from nfs.stylenerf.portrayal import describe_subject, grid_of_views, summarise
from nfs.stylenerf.views import Gallery
from nfs.training.task import Evaluation

ORBIT_FPS = 12.0
STATISTICS, PREVIEWS = "statistics", "previews"


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is measured and drawn; see `nfs.config.evaluate.GanEvaluationConfig`."""

    grid_size: int = 8
    """K."""
    num_samples: int = 0
    """N generated and N real images that are compared; 0: none."""
    batch_size: int = 8
    """Images at once."""
    orbit_latents: int = 0
    """Faces of the orbit video, at most K; 0: no video."""
    orbit_frames: int = 24
    """Frames of one turn."""


@dataclass(frozen=True)
class RealImages:
    """The training images as the metrics see them."""

    count: int
    """How many there are."""
    read: Callable[[int], Tensor]
    """Image i as uint8 `[3, R, R]`."""
    key: Callable[[], str]
    """Identifies the data; asked once, on rank 0."""


class GeneratorEvaluator:
    """Measures a generator; every rank calls `run`, rank 0 gets the result.

    Args:
        settings: How much.
        directory: Of the run; holds the features of the real images and the videos.
        ranks: Who shares the work.
        features: Network of the distances; None compares nothing.
        reals: Images to compare with; None compares nothing.
        identity: Judges whether views show one person; None does not.
        labels: `[M, c_dim]` labels for a conditional generator.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        *,
        directory: Path | None = None,
        ranks: Ranks | None = None,
        features: FeatureExtractor | None = None,
        reals: RealImages | None = None,
        identity: IdentityEmbedding | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.settings, self.directory = settings, directory
        self.ranks = ranks or Ranks()
        self.features, self.reals = features, reals
        self.identity, self.labels = identity, labels
        self._real: Tensor | None = None

    def run(self, generator: Generator, *, alpha: float, samples_seen: int) -> Evaluation:
        """Measure `generator`, which is the same on all ranks and in eval mode.

        Returns:
            On rank 0 metrics, the grid and the orbit video; nothing elsewhere.
        """
        gallery = Gallery(generator, alpha=alpha, labels=self.labels)
        settings = self.settings
        rows = collect(
            lambda indices: describe_subject(gallery, indices[0], self.identity),
            settings.grid_size,
            batch_size=1,
            ranks=self.ranks,
        )
        distances = self._distances(gallery)
        files = self._orbit(gallery, samples_seen)
        if rows is None:
            return Evaluation()
        name = None if self.identity is None else self.identity.name
        metrics, problems = summarise(rows, name)
        return Evaluation(metrics | distances, {"samples": grid_of_views(rows)}, files, problems)

    def _distances(self, gallery: Gallery) -> dict[str, float]:
        features, reals, count = self.features, self.reals, self.settings.num_samples
        if features is None or reals is None or count == 0:
            return {}
        device = gallery.generator.w_avg.device
        features.to(device)
        real = self._real_features(features, reals, device)
        generated = collect(
            lambda indices: {"features": features.extract(gallery.samples(indices))},
            count,
            batch_size=self.settings.batch_size,
            ranks=self.ranks,
        )
        if real is None or generated is None:
            return {}
        metrics = compare_sets(real.to(device), generated["features"].to(device), features.names)
        return {f"eval/{name}": value for name, value in metrics.items()}

    def _real_features(
        self, features: FeatureExtractor, reals: RealImages, device: torch.device
    ) -> Tensor | None:
        """Return `[N, D]` on rank 0: from memory, from the run directory, or computed by all."""
        file = None
        if self.ranks.rank == 0 and self._real is None:
            file = self._statistics_file(features, reals)
            if file is not None and file.is_file():
                self._real = load_file(file)["features"]
        if agreed(self._real is not None, self.ranks):
            return self._real
        count = min(self.settings.num_samples, reals.count)
        spread = torch.linspace(0, reals.count - 1, count).round().long().tolist()

        def compute(indices: range) -> dict[str, Tensor]:
            images = torch.stack([reals.read(spread[i]) for i in indices])
            return {"features": features.extract(images.to(device))}

        rows = collect(compute, count, batch_size=self.settings.batch_size, ranks=self.ranks)
        if rows is not None:
            self._real = rows["features"]
            if file is not None:
                _save_atomic(self._real, file)
        return self._real

    def _statistics_file(self, features: FeatureExtractor, reals: RealImages) -> Path | None:
        if self.directory is None:
            return None
        facts = {
            "data": reals.key(),
            "network": [features.names.frechet, features.checksum],
            "count": self.settings.num_samples,
        }
        return self.directory / STATISTICS / f"real-{tree_hash(facts)}.safetensors"

    def _orbit(self, gallery: Gallery, samples_seen: int) -> list[Path]:
        settings = self.settings
        latents = min(settings.orbit_latents, settings.grid_size)
        if latents == 0 or self.directory is None:
            return []
        rows = collect(
            lambda positions: orbit_rows(
                gallery, positions, num_subjects=latents, num_frames=settings.orbit_frames
            ),
            latents * settings.orbit_frames,
            batch_size=settings.batch_size,
            ranks=self.ranks,
        )
        if rows is None:
            return []
        file = self.directory / PREVIEWS / f"orbit-{samples_seen:09d}.mp4"
        write_frames(file, orbit_frames(rows, latents), ORBIT_FPS)
        return [file]


def _save_atomic(features: Tensor, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    save_file({"features": features.contiguous()}, temporary)
    temporary.replace(file)
