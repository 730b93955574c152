"""Original StyleNeRF discriminators: keyword arguments to our spec, state-dict names to ours.

Source: spec/stylenerf.md 1.1, 2.7.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.original_weights import check_fixed, learned, load_weights, renamed, required
from nfs.stylenerf.spec import DiscriminatorSpec

_DISCRIMINATOR_NAMES = [
    (r"^b4\.", "epilogue."),
    (r"^b(\d+)\.", r"blocks.\1."),
    (r"\.fromrgb\.", ".from_rgb."),
]
_DISCRIMINATOR_FIXED: dict[str, object] = {
    "c_dim": 0,
    "img_channels": 3,
    "architecture": "skip",
    "dual_discriminator": False,
    "dual_input_ratio": None,
    "predict_camera": False,
    "saperate_camera": False,
}


def load_discriminator(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> Discriminator:
    """Return our discriminator with original weights; as `load_generator`."""
    discriminator = Discriminator(discriminator_spec(required(config, "discriminator")))
    weights = {discriminator_name(k): v for k, v in learned(state_dict).items()}
    load_weights(discriminator, weights, "discriminator")
    return discriminator.eval()


def discriminator_name(name: str) -> str:
    """Return our name of an original discriminator tensor."""
    return renamed(name, _DISCRIMINATOR_NAMES)


def discriminator_spec(config: Mapping[str, Any]) -> DiscriminatorSpec:
    """Translate the original discriminator's keyword arguments."""
    check_fixed(config, _DISCRIMINATOR_FIXED)
    epilogue = config.get("epilogue_kwargs", {})
    return DiscriminatorSpec(
        img_resolution=int(config["img_resolution"]),
        channel_base=float(config.get("channel_base", 1)),
        channel_max=int(config.get("channel_max", 512)),
        conv_clamp=config.get("conv_clamp"),
        mbstd_group_size=epilogue.get("mbstd_group_size", 4),
        mbstd_num_channels=epilogue.get("mbstd_num_channels", 1),
        progressive=bool(config.get("progressive", False)),
        lowres_head=config.get("lowres_head"),
    )
