"""Recordings of the original StyleNeRF, and a report of errors against them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nfs.stylenerf.cameras import CameraDraw, drawn_cameras
from nfs.stylenerf.spec import CameraPrior
from tests.parity.replay import Check, check


@dataclass
class Report:
    """Named errors with their bounds."""

    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, name: str, error: float, tolerance: float) -> None:
        self.checks[name] = check(error, tolerance)

    def compare(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        if ours.shape != theirs.shape:
            raise AssertionError(f"{name}: shape {ours.shape}, recorded {theirs.shape}")
        scale = theirs.abs().max() + 1e-12
        self.add(name, float((ours - theirs).abs().max() / scale), tolerance)


class Recording:
    """A recording: `NAME.safetensors` and `NAME.json` as one mapping.

    Args:
        stem: Path without suffix.
    """

    def __init__(self, stem: Path) -> None:
        header = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        self.tensors = load_file(stem.with_suffix(".safetensors"))
        self.values = header["values"]
        self.tapes = header["tapes"]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.values

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def draws(self, tape: str) -> dict[str, Tensor]:
        return {entry["use"]: self.tensors[entry["tensor"]] for entry in self.tapes[tape]}


def recorded_cameras(prior: CameraPrior, tape: Mapping[str, Tensor]) -> CameraDraw:
    """Return the cameras of recorded draws: standard normals, or values in the prior's ranges."""
    if prior.gaussian:
        u, v = tape["camera_u_standard_normal"], tape["camera_v_standard_normal"]
    else:
        u = _fraction(tape["camera_u"], prior.yaw_rad)
        v = _fraction(tape["camera_v"], prior.pitch_rad)
    return drawn_cameras(prior, u, v, tape["camera_radius_uniform"])


def _fraction(values: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
