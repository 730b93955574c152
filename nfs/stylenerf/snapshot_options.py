"""Keyword arguments of the original's networks out of a snapshot's module state.

What the modules keep is what they computed with, so it outranks the recorded arguments: those of
a hydra run may refer to a configuration that is not in the file. Source: spec/stylenerf.md 2.11.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from nfs.errors import InputError
from nfs.pretrained.pickled_modules import child, plain, state_of

_CHANNEL_UNIT = 32768
_GENERATOR = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_SYNTHESIS = {
    **{
        name: name
        for name in (
            *("z_dim", "z_dim_bg", "rgb_out_dim", "rgb_out_dim_bg", "resolution_vol"),
            *("resolution_start", "n_reg_samples", "reg_full", "use_noise", "predict_camera"),
            *("freeze_nerf", "cam_based_sampler"),
        )
    },
    "progressive_growing": "progressive",
    "progressive_nerf_only": "prog_nerf_only",
    "rectangular_crop": "rectangular",
}
_CAMERA = (
    *("range_u", "range_v", "range_radius", "depth_range", "gaussian_camera", "angular_camera"),
    *("fov", "bg_start", "depth_transform", "dists_normalized", "random_rotate"),
    "ray_align_corner",
)
_RENDERER = (
    *("n_ray_samples", "n_bg_samples", "sigma_type", "hierarchical", "no_background"),
    *("white_background", "bound", "density_p_target", "tv_loss_weight"),
)
_UPSAMPLER = (
    *("no_2d_renderer", "no_residual_img", "block_reses", "shared_rgb_style", "channel_base"),
    "channel_max",
)
_FIELD = (
    *("hidden_size", "n_blocks", "use_skip", "use_viewdirs"),
    *("add_rgb", "predict_rgb", "inverse_sphere", "merge_sigma_feat", "no_sigma"),
    *("disable_latents", "positional_encoding", "n_freq_posenc", "n_freq_posenc_views", "use_pos"),
    *("downscale_p_by", "gauss_dim_pos", "gauss_dim_view", "gauss_std", "final_sigmoid_act"),
    *("normalized_feat", "shuffle_factor", "use_normal"),
)
# What the constructors add to a field's arguments themselves.
_FIELD_DERIVED = ("z_dim", "w_dim", "rgb_out_dim", "activation")
_DISCRIMINATOR = {
    **{
        name: name
        for name in (
            *("img_resolution", "img_channels", "c_dim", "architecture", "lowres_head"),
            *("dual_input_ratio", "dual_discriminator", "progressive", "resize_real_early"),
            *("predict_camera", "predict_9d_camera", "predict_3d_camera", "no_camera_condition"),
        )
    },
    "separate_camera": "saperate_camera",
}


def generator_options(module: object) -> dict[str, Any]:
    """Return the keyword arguments of a pickled generator, with `img_resolution`.

    Raises:
        InputError: If it is not a generator.
    """
    state = state_of(module, "generator")
    synthesis = child(module, "synthesis")
    if synthesis is None:
        raise InputError("the snapshot's generator has no module `synthesis`")
    options = _recorded(state) | _kept(state, _GENERATOR)
    options["mapping_kwargs"] = _section(options, "mapping_kwargs") | _mapping(module)
    options["synthesis_kwargs"] = _synthesis(synthesis, _section(options, "synthesis_kwargs"))
    return options


def discriminator_options(module: object) -> dict[str, Any]:
    """Return the keyword arguments of a pickled discriminator.

    Raises:
        InputError: If it is not a discriminator.
    """
    state = state_of(module, "discriminator")
    options = _recorded(state) | _kept(state, _DISCRIMINATOR)
    epilogue = child(module, "b4")
    if epilogue is None:
        raise InputError("the snapshot's discriminator has no module `b4`")
    statistics = child(epilogue, "mbstd")
    groups: dict[str, Any] = {}
    if statistics is not None:
        names = {"group_size": "mbstd_group_size", "num_channels": "mbstd_num_channels"}
        groups = _kept(state_of(statistics, "mbstd"), names)
    options["epilogue_kwargs"] = _section(options, "epilogue_kwargs") | groups
    blocks = _blocks(module)
    if blocks:
        largest = blocks[max(blocks)]
        options |= _kept(state_of(child(largest, "conv0"), "conv0"), ("conv_clamp",))
    if not _is_number(options.get("channel_base")) and blocks:
        options["channel_base"], options["channel_max"] = _widths(blocks)
    return options


def _mapping(generator: object) -> dict[str, Any]:
    mapping = child(generator, "mapping")
    if mapping is None:
        return {}
    options = _kept(state_of(mapping, "mapping"), ("num_layers", "w_avg_beta"))
    first = child(mapping, "fc0")
    if first is not None:
        options |= _kept(state_of(first, "mapping.fc0"), {"bias_gain": "lr_multiplier"})
    return options


def _synthesis(synthesis: object, recorded: Mapping[str, Any]) -> dict[str, Any]:
    state = state_of(synthesis, "synthesis")
    options = {**recorded, **_recorded(state), **_kept(state, _SYNTHESIS)}
    parts: list[tuple[str, object, tuple[str, ...]]] = [
        ("camera_kwargs", state.get("C"), _CAMERA),
        ("renderer_kwargs", state.get("V"), _RENDERER),
        ("upsampler_kwargs", state.get("U"), _UPSAMPLER),
        ("foreground_kwargs", child(synthesis, "fg_nerf"), _FIELD),
        ("background_kwargs", child(synthesis, "bg_nerf"), _FIELD),
    ]
    for section, node, names in parts:
        if node is not None:
            own = _kept(state_of(node, section), names)
            options[section] = _section(options, section) | own
    for section in ("foreground_kwargs", "background_kwargs"):
        if section in options:
            given = _section(options, section)
            options[section] = {k: v for k, v in given.items() if k not in _FIELD_DERIVED}
    blocks = _blocks(synthesis)
    if blocks:
        options |= _block_options(blocks[min(blocks)])
    return options


def _block_options(block: object) -> dict[str, Any]:
    """Options that every 2-D block shares, read off the first."""
    own = state_of(block, "2-D block")
    options = _kept(own, ("architecture", "use_single_layer", "upsample_mode"))
    layer = child(block, "conv0") or child(block, "conv1")
    if layer is None:
        return options
    state = state_of(layer, "2-D layer")
    options |= _kept(state, ("conv_clamp", "magnitude_ema_beta"))
    weight = (state.get("_parameters") or {}).get("weight")
    if isinstance(weight, Tensor):
        options["kernel_size"] = int(weight.shape[-1])
    return options


def _recorded(state: Mapping[str, Any]) -> dict[str, Any]:
    recorded = plain(state.get("_init_kwargs"))
    return recorded if isinstance(recorded, dict) else {}


def _section(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = options.get(name)
    return section if isinstance(section, dict) else {}


def _kept(state: Mapping[str, Any], names: Mapping[str, str] | Collection[str]) -> dict[str, Any]:
    """Return attributes as options; a mapping renames them."""
    table = names if isinstance(names, Mapping) else {name: name for name in names}
    present = plain({new: state[old] for old, new in table.items() if old in state})
    return dict(present)


def _blocks(module: object) -> dict[int, object]:
    """Modules `b{resolution}` by resolution, without the discriminator's last."""
    modules = state_of(module, "network").get("_modules") or {}
    found = {
        int(name[1:]): value
        for name, value in modules.items()
        if name[:1] == "b" and name[1:].isdigit() and name != "b4"
    }
    return dict(sorted(found.items()))


def _widths(blocks: Mapping[int, object]) -> tuple[float, int]:
    """Channel base and maximum from the width of the discriminator's convolutions."""
    widths = {}
    for resolution, block in blocks.items():
        weight = state_of(child(block, "conv0"), "conv0").get("_parameters", {}).get("weight")
        if isinstance(weight, Tensor):
            widths[resolution] = int(weight.shape[1])
    if not widths:
        raise InputError("the snapshot's discriminator has no convolutions")
    largest = max(widths)
    return widths[largest] * largest / _CHANNEL_UNIT, max(widths.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
