"""torch.distributed behind functions that also work with one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn


def pick_device() -> torch.device:
    """Return this rank's device: a CUDA device where torch sees one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def wrap_ddp(module: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """Move a module to a device and synchronise gradients over ranks when there are several."""
    module = module.to(device)
    if world_size == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    ids = [device] if device.type == "cuda" else None
    # Buffers (running means) are synchronised by the tasks that have them, not on each forward.
    return nn.parallel.DistributedDataParallel(
        module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def mean_over_ranks(
    values: Mapping[str, float | torch.Tensor], device: torch.device, world_size: int
) -> dict[str, float]:
    """Return the mean of each value over ranks with one collective."""
    if not values:
        return {}
    numbers = [torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in values.values()]
    stacked = torch.stack([n.reshape(()) for n in numbers])
    if world_size > 1:
        stacked = stacked.to(device)
        dist.all_reduce(stacked)
        stacked = stacked / world_size
    return dict(zip(values, stacked.tolist(), strict=True))


def average_over_ranks(tensors: Sequence[torch.Tensor], world_size: int) -> None:
    """Replace float tensors by their means over ranks, with one collective."""
    if world_size == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(mean.reshape(tensor.shape))


def init_from_environment() -> tuple[int, int]:
    """Join the process group that torchrun describes, if any; return (rank, world size)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    if not dist.is_initialized():
        device = pick_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else barriers of all ranks meet on the first GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), world_size
