"""Counts what an eager pass does, operation by operation, without computing anything.

A pass runs under `FakeTensorMode` (shapes and types only) inside `OpCounter`. FLOPs are torch's
formulas (`torch.utils.flop_counter`), two per multiply-add of matrix products and convolutions;
the gradients of a convolution count as the convolution itself, which torch's formula does not do
for groups. Bytes: each operation reads its inputs and writes its outputs once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclass(frozen=True)
class Op:
    """One kernel."""

    flops: int
    bytes: int
    product: bool
    """Matrix product or convolution."""


@dataclass
class Pass:
    """What a pass does."""

    ops: Counter[Op] = field(default_factory=Counter)
    """Each distinct operation and how often it runs."""

    @property
    def flops(self) -> int:
        """Floating-point operations of products and convolutions."""
        return sum(op.flops * n for op, n in self.ops.items())

    @property
    def bytes(self) -> int:
        """Bytes that eager execution moves."""
        return sum(op.bytes * n for op, n in self.ops.items())

    @property
    def product_bytes(self) -> int:
        """Bytes of products and convolutions alone: all else fused into them."""
        return sum(op.bytes * n for op, n in self.ops.items() if op.product)

    @property
    def launches(self) -> int:
        """Number of operations."""
        return self.ops.total()

    def device_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Seconds of a device that does each operation at its roofline."""
        return sum(
            max(op.flops / flops_per_s, op.bytes / bytes_per_s) * n for op, n in self.ops.items()
        )


class OpCounter(TorchDispatchMode):
    """Records the operations inside the context in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Pass()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run and record one operation; views cost nothing."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        free = func.is_view or func in (aten.detach.default, aten.empty.memory_format)
        if free or not _tensors(out):  # questions such as `prim.device` cost nothing either
            return out
        packet = func.overloadpacket
        product = packet in flop_registry
        flops = _flops(packet, args, kwargs, out) if product else 0
        moved = sum(t.numel() * t.element_size() for t in _tensors((args, kwargs, out)))
        self.found.ops[Op(flops, moved, product)] += 1
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _flops(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    if packet is aten.convolution_backward:
        grad_out, x, weight, *_, transposed, _, _, mask = args
        pixels = x if transposed else grad_out
        forward = 2 * len(x) * prod(pixels.shape[2:]) * weight.numel()
        return forward * (mask[0] + mask[1])
    return int(flop_registry[packet](*args, **kwargs, out_val=out))
