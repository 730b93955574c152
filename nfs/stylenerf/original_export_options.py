"""Our specs as keyword arguments of the original's networks.

The inverse of `original_options` and `original_discriminator`: a spec that these would not read
back is refused by naming the setting. Source: spec/stylenerf.md 1.1.
"""

from dataclasses import asdict, replace
from typing import Any

from nfs.errors import InputError
from nfs.stylenerf.field_options import FieldOptions, InputSpec
from nfs.stylenerf.original_discriminator import discriminator_spec
from nfs.stylenerf.original_options import generator_spec
from nfs.stylenerf.spec import CameraPrior, DiscriminatorSpec, GeneratorSpec

_SAMPLES_WITHOUT_CURRICULUM = 20  # Q17
_INPUT_MODES = {
    "tri_plane": "tri_plane_reshape",
    "tri_plane_concat": "tri_plane_concat",
    "multi_plane": "multi_planes",
    "volume": "3d_volume",
    "multiscale_volume": "ms_volume",
}
_SIGMA_TYPES = {
    "relu": "relu",
    "softplus": "shiftedsoftplus",
    "truncated_exponential": "exp_truncated",
    "raw": "raw",
}
_ENCODINGS = {"fourier": "normal", "gaussian": "gauss", "none": "none"}
_TRANSFORMS = {"linear": None, "log": "LogWarp", "inverse": "InverseWarp"}


def original_generator_options(spec: GeneratorSpec) -> dict[str, Any]:
    """Return the original generator's keyword arguments, with class names and `img_resolution`.

    Raises:
        InputError: If the original has no counterpart of a setting.
    """
    options = {
        "class_name": "training.networks.Generator",
        "z_dim": spec.z_dim,
        "c_dim": spec.c_dim,
        "w_dim": spec.w_dim,
        "img_resolution": spec.img_resolution,
        "img_channels": 3,
        "mapping_kwargs": {"num_layers": spec.mapping_num_layers, "w_avg_beta": spec.w_avg_beta},
        "synthesis_kwargs": _synthesis(spec),
    }
    _compare(_as_original(spec), generator_spec(options, camera_head=spec.camera_head), "generator")
    return options


def original_discriminator_options(spec: DiscriminatorSpec) -> dict[str, Any]:
    """Return the original discriminator's keyword arguments; as `original_generator_options`."""
    options: dict[str, Any] = {
        "class_name": "training.stylenerf.Discriminator",
        "c_dim": spec.c_dim,
        "cmap_dim": spec.cmap_dim,
        "img_resolution": spec.img_resolution,
        "img_channels": 3,
        "architecture": spec.architecture,
        "channel_base": spec.channel_base,
        "channel_max": spec.channel_max,
        "conv_clamp": spec.conv_clamp,
        "progressive": spec.progressive,
        "lowres_head": spec.lowres_head,
        "resize_real_early": True,
        "num_fp16_res": 0,
        "dual_discriminator": spec.dual_discriminator,
        "dual_input_ratio": spec.dual_input_ratio,
        "saperate_camera": spec.separate_camera,
        "no_camera_condition": not spec.camera_condition,
        "block_kwargs": {"freeze_layers": spec.num_frozen_layers},
        "mapping_kwargs": {"num_layers": spec.mapping_num_layers},
        "epilogue_kwargs": {
            "mbstd_group_size": spec.mbstd_group_size,
            "mbstd_num_channels": spec.mbstd_num_channels,
        },
        "predict_camera": spec.camera is not None,
        "predict_9d_camera": spec.camera == "pose9",
        "predict_3d_camera": spec.camera == "uvr",
    }
    # The fade is a matter of training, not of the network (Q2).
    _compare(replace(spec, fade=False), discriminator_spec(options), "discriminator")
    return options


def _as_original(spec: GeneratorSpec) -> GeneratorSpec:
    """Fill in what the original fixes, where that leaves trained images unchanged."""
    octaves = spec.background_num_frequencies
    return replace(
        spec,
        samples_without_curriculum=_SAMPLES_WITHOUT_CURRICULUM,
        background_num_frequencies=spec.num_frequencies if octaves is None else octaves,
        flip_up_kernel=spec.flip_up_kernel or spec.kernel_size == 1,
    )


def _compare(
    ours: GeneratorSpec | DiscriminatorSpec, read: GeneratorSpec | DiscriminatorSpec, what: str
) -> None:
    wanted, found = asdict(ours), asdict(read)
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        values = ", ".join(f"{name}={wanted[name]!r}" for name in different)
        raise InputError(f"the original {what} has no counterpart of {values}; it is not exported")


