"""Original StyleNeRF generators: state-dict names to ours, and strict loading.

An option that changes the mathematics and that we do not have, a missing name or an unknown one is
an error. Source: spec/stylenerf.md 2.2, 2.3.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfs.errors import InputError
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.original_options import generator_spec
from nfs.stylenerf.original_weights import learned, load_weights, renamed, required

__all__ = ["generator_name", "generator_spec", "load_generator"]

_GENERATOR_NAMES = [
    (r"mapping\.fc(\d+)\.", r"mapping_network.layers.\1."),
    (r"mapping\.", "mapping_network."),
    (r"synthesis\.fg_nerf\.B_pos$", "inputs.frequencies"),
    (r"synthesis\.bg_nerf\.B_pos$", "background_encoding.frequencies"),
    (r"synthesis\.fg_nerf\.", "foreground."),
    (r"synthesis\.bg_nerf\.", "background."),
    (r"synthesis\.b(\d+)\.", r"upsampler.blocks.\1."),
    (r"synthesis\.in_b(\d+)\.", r"inputs.stack.blocks.\1."),
    (r"synthesis\.in_const$", "inputs.stack.const"),
    (r"synthesis\.camera_generator\.", "camera_head."),
]
_FIELD_NAMES = [
    (r"^(foreground|background)\.fc_in\.", r"\1.layers.0."),
    (r"\.sigma_out\.", ".sigma_head."),
    (r"\.feat_out\.", ".feature_head."),
    (r"^(foreground|background)\.to_rgb\.", r"\1.colour_head."),
]
_BLOCK_NAMES = [
    (r"\.torgb\.", ".to_rgb."),
    (r"\.adapter\.0\.", ".upsample.squeeze."),
    (r"\.adapter\.1\.", ".upsample.expand."),
    (r"^(upsampler\..*|inputs\..*)\.w_avg$", r"\1.magnitude"),
]
_VIEW_FREQUENCIES = "B_view"  # of view directions, which no working model uses


def load_generator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Generator:
    """Return our generator with original weights.

    Args:
        state_dict: Tensors under their original names.
        config: Original keyword arguments with `img_resolution`.

    Raises:
        InputError: Unsupported option, unknown or missing name, wrong shape, non-finite value.
    """
    config = required(config, "generator")
    head = _camera_head(state_dict) if config["synthesis_kwargs"].get("predict_camera") else None
    try:
        generator = Generator(generator_spec(config, camera_head=head))
    except ValueError as error:
        raise InputError(f"original generator: {error}") from error
    weights = {
        generator_name(name): value
        for name, value in learned(state_dict).items()
        if not name.endswith(_VIEW_FREQUENCIES)
    }
    load_weights(generator, weights, "generator")
    return generator.eval()


def generator_name(name: str) -> str:
    """Return our name of an original generator tensor."""
    name = renamed(name, _GENERATOR_NAMES)
    if not name.startswith(("foreground.", "background.")):
        return renamed(name, _BLOCK_NAMES)
    # The original counts hidden layers after the first, ours count all.
    name = re.sub(r"\.blocks\.(\d+)\.", lambda m: f".layers.{int(m[1]) + 1}.", name)
    return renamed(name, _FIELD_NAMES)


def _camera_head(state_dict: Mapping[str, Tensor]) -> tuple[int, int, int]:
    prefix = "synthesis.camera_generator."
    try:
        hidden, inputs = state_dict[f"{prefix}affine1.weight"].shape
        outputs = len(state_dict[f"{prefix}proj.weight"])
    except KeyError as error:
        raise InputError(f"original generator with predict_camera lacks {error}") from error
    return inputs, hidden, outputs
