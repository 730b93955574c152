"""Keyword arguments of original StyleNeRF generators as our `GeneratorSpec`.

Options that never worked in the original, and those that nothing describes, are refused by name.
Source: spec/stylenerf.md 1.1, 2.2-2.6 and section 3.
"""

from collections.abc import Mapping
from typing import Any

from nfs.errors import InputError
from nfs.geometry.warps import DepthWarp
from nfs.stylenerf.encodings import EncodingKind
from nfs.stylenerf.field_options import Density, FieldOptions, InputKind, InputSpec
from nfs.stylenerf.original_weights import check_fixed
from nfs.stylenerf.spec import CameraPrior, GeneratorSpec

_SAMPLES_WITHOUT_CURRICULUM = 20  # Q17
# The value an option must have where ours has no alternative (dotted original name).
_FIXED: dict[str, object] = {
    "img_channels": 3,
    "mapping_kwargs.lr_multiplier": 0.01,
    "mapping_kwargs.activation": "lrelu",
    "mapping_kwargs.embed_features": None,
    "mapping_kwargs.layer_features": None,
    "synthesis_kwargs.z_dim": 0,
    "synthesis_kwargs.interp_steps": None,
    "synthesis_kwargs.freeze_nerf": False,
    "synthesis_kwargs.cam_based_sampler": False,
    "synthesis_kwargs.upsampler_kwargs.no_2d_renderer": False,
    "synthesis_kwargs.upsampler_kwargs.block_reses": None,
    "synthesis_kwargs.upsampler_kwargs.channel_base_sz": None,
    "synthesis_kwargs.upsampler_kwargs.channel_dict": None,
    "synthesis_kwargs.upsampler_kwargs.out_channel_dict": None,
}
_FIELD_FIXED: dict[str, object] = {
    "activation": "lrelu",
    "z_dim": 0,
    "magnitude_ema_beta": -1,
    "gauss_dim_pos": 20,
    "gauss_std": 10,
    "no_sigma": False,
}
_DEFAULTS: dict[str, object] = {"synthesis_kwargs.z_dim": 256}
_NEVER_WORKED = {
    "use_viewdirs": False,
    "use_sdf": None,
    "use_normal": False,
    "shuffle_factor": 1,
    "tcnn_backend": False,
}
_INPUT_KINDS: dict[str, InputKind] = {
    "tri_plane_reshape": "tri_plane",
    "tri_plane_concat": "tri_plane_concat",
    "multi_planes": "multi_plane",
    "3d_volume": "volume",
    "ms_volume": "multiscale_volume",
}
_DENSITIES: dict[str, Density] = {
    "relu": "relu",
    "shiftedsoftplus": "softplus",
    "exp_truncated": "truncated_exponential",
}
_ENCODINGS: dict[str, EncodingKind] = {"normal": "fourier", "gauss": "gaussian"}
_WARPS: dict[str | None, DepthWarp] = {None: "linear", "LogWarp": "log", "InverseWarp": "inverse"}


def generator_spec(
    config: Mapping[str, Any], *, camera_head: tuple[int, int, int] | None = None
) -> GeneratorSpec:
    """Translate the original generator's keyword arguments (defaults are the classes' own).

    Args:
        config: The arguments, with `img_resolution`.
        camera_head: Sizes of the camera network, which the arguments do not hold.

    Raises:
        InputError: An option that is not supported; the message names it and its value.
    """
    _refuse(config)
    synthesis = config["synthesis_kwargs"]
    mapping = _section(config, "mapping")
    resolution = int(config["img_resolution"])
    resolution_vol = min(int(synthesis.get("resolution_vol", 32)), resolution)
    return GeneratorSpec(
        z_dim=config["z_dim"],
        w_dim=config["w_dim"],
        c_dim=int(config.get("c_dim", 0)),
        img_resolution=resolution,
        mapping_num_layers=mapping.get("num_layers", 8),
        w_avg_beta=mapping.get("w_avg_beta", 0.995),
        resolution_vol=resolution_vol,
        resolution_start=synthesis.get("resolution_start", resolution_vol),
        progressive=bool(synthesis.get("progressive", True)),
        grow_field=bool(synthesis.get("prog_nerf_only", False)),
        camera_head=camera_head,
        **_fields(synthesis),
        **_rays(synthesis),
        **_blocks(synthesis),
    )


