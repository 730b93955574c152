"""The plan of a render: one row per frame with everything that decides its picture.

Workers read it, and it stays in the artifact as `coefficients.parquet`.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.artifacts import Store
from nfs.artifacts.schemas import NUM_EXPRESSION

PLAN_FILE = "coefficients.parquet"
ROWS_PER_GROUP = 1024

PLAN = pa.schema(
    [
        ("frame_index", pa.int32()),
        ("time_s", pa.float64()),
        ("expression", pa.list_(pa.float32(), NUM_EXPRESSION)),
        ("cam2world", pa.list_(pa.float32(), 16)),
        ("mouth_opening", pa.float32()),
        ("speech_energy", pa.float32()),
    ]
)


@dataclass(frozen=True)
class FramePlan:
    """What to render. T frames."""

    expression: Tensor
    """`[T, 64]`."""
    cam2world: Tensor
    """`[T, 4, 4]`."""
    mouth_opening: Tensor
    """`[T]` gap of the inner lips over the distance of the outer eye corners."""
    speech_energy: NDArray[np.float32]
    """`[T]` root mean square of the speech around the frame."""
    fps: float
    """Frames per second."""

    def table(self) -> pa.Table:
        """Return the plan as an Arrow table."""
        count = len(self.expression)
        return pa.table(
            {
                "frame_index": np.arange(count, dtype=np.int32),
                "time_s": np.arange(count) / self.fps,
                "expression": _lists(self.expression),
                "cam2world": _lists(self.cam2world.reshape(count, 16)),
                "mouth_opening": self.mouth_opening.float().numpy(),
                "speech_energy": self.speech_energy.astype(np.float32),
            },
            schema=PLAN,
        )

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify the frames."""
        digest = hashlib.sha256()
        for part in (self.expression, self.cam2world):
            digest.update(part.float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def read_rows(store: Store, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Read expressions `[N, 64]` and cameras `[N, 4, 4]` of frames start..stop-1."""
    first, last = start // ROWS_PER_GROUP, (stop - 1) // ROWS_PER_GROUP
    with store.open_parquet(PLAN_FILE) as parquet:
        groups = list(range(first, min(last + 1, parquet.num_row_groups)))
        table = parquet.read_row_groups(groups, columns=["expression", "cam2world"])
    offset = start - first * ROWS_PER_GROUP
    table = table.slice(offset, stop - start)
    return _tensor(table, "expression", 64), _tensor(table, "cam2world", 16).reshape(-1, 4, 4)


def _lists(values: Tensor) -> pa.FixedSizeListArray:
    flat = pa.array(values.float().contiguous().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _tensor(table: pa.Table, column: str, width: int) -> Tensor:
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat, np.float32)).reshape(-1, width)
