"""Parity of the mel front end and Audio2Exp with recordings as in shared/parity/audio."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from nfs.audio import mel as mel_module
from nfs.audio.audio2exp import Audio2Exp, predict_expressions
from nfs.pretrained import load_original
from tests.parity.replay import Check, check

_EXACT = 0.0
_FLOAT64 = 1e-12
_MODULE = 1e-5
_GRADIENT = 1e-4


def checks(folder: Path) -> dict[str, Check]:
    """Run every check whose files are in `folder`."""
    results: dict[str, Check] = {}
    for file, run in (
        ("mel_stages.npz", mel_stages),
        ("mel_silence.npz", mel_silence),
        ("mel_speech_a.npz", mel_speech),
        ("audio2exp_io.safetensors", audio2exp_outputs),
        ("audio2exp_grad.json", audio2exp_gradients),
    ):
        if (folder / file).exists():
            results |= run(folder)
    return results


def mel_stages(folder: Path) -> dict[str, Check]:
    """Compare every stage of the front end in float64."""
    with np.load(folder / "mel_stages.npz", allow_pickle=False) as recorded:
        data = dict(recorded)
    emphasised = mel_module.pre_emphasis(data["sig"])
    magnitude = mel_module.stft_magnitude(np.pad(emphasised, mel_module.FFT_SIZE // 2))
    linear = mel_module.mel_basis() @ magnitude
    level = mel_module.decibels(linear)
    full = mel_module.melspectrogram(data["sig"], mel_module.SAMPLE_RATE_HZ)
    return {
        "mel_stages/preemph": check(_max(emphasised - data["preemph"]), _FLOAT64),
        "mel_stages/stft_abs": check(_max(magnitude - data["stft_abs"]), _FLOAT64),
        "mel_stages/mel_basis": check(_max(mel_module.mel_basis() - data["mel_basis"]), _EXACT),
        "mel_stages/lin_mel": check(_max(linear - data["lin_mel"]), _FLOAT64),
        "mel_stages/db": check(_max(level - data["db"]), _FLOAT64),
        "mel_stages/norm": check(_max(mel_module.normalise(level) - data["norm"]), _FLOAT64),
        "mel_stages/full_float32": check(_max(full - data["full"].astype(np.float32)), _EXACT),
    }


def mel_silence(folder: Path) -> dict[str, Check]:
    """Digital silence is -4 everywhere."""
    with np.load(folder / "mel_silence.npz", allow_pickle=False) as data:
        mel = mel_module.melspectrogram(data["sig"], mel_module.SAMPLE_RATE_HZ)
        return {"mel_silence": check(_max(mel - data["full"]), _EXACT)}


def mel_speech(folder: Path) -> dict[str, Check]:
    """Front end and windows on recorded speech."""
    with np.load(folder / "mel_speech_a.npz", allow_pickle=False) as recorded:
        data = dict(recorded)
    num_frames = int(data["num_frames"])
    mel = mel_module.melspectrogram(data["wav"], mel_module.SAMPLE_RATE_HZ)
    starts = mel_module.window_starts(np.arange(num_frames))
    windows = mel_module.mel_windows(data["mel"], num_frames)
    return {
        "mel_speech/mel": check(_max(mel - data["mel"]), _EXACT),
        "mel_speech/starts": check(_max(starts - data["starts"]), _EXACT),
        "mel_speech/windows": check(_max(windows - data["indiv_mels"]), _EXACT),
    }


def audio2exp_outputs(folder: Path) -> dict[str, Check]:
    """Encoder, whole network and NeRFFaceSpeech's feedback loop."""
    model, windows = _load(folder)
    data = load_file(folder / "audio2exp_io.safetensors")
    first = data["audio_embedding_first8"]
    with torch.no_grad():
        embedding = model.audio_encoder(windows[: first.shape[0]])
        output = model(windows, data["ref"][0], data["ratio"][0])
    recurrence = predict_expressions(
        model, windows, data["recurrence_ref0"][0], feedback=0.5, scale=1.5, scale_mode="whole"
    )
    return {
        "audio2exp/embedding": check(_relative(embedding, first), _MODULE),
        "audio2exp/expression": check(_relative(output, data["exp_coeff_pred"][0]), _MODULE),
        "audio2exp/recurrence": check(_relative(recurrence, data["recurrence_out"]), _MODULE),
    }


def audio2exp_gradients(folder: Path) -> dict[str, Check]:
    """Loss and gradient norm of every parameter, eval-mode BatchNorm."""
    recorded = json.loads((folder / "audio2exp_grad.json").read_text())
    target = load_file(folder / "audio2exp_grad.safetensors")["target"][0]
    inputs = load_file(folder / "audio2exp_io.safetensors")
    model, windows = _load(folder)
    first, last = recorded["frames"]
    count = last - first
    prediction = model(windows[first:last], inputs["ref"][0, :count], inputs["ratio"][0, :count])
    loss = torch.nn.functional.mse_loss(prediction, target)
    loss.backward()
    norms = {
        name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None
    }
    expected = recorded["grad_norm"]
    worst = max(
        abs(norms.get(name, float("inf")) - value) / max(abs(value), 1e-12)
        for name, value in expected.items()
    )
    return {
        "audio2exp/loss": check(
            abs(loss.item() - recorded["loss"]) / abs(recorded["loss"]), _MODULE
        ),
        "audio2exp/gradient_norms": check(worst, _GRADIENT),
        "audio2exp/parameters": check(len(set(norms) ^ set(expected)), _EXACT),
    }


def _load(folder: Path) -> tuple[Audio2Exp, torch.Tensor]:
    model = load_original("audio2exp", load_file(folder / "audio2exp_weights.safetensors"))
    assert isinstance(model, Audio2Exp)
    with np.load(folder / "mel_speech_a.npz", allow_pickle=False) as data:
        return model.eval(), torch.from_numpy(data["indiv_mels"])


def _max(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
