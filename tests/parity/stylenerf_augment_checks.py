"""Augmentation at fixed percentiles against recordings: `augment.{json,safetensors}`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nfs.stylenerf.augment import OPERATIONS, SETS, AugmentPipe
from tests.parity.stylenerf_recording import Recording, Report

AUGMENT, FILTER = 1e-4, 1e-5


class Percentile:
    """Open gates and the `q`-quantile of every distribution; the second rotation is 0.

    The recordings use erfinv(2q - 1) for normal numbers, without the factor sqrt 2.
    """

    def __init__(self, q: float) -> None:
        self.q = torch.tensor(q)

    def gate(self, name: str, count: int, probability: float) -> Tensor:
        return torch.full([count], name != "rotate_after")

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.q.expand(*shape)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return (2 * self.q - 1).erfinv().expand(*shape)


def augment(report: Report, folder: Path) -> None:
    """Compare every `OPERATION@PERCENTILE` and `SET_p0` of the folder's recording.

    Args:
        report: Receives `augment/...`.
        folder: May hold `augment.safetensors`.
    """
    if not (folder / "augment.json").is_file():
        return
    recording = Recording(folder / "augment")
    pipe = AugmentPipe("bgcfnc")
    for name, ours in (("Hz_geom", pipe.geometry_taps), ("Hz_fbank", pipe.bands)):
        if name in recording:
            report.compare(f"augment/{name}", ours, recording[name], FILTER)
    images = recording["images"]
    for name, theirs in recording.tensors.items():
        operation, at, percentile = name.partition("@")
        if at:
            pipe = AugmentPipe([operation] if operation in OPERATIONS else operation)
            ours = pipe(images, 1.0, draws=Percentile(float(percentile)))
        elif operation.removesuffix("_p0") in SETS:
            ours = AugmentPipe(operation.removesuffix("_p0"))(images, 0.0)
        else:
            continue
        report.compare(f"augment/{name}", ours, theirs, AUGMENT)
