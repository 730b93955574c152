"""Expression sequences that drive a portrait: from speech, or from a fitted clip.

Legend: T video frames, E = 64 expression coefficients.
Sources: spec/audio.md 2.5 (feedback loop) and A13 (scaling), spec/inversion_and_talker.md 4.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import savgol_filter
from torch import Tensor

from nfs.artifacts.tables import read_table
from nfs.audio.audio2exp import Audio2Exp, predict_expressions
from nfs.audio.mel import SAMPLE_RATE_HZ, SILENCE, mel_windows, melspectrogram
from nfs.errors import InputError

BLINK_NAMES = ("eyeBlinkLeft", "eyeBlinkRight")
MAX_GAP_FRAMES = 5
SETTLE_FRAMES = 16

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SpeechDrive:
    """How speech becomes expression."""

    scale: float = 1.0
    """Exaggeration of the motion around its neutral, 1 = none."""
    feedback: float = 0.5
    """Share of the last prediction in the next reference, in [0, 1]."""
    neutral: Literal["pauses", "silence", "reference"] = "pauses"
    """Which prediction counts as no motion and shows the portrait as it is: the mean over the
    quietest tenth of the speech, the answer to digital silence, or one equal to the portrait's own
    expression (the original; a bias of the network then distorts every frame)."""
    batch_size: int = 128
    """Mel windows encoded at once."""


def from_speech(
    model: Audio2Exp,
    wave: Array,
    *,
    num_frames: int,
    fps: float,
    reference: Tensor,
    drive: SpeechDrive,
) -> Tensor:
    """Return expressions `[T, E]` for a wave.

    Args:
        model: In eval mode.
        wave: Mono samples at 16 kHz in [-1, 1].
        num_frames: T.
        fps: Frames per second.
        reference: Expression `[E]` of the portrait as fitted.
        drive: Scale, feedback and neutral.
    """
    mel = melspectrogram(wave, SAMPLE_RATE_HZ)
    windows = torch.from_numpy(mel_windows(mel, num_frames, fps))
    moved = _predict(model, windows, reference, drive)
    if drive.neutral == "reference":
        return moved
    if drive.neutral == "silence":
        quiet = torch.full((SETTLE_FRAMES, *windows.shape[1:]), SILENCE)
        rest = _predict(model, quiet, reference, drive)[-1]
    else:
        energy = speech_energy(wave, SAMPLE_RATE_HZ, num_frames=num_frames, fps=fps)
        rest = moved[np.argsort(energy, kind="stable")[: max(1, num_frames // 10)]].mean(0)
    return reference.to(moved) + (moved - rest)


def _predict(model: Audio2Exp, windows: Tensor, reference: Tensor, drive: SpeechDrive) -> Tensor:
    return predict_expressions(
        model,
        windows,
        reference,
        feedback=drive.feedback,
        scale=drive.scale,
        scale_mode="motion",
        batch_size=drive.batch_size,
    ).cpu()


def from_fits(
    uri: str,
    clip_id: str | None,
    *,
    fps: float,
    source_fps: float,
    reference: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """Return expressions `[T, E]` of a fitted clip, moved from its neutral to the portrait's.

    The clip's neutral is the mean of the tenth of its frames with the least expression; only
    motion around it is transferred.

    Args:
        uri: `fits` artifact.
        clip_id: Clip to follow; None takes the only one there is.
        fps: Frame rate of the result.
        source_fps: Frame rate of the clip.
        reference: Expression `[E]` of the portrait.
        scale: Exaggeration of the motion.

    Raises:
        InputError: If the clip is absent or ambiguous, or misses more than five frames in a row.
    """
    columns = ["clip_id", "frame_index", "expression", "status"]
    table = read_table(uri, "fits", columns)
    ids = sorted(set(table["clip_id"].to_pylist()))
    if clip_id is None and len(ids) == 1:
        clip_id = ids[0]
    if clip_id not in ids:
        wanted = f"clip {clip_id!r} is not among" if clip_id else "expression.clip_id: choose of"
        raise InputError(f"{uri}: {wanted} its {len(ids)} clips: {', '.join(ids[:8])}")
    rows = [row for row in table.to_pylist() if row["clip_id"] == clip_id]
    good = {row["frame_index"]: row["expression"] for row in rows if row["status"] == "ok"}
    count = max(row["frame_index"] for row in rows) + 1
    track = _fill_gaps(good, count, where=f"{uri}: clip {clip_id}")
    duration = count / source_fps
    times = np.arange(max(1, round(duration * fps))) / fps * source_fps
    track = np.stack([np.interp(times, np.arange(count), column) for column in track.T], axis=1)
    strength = np.linalg.norm(track, axis=1)
    calm = track[np.argsort(strength, kind="stable")[: max(1, len(track) // 10)]].mean(0)
    return reference.float() + scale * torch.from_numpy(track - calm).float()


def _fill_gaps(good: dict[int, list[float]], count: int, *, where: str) -> NDArray[np.float64]:
    """Return `[count, E]` with gaps of up to five frames interpolated."""
    have = np.array(sorted(good), dtype=int)
    edges = np.concatenate(([-1], have, [count]))
    gaps = np.diff(edges) - 1
    if not len(have) or gaps.max() > MAX_GAP_FRAMES:
        worst = int(gaps.argmax())
        raise InputError(
            f"{where}: frames {edges[worst] + 1}..{edges[worst + 1] - 1} have no fit "
            f"(at most {MAX_GAP_FRAMES} in a row can be interpolated); use another clip"
        )
    values = np.array([good[i] for i in have], dtype=float)
    return np.stack([np.interp(np.arange(count), have, column) for column in values.T], axis=1)


def smooth(expression: Tensor, window: int, order: int = 2) -> Tensor:
    """Filter `[T, E]` along time (Savitzky-Golay); short clips use the widest window that fits.

    Args:
        expression: Track.
        window: Frames, odd; 0 or 1 does nothing.
        order: Degree of the local polynomial.
    """
    widest = min(window, len(expression) - (1 - len(expression) % 2))
    if widest <= order:
        return expression
    values = savgol_filter(expression.double().numpy(), widest, order, axis=0, mode="interp")
    return torch.from_numpy(np.ascontiguousarray(values)).to(expression.dtype)


def clamp_bounds(expression: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Clamp `[T, E]` to the face model's bounds `[E]`: [0, 1] on ARKit axes, none elsewhere."""
    return torch.minimum(torch.maximum(expression, lower), upper)


