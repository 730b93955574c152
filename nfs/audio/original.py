"""Key mapping between original Audio2Exp state dicts and ours (spec/audio.md 2.9)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nfs.audio.audio2exp import Audio2Exp
from nfs.errors import InputError
from nfs.training.checkpoint import read_weights, write_checkpoint

_RELEASE_PREFIX = "audio2exp."
_WAV2LIP_PREFIX = "module.audio_encoder."
_log = logging.getLogger(__name__)


def load_audio2exp(
    state_dict: Mapping[str, Tensor], config: Mapping[str, object] | None = None
) -> Audio2Exp:
    """Return Audio2Exp (eval mode) with the weights of an original state dict.

    Accepts bare names (`audio_encoder.0...`, `mapping1...`) or the SadTalker release, where this
    network's names start with `audio2exp.` and other networks share the file.

    Args:
        state_dict: Tensors by original name.
        config: Ignored when empty; the architecture has no options.

    Raises:
        InputError: If names or shapes do not fit.
    """
    if config:
        raise InputError(f"audio2exp takes no configuration, got {sorted(config)}")
    weights = select_prefix(state_dict, _RELEASE_PREFIX) or dict(state_dict)
    model = Audio2Exp()
    _check_names(weights, set(model.state_dict()))
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(f"audio2exp weights do not fit: {error}") from error
    return model.eval()


def load_wav2lip_encoder(model: Audio2Exp, state_dict: Mapping[str, Tensor]) -> None:
    """Initialise the audio encoder from a Wav2Lip generator, as both official modules did.

    Args:
        model: Changed in place.
        state_dict: The generator's tensors, with or without the leading `module.`.

    Raises:
        InputError: If it holds no fitting audio encoder.
    """
    weights = select_prefix(state_dict, _WAV2LIP_PREFIX) or select_prefix(
        state_dict, "audio_encoder."
    )
    _check_names(weights, set(model.audio_encoder.state_dict()))
    model.audio_encoder.load_state_dict(weights, strict=True)


def export_audio2exp(model: Audio2Exp, prefix: str = "") -> dict[str, Tensor]:
    """Return the state dict under the original's names, e.g. with prefix `audio2exp.`."""
    return {prefix + name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def write_imported(
    directory: Path, network: nn.Module, family: str, facts: Mapping[str, Any]
) -> None:
    """Write an imported network as a checkpoint directory."""
    text = f"# {family}\n\n" + "".join(f"- {key}: {value}\n" for key, value in facts.items())
    write_checkpoint(directory, network.state_dict(), model={"kind": family}, card=text)


def export_checkpoint(
    directory: str | Path, network: str | None
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return state dict, family and options of a checkpoint; our names are the original's.

    Raises:
        InputError: If another network is asked for than `ema` or `weights`.
    """
    if network not in (None, "ema", "weights"):
        raise InputError(f"{directory}: holds `ema` and `weights`, not {network}")
    return read_weights(directory, ema=network != "weights"), "audio2exp", {}


def select_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without it; log whose others are."""
    chosen = {
        name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)
    }
    ignored = sorted({name.split(".")[0] for name in state_dict if not name.startswith(prefix)})
    if chosen and ignored:
        _log.info("ignored weights of other networks: %s", ", ".join(ignored))
    return chosen


def _check_names(weights: Mapping[str, Tensor], expected: set[str]) -> None:
    missing, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or unknown:
        raise InputError(
            f"audio2exp weights do not fit: {len(missing)} missing (first: {missing[:3]}), "
            f"{len(unknown)} unknown (first: {unknown[:3]})"
        )
