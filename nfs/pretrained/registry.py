"""Which function imports which original network; the functions live with their families."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfs.errors import InputError
from nfs.pretrained.readers import read_options, read_state_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

_ARCFACE = (
    *("r18", "r34", "r50", "r100", "r200", "r2060", "mbf", "mbf_large"),
    *("vit_t", "vit_s", "vit_b", "vit_l", "vit_h", "vit_t_dp005_mask0", "vit_s_dp005_mask_0"),
    *("vit_b_dp005_mask_005", "vit_l_dp005_mask_005"),
)
# Family -> "module:function" with `function(state_dict, config) -> nn.Module`, imported on use,
# so that this floor stays below the families.
FAMILIES: dict[str, str] = {
    "stylenerf/generator": "nfs.stylenerf.original:load_generator",
    "stylenerf/discriminator": "nfs.stylenerf.original_discriminator:load_discriminator",
    "audio2exp": "nfs.audio.original:load_audio2exp",
    "recon/resnet50": "nfs.morphable.recon.original:load_resnet50",
    "recon/resnet18": "nfs.morphable.recon.original:load_resnet18",
    **{f"arcface/{name}": f"nfs.arcface.original:load_{name}" for name in _ARCFACE},
}
# Family -> "module:function" with `function(path) -> (state_dict, config)`: networks that the
# original pickles whole.
SNAPSHOTS: dict[str, str] = {
    "stylenerf/generator": "nfs.stylenerf.snapshot:read_generator",
    "stylenerf/discriminator": "nfs.stylenerf.snapshot:read_discriminator",
}


def load_original(
    family: str,
    path_or_state_dict: "str | Path | Mapping[str, Tensor]",
    config: Mapping[str, Any] | None = None,
) -> "nn.Module":
    """Return one of our modules with the weights of an original checkpoint, in eval mode.

    Args:
        family: A key of `FAMILIES`, e.g. `stylenerf/generator`.
        path_or_state_dict: A file (see `read_state_dict`; for StyleNeRF also a snapshot `.pkl`, of
            which the averaged generator is taken), or tensors under their original names.
        config: The original's keyword arguments, where the file does not carry them.

    Raises:
        InputError: If the family is unknown, the file unreadable, an option unsupported, or a
            name or shape does not fit. Nothing is skipped silently.
    """
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; known: {', '.join(sorted(FAMILIES))}")
    if isinstance(path_or_state_dict, str | Path):
        path_or_state_dict, carried = _read(family, path_or_state_dict)
        config = carried if config is None else config
    module: nn.Module = resolve(FAMILIES[family])(path_or_state_dict, config)
    return module


def resolve(name: str) -> Callable[..., Any]:
    """Import `module:function`."""
    module_name, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module_name), function)
    return found


def _read(family: str, path: str | Path) -> "tuple[Mapping[str, Tensor], Mapping[str, Any] | None]":
    if family in SNAPSHOTS and Path(path).suffix == ".pkl":
        state, options = resolve(SNAPSHOTS[family])(path)
        return state, options
    return read_state_dict(path), read_options(path)
