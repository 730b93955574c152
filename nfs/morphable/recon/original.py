"""Import and export of the original's weights (spec/morphable.md 2.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nfs.errors import InputError
from nfs.morphable.recon.network import ReconNet, ReconSpec

# `epoch_*.pth` nests the network beside its optimiser; SadTalker's release prefixes it.
_NESTED = "net_recon"
_PREFIXES = ("net_recon.", "face_3drecon.", "module.")
_COUNTER = "num_batches_tracked"
_OPTIONS = {"net_recon", "use_last_fc"}


def load_recon(
    backbone: str, state: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> ReconNet:
    """Return the regressor with an original's weights, in eval mode.

    Args:
        backbone: Trunk.
        state: Content of `epoch_*.pth`, its `net_recon`, or SadTalker's release; tensors under
            the original names.
        config: Options of the original: `net_recon`, `use_last_fc`.

    Raises:
        InputError: If an option, a name or a shape does not fit.
    """
    options = dict(config or {})
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise InputError(f"recon/{backbone}: unknown options {unknown}; known: {sorted(_OPTIONS)}")
    if options.get("net_recon", backbone) != backbone:
        raise InputError(f"recon/{backbone}: the options say net_recon={options['net_recon']}")
    weights = select_network(state)
    linear = "backbone.fc.weight" in weights
    if options.get("use_last_fc", linear) != linear:
        raise InputError(
            f"recon/{backbone}: use_last_fc={options['use_last_fc']}, but the file "
            f"{'has' if linear else 'lacks'} backbone.fc.weight"
        )
    model = ReconNet(ReconSpec(backbone=backbone, output="linear" if linear else "heads"))
    load_weights(model, weights, f"recon/{backbone}")
    return model.eval()


def load_resnet50(state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> ReconNet:
    """Return the published network; see `load_recon`."""
    return load_recon("resnet50", state, config)


def load_resnet18(state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> ReconNet:
    """Return the small variant; see `load_recon`."""
    return load_recon("resnet18", state, config)


def select_network(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the regressor's own tensors out of a file that may hold more."""
    if isinstance(state.get(_NESTED), Mapping):
        state = state[_NESTED]
    for prefix in _PREFIXES:
        chosen = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if chosen:
            return select_network(chosen)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_weights(model: ReconNet, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a network, nothing missing and nothing left over.

    Counters of BatchNorm, which old files lack, are optional.

    Raises:
        InputError: Naming what does not fit.
    """
    expected = model.state_dict()
    problems = []
    missing = [k for k in expected if k not in weights and not k.endswith(_COUNTER)]
    unknown = sorted(weights.keys() - expected.keys())
    if missing:
        problems.append(f"{len(missing)} missing (first: {missing[:3]})")
    if unknown:
        problems.append(f"{len(unknown)} unknown (first: {unknown[:3]})")
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name].shape:
            got, need = list(weights[name].shape), list(expected[name].shape)
            problems.append(f"{name} is {got}, expected {need}")
    if problems:
        raise InputError(f"{where}: weights do not fit: {'; '.join(problems)}")
    filled = {k: weights.get(k, torch.zeros_like(v)) for k, v in expected.items()}
    model.load_state_dict(filled, strict=True)


def load_imagenet_trunk(model: ReconNet, state: Mapping[str, Tensor], where: str) -> None:
    """Start the trunk from torchvision's classifier; its last layer is left out.

    Raises:
        InputError: If the file is not that of the same trunk.
    """
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    fc = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.fc.")}
    trunk = {f"backbone.{k}": v for k, v in state.items() if "fc" not in k}
    load_weights(model, {**heads, **fc, **trunk}, where)


def with_spec(model: ReconNet, spec: ReconSpec) -> ReconNet:
    """Return a network of another picture size or morphable model with the same weights.

    Raises:
        InputError: If the trunk or the kind of output differs.
    """
    same = replace(spec, backbone=model.spec.backbone, output=model.spec.output)
    if same != spec:
        raise InputError(
            f"the weights are of {model.spec.backbone} with output={model.spec.output}, the "
            f"configuration asks for {spec.backbone} with output={spec.output}"
        )
    other = ReconNet(spec)
    other.load_state_dict(model.state_dict(), strict=True)
    return other.train(model.training)
