"""Trained regressors as checkpoint directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nfs.errors import ArtifactError, InputError
from nfs.morphable.recon.network import ReconNet, ReconSpec, folded_state
from nfs.morphable.recon.original import load_weights
from nfs.training.checkpoint import read_model, read_weights, write_checkpoint

KIND = "recon"


def export_network(
    directory: Path,
    network: ReconNet,
    *,
    ema: ReconNet | None,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Write a checkpoint; its tensors carry the original's names.

    Args:
        directory: Made if absent.
        network: Trained network.
        ema: Averaged network, if there is one.
        facts: What it was trained on, for the card.
        metrics: Last evaluation, for the card.
    """
    write_checkpoint(
        directory,
        network.state_dict(),
        ema=None if ema is None else ema.state_dict(),
        model={"kind": KIND, "spec": network.spec.tree(), "facts": dict(facts)},
        card=_card(network.spec, facts, metrics),
    )


def load_network(directory: str | Path, *, ema: bool = True) -> ReconNet:
    """Return the network of a checkpoint directory, in eval mode.

    Raises:
        ArtifactError: If the directory holds another kind of model or damaged weights.
    """
    tree = read_model(directory)
    if tree.get("kind") != KIND:
        raise ArtifactError(f"{directory}: holds a {tree.get('kind')!r} model, need {KIND!r}")
    network = ReconNet(ReconSpec.from_tree(tree["spec"]))
    try:
        load_weights(network, read_weights(directory, ema=ema), str(directory))
    except InputError as error:
        raise ArtifactError(str(error)) from None
    return network.eval()


def write_imported(
    directory: Path, network: nn.Module, family: str, facts: Mapping[str, Any]
) -> None:
    """Write an imported regressor as a checkpoint directory."""
    assert isinstance(network, ReconNet), family
    export_network(directory, network, ema=None, facts=facts, metrics={})


def export_checkpoint(
    directory: str | Path, network: str | None
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return state dict, family and options of a checkpoint, as the original's format has them.

    Raises:
        InputError: If another network is asked for than `ema` or `weights`.
    """
    if network not in (None, "ema", "weights"):
        raise InputError(f"{directory}: holds `ema` and `weights`, not {network}")
    found = load_network(directory, ema=network != "weights")
    return folded_state(found), f"recon/{found.spec.backbone}", {}


def _card(spec: ReconSpec, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    lines = [
        f"# Coefficient regressor ({spec.backbone})",
        "",
        f"- input: RGB in [0, 1], {spec.image_size_px} px, aligned by five points (Deep3D)",
        f"- output: 257 coefficients of {spec.model_id or 'an unknown model'} "
        f"{spec.model_checksum[:12]}",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    if metrics:
        lines += ["", "| held-out metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    return "\n".join(lines) + "\n"
