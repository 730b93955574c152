"""How much memory this process has needed so far."""

from __future__ import annotations

import resource
import sys

import torch

# Linux counts in KiB, macOS in bytes.
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peaks since the process began, in MB, by metric key.

    `memory/rss_peak_mb` is resident memory; with CUDA, `memory/cuda_peak_mb` is what tensors took
    and `memory/cuda_reserved_mb` what the allocator held.
    """
    peaks = {
        "memory/rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * _RSS_UNIT_BYTES
        / 1e6
    }
    if device.type == "cuda":
        peaks["memory/cuda_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        peaks["memory/cuda_reserved_mb"] = torch.cuda.max_memory_reserved(device) / 1e6
    return peaks
