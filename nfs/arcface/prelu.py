"""PReLU with one slope per channel, whose backward pass is one sweep over memory on the CPU.

torch's CPU kernel is scalar and writes a full-size gradient of the slopes before it sums it; for an
IResNet that is an eighth of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# torch's kernel uses all threads, ours one.
_MAX_THREADS = 4


class ChannelPReLU(nn.Module):
    """`max(x, 0) + weight min(x, 0)`; state and results are those of `nn.PReLU(channels)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, C, H, W]`."""
        if self._swept(x):
            y: Tensor = _Swept.apply(x, self.weight)  # type: ignore[no-untyped-call] # torch
            return y
        return torch.prelu(x, self.weight.to(x.dtype))

    def _swept(self, x: Tensor) -> bool:
        return (
            torch.is_grad_enabled()
            and x.requires_grad
            and self.weight.requires_grad
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.dim() == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and not torch.compiler.is_compiling()
            and torch.get_num_threads() <= _MAX_THREADS
        )


class _Swept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.prelu(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from nfs.arcface.prelu_kernel import prelu_backward

        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        slopes = torch.zeros(len(weight), dtype=torch.float64)
        rows = [t.permute(0, 2, 3, 1).reshape(-1, len(weight)).numpy() for t in (x, grad, out)]
        prelu_backward(*rows, weight.detach().numpy(), slopes.numpy())
        return out, slopes.float()