def _synthesis(spec: GeneratorSpec) -> dict[str, Any]:
    options: dict[str, Any] = {
        "module_name": "training.stylenerf.NeRFSynthesisNetwork",
        "num_fp16_res": 0,
        "z_dim": 0,
        "z_dim_bg": spec.background_dim,
        "rgb_out_dim": spec.feature_dim,
        "channel_base": spec.channel_base,
        "channel_max": spec.channel_max,
        "conv_clamp": spec.conv_clamp,
        "kernel_size": spec.kernel_size,
        "architecture": spec.architecture,
        "upsample_mode": spec.upsample_mode,
        "use_noise": spec.use_noise,
        "use_single_layer": spec.single_layer,
        "magnitude_ema_beta": -1 if spec.magnitude_ema_beta is None else spec.magnitude_ema_beta,
        "resolution_vol": spec.resolution_vol,
        "resolution_start": spec.resolution_start,
        "progressive": spec.progressive,
        "prog_nerf_only": spec.grow_field,
        "predict_camera": spec.camera_head is not None,
        "rectangular": None if spec.rectangle is None else list(spec.rectangle),
        "camera_kwargs": _cameras(spec, spec.cameras),
        "renderer_kwargs": _renderer(spec),
        "upsampler_kwargs": {
            "channel_base": spec.channel_base,
            "channel_max": spec.channel_max,
            "no_residual_img": not spec.residual_image,
            "shared_rgb_style": spec.shared_rgb_style,
        },
        "foreground_kwargs": {
            "hidden_size": spec.field_hidden_dim,
            "n_blocks": spec.field_num_layers,
            "n_freq_posenc": spec.num_frequencies,
            **_field(spec.foreground),
        },
    }
    if spec.inputs is not None:
        options["input_kwargs"] = _inputs(spec.inputs, keep_latents=spec.foreground.styled)
    if spec.background is not None:
        octaves = spec.background_num_frequencies
        options["background_kwargs"] = {
            "hidden_size": spec.background_hidden_dim,
            "n_blocks": spec.background_num_layers,
            "n_freq_posenc": spec.num_frequencies if octaves is None else octaves,
            "inverse_sphere": True,
            **_field(spec.background),
        }
    return options


def _cameras(spec: GeneratorSpec, prior: CameraPrior) -> dict[str, Any]:
    return {
        "range_u": list(prior.yaw_rad),
        "range_v": list(prior.pitch_rad),
        "range_radius": list(prior.radius),
        "depth_range": list(spec.depth_range),
        "fov": spec.fov_deg,
        "gaussian_camera": prior.gaussian,
        "angular_camera": prior.angular,
        "random_rotate": prior.roll_deg or False,
        "depth_transform": _TRANSFORMS[spec.depth_warp],
        "dists_normalized": spec.normalized_distances,
        "ray_align_corner": spec.corner_aligned,
        "bg_start": spec.background_start,
    }


def _renderer(spec: GeneratorSpec) -> dict[str, Any]:
    return {
        "n_ray_samples": spec.num_samples,
        "n_bg_samples": spec.num_background_samples,
        "sigma_type": _SIGMA_TYPES[spec.density],
        "hierarchical": spec.hierarchical,
        "no_background": spec.background is None,
        "white_background": spec.emptiness == "open",
        "bound": None if spec.inputs is None else spec.inputs.bound,
    }


def _field(field: FieldOptions) -> dict[str, Any]:
    return {
        "positional_encoding": _ENCODINGS[field.encoding],
        "use_pos": field.append_position,
        "downscale_p_by": field.position_scale,
        "use_skip": field.skip,
        "predict_rgb": field.colour == "features",
        "add_rgb": field.colour == "separate",
        "merge_sigma_feat": field.merged_density,
        "final_sigmoid_act": field.sigmoid_colour,
        "normalized_feat": field.normalization == "rows",
        "use_viewdirs": False,
    }


def _inputs(inputs: InputSpec, *, keep_latents: bool) -> dict[str, Any]:
    low, high = inputs.level_frequencies
    return {
        "output_mode": _INPUT_MODES[inputs.kind],
        "in_res": inputs.start_resolution,
        "out_res": inputs.resolution,
        "out_dim": inputs.channels,
        "split_size": inputs.num_planes,
        "keep_posenc": -1 if inputs.append_octaves is None else inputs.append_octaves,
        "keep_nerf_latents": keep_latents,
        "channel_base": inputs.channel_base,
        "channel_max": inputs.channel_max,
        "hash_level": inputs.num_levels,
        "hash_dim_out": inputs.channels // inputs.num_levels,
        "hash_n_min": low,
        "hash_n_max": high,
    }
