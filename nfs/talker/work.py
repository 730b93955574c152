"""The unit of work of a render: a range of frames."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from nfs.artifacts import Store
from nfs.config.render import RenderConfig
from nfs.media.images import encode_png, to_uint8
from nfs.talker.builders import build_renderer
from nfs.talker.plan import read_rows

RENDERED = "rendered"
ROWS = pa.schema([("frame_index", pa.int32()), ("image_png", pa.binary())])


def frame_units(num_frames: int, frames_per_unit: int) -> list[dict[str, Any]]:
    """Return the units of a render; keys sort in the order of frames."""
    return [
        {
            "key": f"{start:08d}",
            "path": f"frames {start}..{min(start + frames_per_unit, num_frames) - 1}",
            "start": start,
            "stop": min(start + frames_per_unit, num_frames),
        }
        for start in range(0, num_frames, frames_per_unit)
    ]


class RenderFrames:
    """Renders one range of frames per call; built once per worker.

    Args:
        tree: `RenderConfig` as plain values.
        work_uri: Directory with the plan, shared by all workers.
    """

    primary = RENDERED

    def __init__(self, tree: dict[str, Any], work_uri: str):
        config = RenderConfig.from_tree(tree, source="render")
        self.batch_size = config.batch_size
        self.store = Store(work_uri)
        self.renderer = build_renderer(config)

    @torch.no_grad()
    def __call__(self, item: Mapping[str, Any]) -> dict[str, pa.Table]:
        """Return the pictures of frames start..stop-1."""
        start, stop = int(item["start"]), int(item["stop"])
        expression, cam2world = read_rows(self.store, start, stop)
        pictures: list[bytes] = []
        for part, cameras in zip(
            expression.split(self.batch_size), cam2world.split(self.batch_size), strict=True
        ):
            pictures += [encode_png(frame) for frame in to_uint8(self.renderer(part, cameras))]
        columns = {"frame_index": list(range(start, stop)), "image_png": pictures}
        return {RENDERED: pa.table(columns, schema=ROWS)}

    def failure(self, item: Mapping[str, Any], status: str, error: str) -> dict[str, pa.Table]:
        """Return an empty table that says why; the job stops with it."""
        del item
        metadata = {"status": status, "error": error}
        return {RENDERED: ROWS.empty_table().replace_schema_metadata(metadata)}