def _refuse(config: Mapping[str, Any]) -> None:
    check_fixed(config, _FIXED, defaults=_DEFAULTS)
    synthesis = config["synthesis_kwargs"]
    if config.get("encoder_kwargs"):
        raise InputError("original option encoder_kwargs: image encoders are not supported")
    if synthesis.get("n_reg_samples", 0) and not synthesis.get("reg_full", False):
        raise InputError("original options n_reg_samples > 0 with reg_full=False crash there (Q12)")
    feature_dim = synthesis.get("rgb_out_dim", 256)
    if synthesis.get("rgb_out_dim_bg", feature_dim) != feature_dim:
        raise InputError("original option rgb_out_dim_bg differs from rgb_out_dim: cannot be added")


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = tree.get(f"{name}_kwargs") or {}
    return found


def _fields(synthesis: Mapping[str, Any]) -> dict[str, Any]:
    """Both fields and their inputs."""
    front, behind = _section(synthesis, "foreground"), _section(synthesis, "background")
    planes = _input_spec(synthesis)
    latents = bool(_section(synthesis, "input").get("keep_nerf_latents", False))
    background = None
    background_dim = synthesis.get("z_dim_bg", 128)
    if not _section(synthesis, "renderer").get("no_background", False):
        styled = not background_dim
        background = _field_options(behind, "background", styled=styled, sphere=True)
    return {
        "foreground": _field_options(front, "foreground", styled=planes is None or latents),
        "field_hidden_dim": front.get("hidden_size", 128),
        "field_num_layers": front.get("n_blocks", 8),
        "num_frequencies": front.get("n_freq_posenc", 10),
        "inputs": planes,
        "background": background,
        "background_dim": background_dim,
        "background_hidden_dim": behind.get("hidden_size", 128),
        "background_num_layers": behind.get("n_blocks", 8),
        "background_num_frequencies": behind.get("n_freq_posenc", 10),
        "feature_dim": synthesis.get("rgb_out_dim", 256),
    }


def _rays(synthesis: Mapping[str, Any]) -> dict[str, Any]:
    """Cameras, depths and compositing."""
    camera, renderer = _section(synthesis, "camera"), _section(synthesis, "renderer")
    open_end = renderer.get("no_background", False) and renderer.get("white_background", False)
    rectangle = synthesis.get("rectangular")
    return {
        "num_samples": renderer.get("n_ray_samples", 14),
        "num_background_samples": renderer.get("n_bg_samples", 4),
        "samples_without_curriculum": _SAMPLES_WITHOUT_CURRICULUM,
        "hierarchical": bool(renderer.get("hierarchical", True)),
        "density": _DENSITIES.get(renderer.get("sigma_type", "relu"), "raw"),
        "emptiness": "open" if open_end else "opaque",
        "depth_range": _pair(camera.get("depth_range", (0.5, 6.0))),
        "depth_warp": _choice(
            _WARPS, camera.get("depth_transform"), "camera_kwargs.depth_transform"
        ),
        "normalized_distances": bool(camera.get("dists_normalized", False)),
        "corner_aligned": bool(camera.get("ray_align_corner", True)),
        "background_start": float(camera.get("bg_start", 1.0)),
        "fov_deg": float(camera.get("fov", 49.13)),
        "rectangle": None if rectangle is None else (int(rectangle[0]), int(rectangle[1])),
        "cameras": CameraPrior(
            yaw_rad=_pair(camera.get("range_u", (0.0, 0.0))),
            pitch_rad=_pair(camera.get("range_v", (0.25, 0.25))),
            radius=_pair(camera.get("range_radius", (2.732, 2.732))),
            gaussian=bool(camera.get("gaussian_camera", False)),
            angular=bool(camera.get("angular_camera", False)),
            roll_deg=float(camera.get("random_rotate") or 0),
        ),
    }


