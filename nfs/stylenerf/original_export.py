"""Our StyleNeRF networks under the original's names and shapes.

The inverse of `original` and `original_discriminator`: what they would not read back under the
same name is refused. Source: spec/stylenerf.md 2.2, 2.3, 2.7.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfs.errors import InputError
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.export import load_discriminator, load_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.original import generator_name
from nfs.stylenerf.original_discriminator import discriminator_name
from nfs.stylenerf.original_export_options import (
    original_discriminator_options,
    original_generator_options,
)
from nfs.stylenerf.original_weights import renamed
from nfs.training.checkpoint import EMA

_GENERATOR_NAMES = [
    (r"^mapping_network\.layers\.(\d+)\.", r"mapping.fc\1."),
    (r"^mapping_network\.", "mapping."),
    (r"^inputs\.frequencies$", "synthesis.fg_nerf.B_pos"),
    (r"^background_encoding\.frequencies$", "synthesis.bg_nerf.B_pos"),
    (r"^inputs\.stack\.const$", "synthesis.in_const"),
    (r"^inputs\.stack\.blocks\.(\d+)\.", r"synthesis.in_b\1."),
    (r"^upsampler\.blocks\.(\d+)\.", r"synthesis.b\1."),
    (r"^camera_head\.", "synthesis.camera_generator."),
    (r"^foreground\.", "synthesis.fg_nerf."),
    (r"^background\.", "synthesis.bg_nerf."),
    (r"(_nerf)\.layers\.0\.", r"\1.fc_in."),
    (r"(_nerf)\.sigma_head\.", r"\1.sigma_out."),
    (r"(_nerf)\.feature_head\.", r"\1.feat_out."),
    (r"(_nerf)\.colour_head\.", r"\1.to_rgb."),
    (r"(\.(?:in_)?b\d+)\.to_rgb\.", r"\1.torgb."),
    (r"\.upsample\.squeeze\.", ".adapter.0."),
    (r"\.upsample\.expand\.", ".adapter.1."),
    (r"\.magnitude$", ".w_avg"),
]
_HIDDEN_LAYER = re.compile(r"(?<=_nerf\.)layers\.(\d+)\.")
_DISCRIMINATOR_NAMES = [
    (r"^epilogue\.", "b4."),
    (r"^blocks\.(\d+)\.", r"b\1."),
    (r"^low_blocks\.(\d+)\.", r"c\1."),
    (r"^label_mapping\.layers\.(\d+)\.", r"mapping.fc\1."),
    (r"^label_mapping\.", "mapping."),
    (r"^camera_head\.", "projector."),
    (r"\.from_rgb\.", ".fromrgb."),
    (r"\.bypass\.", ".skip."),
]
# Modules of the original that have a weight but no FIR taps.
_WITHOUT_TAPS = re.compile(r"(^|\.)(affine\d?|torgb|sigma_out|feat_out|fc\d*|out|proj|projector)$")
_BLOCK = re.compile(r"^(?:synthesis\.(?:in_)?)?[bc](\d+)(?=\.)")
_SMALLEST_BLOCK = 8
_TAPS = (1.0, 3.0, 3.0, 1.0)


def original_generator_state(generator: Generator) -> dict[str, Tensor]:
    """Return a generator's state dict as the original has it, on the CPU.

    Includes the constant FIR taps and the growth stage (1), so that the original loads it
    strictly; `original.load_generator` gives the same network back.

    Raises:
        InputError: If a tensor has no counterpart in the original.
    """
    inputs = generator.spec.inputs
    state = _original_state(
        generator.state_dict(),
        _original_generator_name,
        generator_name,
        solid_inputs=inputs is not None and inputs.kind in ("volume", "multiscale_volume"),
    )
    return state | {"synthesis.alpha": torch.ones([])}


def original_discriminator_state(discriminator: Discriminator) -> dict[str, Tensor]:
    """Return a discriminator's state dict; as `original_generator_state`."""
    return _original_state(
        discriminator.state_dict(), _original_discriminator_name, discriminator_name
    ) | {"alpha": torch.ones([])}


def export_checkpoint(
    directory: str | Path, network: str | None
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return state dict, family and keyword arguments of one network of a checkpoint directory.

    Args:
        directory: StyleNeRF checkpoint.
        network: `ema`, `weights` or `discriminator`; None: `ema` if there.

    Raises:
        InputError: If it is not there or has no counterpart in the original.
    """
    if network == "discriminator":
        discriminator = load_discriminator(directory)
        options = original_discriminator_options(discriminator.spec)
        return original_discriminator_state(discriminator), "stylenerf/discriminator", options
    if network == "ema" and not (Path(directory) / EMA).is_file():
        raise InputError(f"{directory}: holds no averaged weights ({EMA})")
    generator = load_generator(directory, ema=network != "weights")
    options = original_generator_options(generator.spec)
    return original_generator_state(generator), "stylenerf/generator", options


def _original_generator_name(name: str) -> str:
    name = renamed(name, _GENERATOR_NAMES)
    # The original counts hidden layers after the first, ours count all.
    return _HIDDEN_LAYER.sub(lambda found: f"blocks.{int(found[1]) - 1}.", name)


def _original_discriminator_name(name: str) -> str:
    return renamed(name, _DISCRIMINATOR_NAMES)


def _original_state(
    ours: Mapping[str, Tensor],
    rename: Callable[[str], str],
    back: Callable[[str], str],
    *,
    solid_inputs: bool = False,
) -> dict[str, Tensor]:
    """Rename tensors and give 1x1 kernels (1x1x1 in solid input stacks) their axes."""
    state = {}
    for name, value in ours.items():
        original = rename(name)
        if back(original) != name:
            raise InputError(f"{name} has no counterpart in the original and cannot be exported")
        state[original] = value.detach().cpu()
    for name in [name for name in state if name.endswith(".weight")]:
        if state[name].ndim == 2 and _is_convolution(name, state):
            solid = solid_inputs and name.startswith("synthesis.in_b")
            state[name] = state[name].reshape(*state[name].shape, *(1,) * (3 if solid else 2))
    return {name: value.contiguous() for name, value in (state | _taps(state)).items()}


def _is_convolution(weight: str, state: Mapping[str, Tensor]) -> bool:
    module = weight.removesuffix(".weight")
    styled = f"{module}.affine.weight" in state
    return styled or module.endswith((".to_rgb", ".adapter.0", ".adapter.1"))


def _taps(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FIR taps of every module of the original that keeps them as a buffer."""
    taps = torch.tensor(_TAPS)
    filter_ = torch.outer(taps, taps) / taps.sum() ** 2
    modules = {
        name.removesuffix(".weight")
        for name in state
        if name.endswith(".weight") and not name.startswith("mapping.")
    }
    owners = {module for module in modules if not _WITHOUT_TAPS.search(module)}
    blocks = (_BLOCK.match(name) for name in state)
    owners |= {found[0] for found in blocks if found and int(found[1]) >= _SMALLEST_BLOCK}
    return {f"{owner}.resample_filter": filter_.clone() for owner in sorted(owners)}
