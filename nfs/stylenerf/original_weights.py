"""What the importers of original StyleNeRF networks share: options, names and strict loading."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nfs.errors import InputError

# FIR taps, the growth stage, and the geometry of `liif` upsampling.
_CONSTANTS = {"resample_filter", "alpha", "diffs", "coords", "coeffs"}


def required(config: Mapping[str, Any] | None, what: str) -> Mapping[str, Any]:
    """Return `config`, or raise that an original `what` cannot be read without it."""
    if not config or "img_resolution" not in config:
        raise InputError(
            f"an original {what} needs config=: its keyword arguments, with img_resolution"
        )
    return config


def check_fixed(
    config: Mapping[str, Any],
    fixed: Mapping[str, object],
    *,
    defaults: Mapping[str, object] | None = None,
    prefix: str = "",
) -> None:
    """Refuse options that have another value than the only one this version reads.

    Args:
        config: Original keyword arguments.
        fixed: Dotted option name -> supported value.
        defaults: What the original takes when an option is absent, where that is not the
            supported value; by the last part of the name.
        prefix: Put before the name in the message.
    """
    for dotted, expected in fixed.items():
        *parents, leaf = dotted.split(".")
        section = config
        for part in parents:
            section = section.get(part) or {}
        value = section.get(leaf, (defaults or {}).get(leaf, expected))
        if value != expected:
            raise InputError(
                f"original option {prefix}{dotted}={value!r} is not supported yet; "
                f"this version reads {expected!r}"
            )


def learned(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what follows from the configuration, and the growth stage at saving time."""
    return {
        name: value
        for name, value in state_dict.items()
        if name.rsplit(".", 1)[-1] not in _CONSTANTS
    }


def renamed(name: str, table: list[tuple[str, str]]) -> str:
    """Apply each (pattern, replacement) of `table` in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def load_weights(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load renamed original tensors; 1x1 kernels may be matrices of ours.

    Raises:
        InputError: Unknown or missing name, wrong shape, non-finite value.
    """
    ours = module.state_dict()
    missing, unknown = sorted(ours.keys() - weights.keys()), sorted(weights.keys() - ours.keys())
    if missing or unknown:
        raise InputError(
            f"original {what} does not fit its configuration: missing {missing[:5]}, "
            f"unknown {unknown[:5]} ({len(missing)} and {len(unknown)} in all)"
        )
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"original {what}: {name} holds NaN or infinity; the training run that wrote it "
                "was damaged (an early snapshot may be intact)"
            )
        squeezed = value.reshape(value.shape[:2]) if _is_pointwise(value, ours[name]) else value
        if squeezed.shape != ours[name].shape:
            raise InputError(
                f"original {what}: {name} is {list(value.shape)}, expected {list(ours[name].shape)}"
            )
        weights[name] = squeezed
    module.load_state_dict(weights, strict=True)


def _is_pointwise(value: Tensor, ours: Tensor) -> bool:
    return value.ndim > 2 and ours.ndim == 2 and set(value.shape[2:]) == {1}
