"""Original StyleNeRF discriminators: keyword arguments to our spec, state-dict names to ours.

Source: spec/stylenerf.md 1.1, 2.7.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfs.errors import InputError
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.original_weights import check_fixed, learned, load_weights, renamed, required
from nfs.stylenerf.spec import DiscriminatorSpec

_NAMES = [
    (r"^b4\.", "epilogue."),
    (r"^b(\d+)\.", r"blocks.\1."),
    (r"^c(\d+)\.", r"low_blocks.\1."),
    (r"^mapping\.fc(\d+)\.", r"label_mapping.layers.\1."),
    (r"^mapping\.", "label_mapping."),
    (r"^projector\.", "camera_head."),
    (r"\.fromrgb\.", ".from_rgb."),
    (r"\.skip\.", ".bypass."),
]
_FIXED: dict[str, object] = {
    "img_channels": 3,
    "block_kwargs.activation": "lrelu",
    "epilogue_kwargs.activation": "lrelu",
    "mapping_kwargs.activation": "lrelu",
    "mapping_kwargs.lr_multiplier": 0.01,
    "mapping_kwargs.embed_features": None,
    "mapping_kwargs.layer_features": None,
}


def load_discriminator(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> Discriminator:
    """Return our discriminator with original weights.

    Args:
        state_dict: Tensors under their original names.
        config: Original keyword arguments with `img_resolution`.

    Raises:
        InputError: Unsupported option, unknown or missing name, wrong shape, non-finite value.
    """
    discriminator = Discriminator(discriminator_spec(required(config, "discriminator")))
    weights = {discriminator_name(k): v for k, v in learned(state_dict).items()}
    load_weights(discriminator, weights, "discriminator")
    return discriminator.eval()


def discriminator_name(name: str) -> str:
    """Return our name of an original discriminator tensor."""
    return renamed(name, _NAMES)


def discriminator_spec(config: Mapping[str, Any]) -> DiscriminatorSpec:
    """Translate the original discriminator's keyword arguments.

    The fade stays off, as it never worked while published weights were trained (Q2).

    Raises:
        InputError: Unsupported option, or options that exclude each other.
    """
    check_fixed(config, _FIXED)
    epilogue = config.get("epilogue_kwargs") or {}
    blocks = config.get("block_kwargs") or {}
    mapping = config.get("mapping_kwargs") or {}
    spec = DiscriminatorSpec(
        img_resolution=int(config["img_resolution"]),
        channel_base=float(config.get("channel_base", 1)),
        channel_max=int(config.get("channel_max", 512)),
        conv_clamp=config.get("conv_clamp"),
        mbstd_group_size=epilogue.get("mbstd_group_size", 4),
        mbstd_num_channels=epilogue.get("mbstd_num_channels", 1),
        progressive=bool(config.get("progressive", False)),
        lowres_head=config.get("lowres_head"),
        architecture=config.get("architecture", "skip"),
        # The original ignores labels where a camera is predicted.
        c_dim=0 if config.get("predict_camera") else int(config.get("c_dim", 0)),
        cmap_dim=config.get("cmap_dim"),
        mapping_num_layers=int(mapping.get("num_layers", 8)),
        dual_discriminator=bool(config.get("dual_discriminator", False)),
        dual_input_ratio=config.get("dual_input_ratio"),
        camera=_camera(config),
        separate_camera=bool(config.get("saperate_camera", False)),
        camera_condition=not config.get("no_camera_condition", False),
        num_frozen_layers=int(blocks.get("freeze_layers", 0)),
    )
    try:
        spec.check()
    except ValueError as error:
        raise InputError(f"original options do not fit together: {error}") from error
    return spec


def _camera(config: Mapping[str, Any]) -> str | None:
    if not config.get("predict_camera"):
        return None
    if config.get("predict_9d_camera"):
        return "pose9"
    return "uvr" if config.get("predict_3d_camera") else "matrix"