def add_blinks(expression: Tensor, names: Sequence[str], *, fps: float, seed: int) -> Tensor:
    """Close both eyes for a moment every few seconds; deterministic per seed.

    Args:
        expression: `[T, E]`.
        names: Coefficient names; the model needs eyeBlinkLeft and eyeBlinkRight.
        fps: Frames per second.
        seed: Seed of the gaps.

    Raises:
        InputError: If the face model has no blink axes.
    """
    missing = [name for name in BLINK_NAMES if name not in names]
    if missing:
        raise InputError(f"blink=random: the face model lacks {', '.join(missing)}; use blink=none")
    ratio = blink_ratio(len(expression), fps=fps, seed=seed)
    result = expression.clone()
    for name in BLINK_NAMES:
        column = list(names).index(name)
        result[:, column] = torch.maximum(result[:, column], torch.from_numpy(ratio))
    return result


def blink_ratio(num_frames: int, *, fps: float, seed: int) -> Array:
    """Return eyelid closure `[T]` in [0, 1]: blinks of 0.2 s, 2 to 6 s apart."""
    rng = np.random.default_rng([seed, 0xB11])
    times = np.arange(num_frames) / fps
    ratio = np.zeros(num_frames)
    centre = rng.uniform(1.0, 3.0)
    while num_frames and centre < times[-1]:
        ratio = np.maximum(ratio, np.clip(1.4 - np.abs(times - centre) / 0.1, 0, 1))
        centre += rng.uniform(2.0, 6.0)
    return ratio.astype(np.float32)


def speech_energy(wave: Array, sample_rate_hz: int, *, num_frames: int, fps: float) -> Array:
    """Return the root mean square `[T]` of the wave around each frame (80 ms)."""
    centres = (np.arange(num_frames) + 0.5) / fps * sample_rate_hz
    half = int(0.04 * sample_rate_hz)
    total = np.concatenate(([0.0], np.cumsum(wave.astype(np.float64) ** 2)))
    low = np.clip(centres - half, 0, len(wave)).astype(int)
    high = np.clip(centres + half, 0, len(wave)).astype(int)
    mean = (total[high] - total[low]) / np.maximum(high - low, 1)
    return np.sqrt(np.maximum(mean, 0)).astype(np.float32)


def correlation(a: Array, b: Array) -> float:
    """Return Pearson's correlation of two series; 0 when one of them is constant."""
    x, y = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / norm) if norm > 1e-12 else 0.0
