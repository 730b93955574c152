"""Recordings of the original StyleNeRF, and a report of errors against them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

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