def _blocks(synthesis: Mapping[str, Any]) -> dict[str, Any]:
    """The 2-D stack."""
    upsampler = _section(synthesis, "upsampler")
    magnitude_beta = float(synthesis.get("magnitude_ema_beta", -1))
    return {
        "channel_base": float(upsampler.get("channel_base", synthesis.get("channel_base", 1))),
        "channel_max": int(upsampler.get("channel_max", synthesis.get("channel_max", 1024))),
        "conv_clamp": synthesis.get("conv_clamp"),
        "magnitude_ema_beta": magnitude_beta if magnitude_beta > 0 else None,
        "kernel_size": int(synthesis.get("kernel_size", 3)),
        "upsample_mode": synthesis.get("upsample_mode", "default"),
        "architecture": synthesis.get("architecture", "skip"),
        "use_noise": bool(synthesis.get("use_noise", True)),
        "single_layer": bool(synthesis.get("use_single_layer", False)),
        "shared_rgb_style": bool(upsampler.get("shared_rgb_style", False)),
        "residual_image": not upsampler.get("no_residual_img", False),
        "flip_up_kernel": True,
    }


def _field_options(
    kwargs: Mapping[str, Any], name: str, *, styled: bool, sphere: bool = False
) -> FieldOptions:
    prefix = f"synthesis_kwargs.{name}_kwargs."
    check_fixed(kwargs, _FIELD_FIXED, prefix=prefix)
    for option, harmless in _NEVER_WORKED.items():
        if kwargs.get(option) not in (harmless, None):
            raise InputError(
                f"original option {prefix}{option}={kwargs[option]!r} does not run in the original "
                f"either; leave it at {harmless!r}"
            )
    if bool(kwargs.get("inverse_sphere", False)) != sphere:
        raise InputError(f"original option {prefix}inverse_sphere must be {sphere}")
    if bool(kwargs.get("predict_rgb", False)) == bool(kwargs.get("add_rgb", False)):
        raise InputError(f"original options {prefix}predict_rgb, add_rgb: set one of the two")
    return FieldOptions(
        styled=styled and not kwargs.get("disable_latents", False),
        encoding=_ENCODINGS.get(kwargs.get("positional_encoding", "normal"), "none"),
        append_position=bool(kwargs.get("use_pos", False)),
        position_scale=float(kwargs.get("downscale_p_by", 1)),
        skip=bool(kwargs.get("use_skip", False)),
        colour="separate" if kwargs.get("add_rgb", False) else "features",
        merged_density=bool(kwargs.get("merge_sigma_feat", False)),
        sigmoid_colour=bool(kwargs.get("final_sigmoid_act", False)),
        normalization="rows" if kwargs.get("normalized_feat", False) else "none",
    )


def _input_spec(synthesis: Mapping[str, Any]) -> InputSpec | None:
    kwargs = _section(synthesis, "input")
    mode = kwargs.get("output_mode", "none")
    if mode in ("none", None):
        return None
    kind = _choice(_INPUT_KINDS, mode, "input_kwargs.output_mode")
    levels = int(kwargs.get("hash_level", 16))
    channels = int(kwargs.get("out_dim", 32))
    if kind == "multiscale_volume":
        channels = levels * int(kwargs.get("hash_dim_out", 2))
    octaves = int(kwargs.get("keep_posenc", -1))
    bound = _section(synthesis, "renderer").get("bound")
    return InputSpec(
        kind=kind,
        resolution=int(kwargs.get("out_res", 256)),
        start_resolution=int(kwargs.get("in_res", 4)),
        channels=channels,
        num_planes=int(kwargs.get("split_size", 64)),
        append_octaves=None if octaves < 0 else octaves,
        channel_base=float(kwargs.get("channel_base", synthesis.get("channel_base", 1))),
        channel_max=int(kwargs.get("channel_max", synthesis.get("channel_max", 1024))),
        bound=None if bound is None else float(bound),
        num_levels=levels,
        level_frequencies=(
            int(kwargs.get("hash_n_min", 16)),
            int(kwargs.get("hash_n_max", 512)),
        ),
    )


def _choice(table: Mapping[Any, Any], value: object, name: str) -> Any:
    if value not in table:
        known = ", ".join(repr(key) for key in table)
        raise InputError(f"original option {name}={value!r} is not supported; known: {known}")
    return table[value]


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
