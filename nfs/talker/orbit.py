"""Previews without sound: a camera that circles an inverted identity, or faces of a checkpoint.

Legend: K subjects, T frames, R image side in pixels.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.artifacts import Store, read_manifest, write_manifest
from nfs.artifacts.manifest import MANIFEST
from nfs.config.base import tree_hash
from nfs.config.render import OrbitPose, RenderConfig
from nfs.errors import ConfigError
from nfs.inversion.identity import load_identity
from nfs.media.images import encode_png, image_grid
from nfs.stylenerf.cameras import middle_camera
from nfs.stylenerf.export import load_generator
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.stylenerf.orbits import picture, write_frames
from nfs.stylenerf.views import Gallery, depth_levels, quantised
from nfs.talker.artifact import NOT_CONTENT, SHEET, VIDEO, disclosure
from nfs.talker.builders import device_of, orbit_cameras_of
from nfs.talker.finish import add_watermark, resize_frame
from nfs.talker.video import spread, stored_frames, write_sheet
from nfs.talker.work import RENDERED, ROWS
from nfs.training.checkpoint import EMA, MODEL, WEIGHTS

DEPTHS = "depths"
DEPTH_VIDEO = "depth.mp4"


@dataclass(frozen=True)
class Subjects:
    """Who is shown, and from where at rest."""

    generator: Generator
    ws: Tensor
    """`[K, num_ws, w_dim]`."""
    background_code: Tensor
    """`[K, background_dim]`."""
    cam2world: Tensor
    """`[4, 4]`."""
    still_background: bool
    """Whether the background stays while the camera moves, as in inversion."""

    @torch.no_grad()
    def render(self, cam2world: Tensor) -> Rendering:
        """Render all subjects from one camera `[4, 4]`."""
        count = len(self.ws)
        frozen = self.generator.frozen_background_camera(count)
        return self.generator.synthesis(
            self.ws,
            cam2world.expand(count, 4, 4),
            background_code=self.background_code,
            options=RenderOptions(background_cam2world=frozen if self.still_background else None),
        )


def load_subjects(config: RenderConfig, device: str) -> Subjects:
    """Load an inverted identity, or the first faces of a generator checkpoint.

    Raises:
        ArtifactError: If `identity` is neither.
    """
    if is_identity(config.identity):
        identity = load_identity(config.identity)
        return Subjects(
            identity.generator.to(device).eval(),
            identity.pivot_ws.to(device),
            identity.background_code.to(device),
            identity.reference_cam2world.to(device),
            still_background=True,
        )
    generator = load_generator(config.identity).to(device)
    labels = torch.eye(generator.spec.c_dim) if generator.spec.c_dim else None
    gallery = Gallery(generator, seed=config.seed, labels=labels)
    chosen = gallery.subjects(range(config.subjects))
    with torch.no_grad():
        ws = generator.mapping(chosen.z, chosen.c)
    rest = middle_camera(generator.spec.cameras, generator.w_avg)[0]
    return Subjects(generator, ws, chosen.background_code, rest, still_background=False)


def is_identity(uri: str) -> bool:
    """Return whether a path is an artifact of `jobs.invert` (checkpoints lie in one, too)."""
    return Store(uri).exists(MANIFEST) and read_manifest(uri).kind == "identity"


def num_frames(config: RenderConfig) -> int:
    """Return the frames of one turn, or fewer where the settings say so."""
    assert isinstance(config.pose, OrbitPose)
    count = max(2, round(config.pose.period_s * config.fps))
    return min(count, config.max_frames or count)


def mark(config: RenderConfig) -> str:
    """Identify everything that decides the pictures: settings and the content of the weights.

    The manifest of an identity holds the checksums of all its files.
    """
    content = {k: v for k, v in config.tree().items() if k not in NOT_CONTENT}
    store = Store(config.identity)
    files = {
        name: hashlib.sha256(store.read_bytes(name)).hexdigest()
        for name in (MANIFEST, MODEL, WEIGHTS, EMA)
        if store.exists(name)
    }
    return tree_hash({"settings": content, "files": files})


class RenderOrbit:
    """Renders one range of frames per call; built once per worker.

    Args:
        tree: `RenderConfig` as plain values.
    """

    primary = RENDERED

    def __init__(self, tree: dict[str, Any]):
        self.config = RenderConfig.from_tree(tree, source="render")
        if not isinstance(self.config.pose, OrbitPose):
            raise ConfigError("pose.kind must be orbit when expression.kind=still")
        self.pose = self.config.pose
        self.subjects = load_subjects(self.config, device_of(self.config))

    def __call__(self, item: Mapping[str, Any]) -> dict[str, pa.Table]:
        """Return the pictures of frames start..stop-1: faces, and their depths."""
        indices = list(range(int(item["start"]), int(item["stop"])))
        time_s = torch.tensor(indices, dtype=torch.float64) / self.config.fps
        phase = 2 * math.pi * time_s / self.pose.period_s
        rest = self.subjects.cam2world
        faces, depths = [], []
        for camera in orbit_cameras_of(self.pose, rest.cpu(), phase).to(rest.device):
            rendering = self.subjects.render(camera)
            levels = depth_levels(rendering.depth, self.subjects.generator.spec.depth_range)
            faces.append(encode_png(self._row(quantised(rendering.image))))
            depths.append(encode_png(self._row(levels)))
        return {
            name: pa.table({"frame_index": indices, "image_png": pictures}, schema=ROWS)
            for name, pictures in ((DEPTHS, depths), (RENDERED, faces))
        }

    def failure(self, item: Mapping[str, Any], status: str, error: str) -> dict[str, pa.Table]:
        """Return an empty table that says why; the job stops with it."""
        del item
        metadata = {"status": status, "error": error}
        return {RENDERED: ROWS.empty_table().replace_schema_metadata(metadata)}

    def _row(self, images: Tensor) -> NDArray[np.uint8]:
        size_px = self.config.output_size_px
        cells = [picture(image, self.subjects.generator.img_resolution) for image in images]
        cells = [cell if size_px is None else resize_frame(cell, size_px) for cell in cells]
        return image_grid(cells, columns=len(cells), gap_px=0)


def finish(
    config: RenderConfig, uri: str, work: Store, keys: Sequence[str], timing: Mapping[str, float]
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Write the videos, the contact sheet and the manifest; return metrics and the sheet.

    Args:
        config: Settings of the render.
        uri: Artifact directory.
        work: Directory of the rendered units.
        keys: Units in order.
        timing: Timing metrics to record.
    """
    store, count = Store(uri), num_frames(config)
    wanted, kept = set(spread(count, config.sheet_frames)), []

    def finished(table: str) -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(stored_frames(work, table, keys)):
            shown = add_watermark(frame) if config.watermark == "visible" else frame
            if table == RENDERED and index in wanted:
                kept.append(shown)
            yield shown

    comment = disclosure(config)
    with tempfile.TemporaryDirectory(prefix="nfs-render-") as folder:
        for name, table in ((VIDEO, RENDERED), (DEPTH_VIDEO, DEPTHS)):
            file = Path(folder) / name
            write_frames(file, finished(table), config.fps, comment)
            store.write_bytes(name, file.read_bytes())
    sheet = write_sheet(store, SHEET, kept)
    metrics = {"render/frames": float(count), **timing}
    write_manifest(
        uri,
        kind="render",
        config=config.tree(),
        parents=[config.identity] if Store(config.identity).exists(MANIFEST) else [],
        counts={"frames": count},
        extra={"metrics": metrics},
    )
    return metrics, sheet
