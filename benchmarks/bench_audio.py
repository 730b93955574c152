"""Audio2Exp with feedback, and the mel front end.

The original asks the whole network for one frame after the other, because each prediction is part
of the next reference. Ours encodes all windows in batches and keeps only a 64x64 recurrence (the
network is linear in the reference). Same weights; the expressions are compared before timing. The
mel baseline is the usual form: librosa's STFT of the padded wave and a window cut per frame.
"""

from __future__ import annotations

import librosa
import numpy as np
import torch
from _harness import Report, arguments, interleave
from numpy.typing import NDArray
from torch import Tensor

from nfs.audio.audio2exp import Audio2Exp, predict_expressions
from nfs.audio.mel import mel_windows, melspectrogram

RATE_HZ, FPS, SECONDS = 16000, 25, 8
FEEDBACK = 0.5


def main() -> None:
    options = arguments(__doc__, ("--repeats", {"type": int, "default": 5}))
    torch.manual_seed(0)
    frames = FPS * SECONDS
    report = Report("audio", {"seconds": SECONDS, "frames": frames, "feedback": FEEDBACK})
    wave = voice_like(RATE_HZ * SECONDS)
    windows = torch.from_numpy(mel_windows(melspectrogram(wave, RATE_HZ), frames))
    model, reference = network(windows), 0.3 * torch.randn(64)
    report.check(
        "expressions, relative",
        largest(ours(model, windows, reference), one_by_one(model, windows, reference)),
        1e-4,
    )
    report.check(
        "mel windows, absolute", float(np.abs(our_mel(wave) - plain_mel(wave)).max()), 5e-3
    )
    audio2exp = {
        "Audio2Exp, frame by frame": lambda: one_by_one(model, windows, reference),
        "Audio2Exp, ten frames a call": lambda: ten_by_ten(model, windows, reference),
        "Audio2Exp, nfs": lambda: ours(model, windows, reference),
    }
    mel = {"mel, librosa": lambda: plain_mel(wave), "mel, nfs": lambda: our_mel(wave)}
    report.timings |= interleave(audio2exp, repeats=options.repeats)
    report.timings |= interleave(mel, repeats=4 * options.repeats)
    alone, ten, batched = audio2exp
    report.ratio("Audio2Exp with feedback", alone, batched, target=3.0)
    report.ratio("over ten a call (no feedback inside)", ten, batched)
    report.ratio("mel and windows", *mel)
    report.write(options.out)


def voice_like(count: int) -> NDArray[np.float32]:
    """Return harmonics that come and go four times a second, with noise."""
    rng = np.random.default_rng(0)
    time_s = np.arange(count) / RATE_HZ
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (1 + np.sin(8 * np.pi * time_s))
    return (0.1 * voice + 0.005 * rng.standard_normal(count)).astype(np.float32)


@torch.no_grad()
def network(windows: Tensor) -> Audio2Exp:
    """Return a network with plausible statistics and a stable recurrence."""
    model = Audio2Exp()
    model.train()
    for _ in range(3):
        model(windows, torch.zeros(len(windows), 64), torch.zeros(len(windows), 1))
    _, weight, _ = model.split_mapping()
    weight.mul_(0.5)
    return model.eval()


def ours(model: Audio2Exp, windows: Tensor, reference: Tensor) -> Tensor:
    return predict_expressions(model, windows, reference, feedback=FEEDBACK, scale=1.0)


@torch.no_grad()
def one_by_one(model: Audio2Exp, windows: Tensor, reference: Tensor) -> Tensor:
    root, current, found = reference[None], reference[None], []
    for window in windows:
        prediction = model(window[None], current, torch.zeros(1, 1))
        found.append(prediction)
        current = (1 - FEEDBACK) * root + FEEDBACK * prediction
    return torch.cat(found)


@torch.no_grad()
def ten_by_ten(model: Audio2Exp, windows: Tensor, reference: Tensor) -> Tensor:
    """SadTalker's order: ten frames a call, one reference for all."""
    parts = windows.split(10)
    return torch.cat(
        [model(p, reference.expand(len(p), -1), torch.zeros(len(p), 1)) for p in parts]
    )


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


def our_mel(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    return mel_windows(melspectrogram(wave, RATE_HZ), FPS * SECONDS)


def plain_mel(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    emphasised = np.append(wave[:1], wave[1:] - 0.97 * wave[:-1]).astype(np.float64)
    spectrum = librosa.stft(
        emphasised, n_fft=800, hop_length=200, win_length=800, pad_mode="constant"
    )
    basis = librosa.filters.mel(sr=RATE_HZ, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    level = 20 * np.log10(np.maximum(1e-5, basis @ np.abs(spectrum))) - 20
    mel = np.clip(8 * ((level + 100) / 100) - 4, -4, 4)
    columns = mel.shape[1]
    found = []
    for frame in range(FPS * SECONDS):
        start = int(80 * (frame - 2) / FPS)
        chosen = [min(max(start + i, 0), columns - 1) for i in range(16)]
        found.append(mel[:, chosen])
    return np.stack(found).astype(np.float32)


if __name__ == "__main__":
    main()
