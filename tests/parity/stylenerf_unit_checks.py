"""Operators, synthesis layers and discriminators against recordings of single pieces.

`ops`, `layers` and `discriminators`, each `NAME.{json,safetensors}`; a case is compared if it is
recorded. Bounds: spec/stylenerf.md section 5.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nfs.pretrained import load_original
from nfs.stylenerf import Discriminator
from nfs.stylenerf import resampling as R
from nfs.stylenerf.discriminator_head import camera_loss, pose9_to_matrix
from nfs.stylenerf.layers import minibatch_std
from nfs.stylenerf.original_discriminator import discriminator_spec
from nfs.stylenerf.original_weights import learned, load_weights, renamed
from nfs.stylenerf.synthesis import LayerOptions, SynthesisLayer
from tests.parity.stylenerf_recording import Recording, Report

BOUND = 1e-5
# Settings that the recordings were made with and do not carry (README of the fixtures).
_CROP = {"up": 2, "down": 2, "padding": (-1, 3, 2, -2), "gain": 1.5}
_CROP_FLIP = {"padding": (6, 5, 6, 5), "flip": True}
_MAGNITUDE_BETA, _MBSTD_GROUP = 0.999, 4
_GROWING = re.compile(r"logits_alpha([\d.]+?)(_from\d+)?(_as_shipped|_true_fade)?")
_LAYER_NAMES = [
    (r"^adapter\.0\.", "upsample.squeeze."),
    (r"^adapter\.1\.", "upsample.expand."),
    (r"^w_avg$", "magnitude"),
]


def units(report: Report, folder: Path) -> None:
    """Compare what `folder` holds of `ops`, `layers` and `discriminators`.

    Args:
        report: Receives `ops/...`, `layers/...`, `discriminators/...`.
        folder: In the format of `parity/stylenerf/units`.
    """
    for name, compare in (
        ("ops", _operators),
        ("layers", _layers),
        ("discriminators", _discriminators),
    ):
        if (folder / f"{name}.json").is_file():
            with torch.no_grad():
                compare(report, Recording(folder / name))


def _operators(report: Report, recording: Recording) -> None:
    get = recording.tensors
    for group in (_resampled, _statistics):
        for name, ours in group(get):
            if name in get:
                report.compare(f"ops/{name}", ours, get[name], BOUND)


def _resampled(get: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "filter", R.fir_taps([1, 3, 3, 1])
    if "x" in get:
        x, taps = get["x"], get["filter"]
        yield "filter2d", R.filter2d(x, taps)
        yield "upsample2d", R.upsample2d(x, taps)
        yield "downsample2d", R.downsample2d(torch.cat([x, x], dim=3)[..., :8, :14], taps)
        yield "crop", R.upfirdn(x, taps, **_CROP)
        yield "upsample2d_1d", R.upsample2d(x, get["filter_1d"])
        yield "crop_flip", R.upfirdn(x, get["filter_1d"], **_CROP_FLIP)
    for name in ("w3", "w1"):
        if name in get:
            x, weight = get["x8"], get[name]
            k = weight.shape[-1]
            yield f"conv_k{k}_same", F.conv2d(x, weight, padding=k // 2)
            yield f"conv_k{k}_up", R.conv2d_up(x, weight)
            yield f"conv_k{k}_down", R.conv2d_down(x, weight)


def _statistics(get: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if "cam9" in get:
        yield "cam16", pose9_to_matrix(get["cam9"]).flatten(1)
    if "mbstd_in" in get:
        yield "mbstd_out", minibatch_std(get["mbstd_in"], group_size=_MBSTD_GROUP)


def _layers(report: Report, recording: Recording) -> None:
    for name in sorted({path.split("/")[0] for path in recording.tensors}):
        case = recording.under(f"{name}/")
        mode = name[: name.rindex("_k")]
        layer = _layer(case, mode, recording.values, name)
        x, w = case["x"], case["w"]
        ours = {
            "eval_none": layer.eval()(x, w, noise="none"),
            "eval_const": layer(x, w, noise="const"),
            "fused_false": layer(x, w),
            "eval_skip_up": layer(x, w, double=False),
            "train_none": layer.train()(x, w, noise="none"),
        }
        ours["w_avg_after"] = layer.magnitude
        for key, value in ours.items():
            if key in case:
                report.compare(f"layers/{name}/{key}", value, case[key], BOUND)


def _layer(case: dict[str, Tensor], mode: str, values: dict[str, Any], name: str) -> SynthesisLayer:
    state = {k[len("state/") :]: v for k, v in case.items() if k.startswith("state/")}
    out_channels, in_channels = state["weight"].shape[:2]
    options = LayerOptions(
        w_dim=case["w"].shape[1],
        kernel_size=values[f"{name}/kernel_size"],
        upsample_mode=mode,
        use_noise="noise_const" in state,
        clamp=values.get(f"{name}/conv_clamp"),
        magnitude_beta=_MAGNITUDE_BETA if "w_avg" in state else None,
        flip_up_kernel=True,
    )
    resolution = 2 * case["x"].shape[-1]
    layer = SynthesisLayer(in_channels, out_channels, resolution, options, up=True)
    weights = {renamed(k, _LAYER_NAMES): v for k, v in learned(state).items()}
    load_weights(layer, weights, f"layer {name}")
    return layer


def _discriminators(report: Report, recording: Recording) -> None:
    inputs = recording.under("inputs/")
    names = {path.split("/")[0] for path in recording.tensors} - {"inputs"}
    for name in sorted(names):
        case = recording.under(f"{name}/")
        kwargs = _nested(recording.values, f"{name}/kwargs/")
        state = {k[len("state/") :]: v for k, v in case.items() if k.startswith("state/")}
        network = load_original("stylenerf/discriminator", state, kwargs)
        assert isinstance(network, Discriminator)
        for key, ours in _judged(network, kwargs, inputs, set(case)):
            if key in case:
                report.compare(f"discriminators/{name}/{key}", ours, case[key], BOUND)


def _judged(
    network: Discriminator, kwargs: dict[str, Any], inputs: dict[str, Tensor], keys: set[str]
) -> Iterator[tuple[str, Tensor]]:
    image, spec = inputs["img"], network.spec
    label = inputs["label"] if spec.c_dim else None
    if spec.camera is not None:
        logits, camera = network(image, c=label, return_camera=True)
        yield "logits", logits
        yield "camera", camera
        if spec.camera == "uvr":
            yield "camera_loss", camera_loss(camera, inputs["uvr"])
        return
    low = inputs["img_nerf"] if spec.dual_discriminator else None
    yield "logits", network(image, image_low=low, c=label)
    yield "logits_real", network(image, c=label)
    if not spec.progressive:
        return
    fading = Discriminator(replace(discriminator_spec(kwargs), fade=True)).eval()
    fading.load_state_dict(network.state_dict())
    for key in keys:
        found = _GROWING.fullmatch(key)
        if found is None:
            continue
        alpha, source, fade = float(found[1]), found[2], found[3]
        # At alpha 0 without a named source the input has the size of the first stage.
        seen = inputs["img_nerf"] if alpha == 0 and not source else image
        judge = fading if fade == "_true_fade" else network
        yield key, judge(seen, alpha=alpha, c=label)


def _nested(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Rebuild nested keyword arguments from paths."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        if path.startswith(prefix):
            *parents, leaf = path[len(prefix) :].split("/")
            node = tree
            for part in parents:
                node = node.setdefault(part, {})
            node[leaf] = value
    return tree
