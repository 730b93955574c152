"""Training samples and held-out runs of Audio2Exp. Legend: K frames of a sample, T of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nfs.audio.augment import Augmentation
from nfs.audio.clip_index import INT16_SCALE, ClipData, ClipReader, ClipRecord, offset_columns
from nfs.audio.mel import (
    FFT_SIZE,
    HOP,
    SAMPLE_RATE_HZ,
    WINDOW_COLUMNS,
    gather_windows,
    melspectrogram,
    window_starts,
)
from nfs.errors import ArtifactError

# A window looks 80 ms back and 120 ms ahead; frames this close to the border stay unused.
GUARD_S = 0.2

SplitKind = Literal["identity", "time_tail"]


@dataclass(frozen=True)
class Span:
    """Consecutive good frames [start, stop) of one clip."""

    record: ClipRecord
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Split:
    """Training and held-out stretches.

    Args:
        kind: `identity`: held-out people are never trained on. `time_tail`: the last part of each
            clip is held out, so the speaker is known; weaker evidence, used when there is one
            identity or no validation split.
        train: Stretches to train on.
        held_out: Stretches to evaluate on.
    """

    kind: SplitKind
    train: list[Span]
    held_out: list[Span]


def split_clips(
    records: Sequence[ClipRecord], *, num_frames: int, holdout_fraction: float
) -> Split:
    """Divide the clips by identity when the `split` column allows, otherwise by time.

    Args:
        records: Usable clips.
        num_frames: Shortest training stretch.
        holdout_fraction: Share of each clip held out in `time_tail`.

    Raises:
        ArtifactError: If nothing is left to train on or to evaluate.
    """
    val = [r for r in records if r.split == "val"] or [r for r in records if r.split == "test"]
    train = [r for r in records if r.split == "train"]
    shared = {r.identity_id for r in train} & {r.identity_id for r in val}
    if train and val and not shared:
        split = Split("identity", _spans(train, 0.0, 1.0), _spans(val, 0.0, 1.0))
    else:
        border = 1.0 - holdout_fraction
        split = Split("time_tail", _spans(records, 0.0, border), _spans(records, border, 1.0))
    usable = Split(split.kind, [s for s in split.train if len(s) >= num_frames], split.held_out)
    if not usable.train or not usable.held_out:
        longest = max((len(s) for s in split.train), default=0)
        raise ArtifactError(
            f"audio training data: longest stretch of consecutive fitted frames is {longest}, "
            f"data.num_frames is {num_frames}; use longer clips or lower data.num_frames"
        )
    return usable


def _spans(records: Sequence[ClipRecord], first: float, last: float) -> list[Span]:
    spans = []
    for record in records:
        begin, end = int(record.frames[0]), int(record.frames[-1]) + 1
        guard = round(GUARD_S * record.fps) if last < 1.0 else 0
        low = begin + round(first * (end - begin))
        high = begin + round(last * (end - begin)) - guard
        spans += [Span(record, start, stop) for start, stop in record.runs(low, high)]
    return spans


class SpeechWindows:
    """Random windows of K consecutive frames (a `MapDataset`).

    Every stretch is covered by items K/2 frames apart; each draw shifts the item's start at random.

    Args:
        spans: Stretches to draw from, each at least `num_frames` long.
        reader: Source of the clips' data.
        num_frames: K.
        reference: Where the reference expression comes from.
        augmentation: Changes of the audio.
        use_blink: Draw a blink ratio from U(0, 1); otherwise 0.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        reader: ClipReader,
        *,
        num_frames: int,
        reference: Literal["random", "first"],
        augmentation: Augmentation,
        use_blink: bool,
    ):
        self._reader, self._num_frames = reader, num_frames
        self._reference, self._augmentation = reference, augmentation
        self._use_blink = use_blink
        stride = max(1, num_frames // 2)
        self._items = [
            (span, first, min(first + stride, span.stop - num_frames + 1))
            for span in spans
            for first in range(span.start, span.stop - num_frames + 1, stride)
        ]
        self._frames: dict[str, NDArray[np.int64]] = {}
        for span in spans:
            own = np.arange(span.start, span.stop)
            before = self._frames.get(span.record.clip_id, own[:0])
            self._frames[span.record.clip_id] = np.concatenate([before, own])

    def __len__(self) -> int:
        return len(self._items)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """Return one sample.

        Returns:
            windows [K, 80, 16], expression [K, 64] (the fit), reference [64], blink [1].
        """
        span, low, high = self._items[index]
        start = int(rng.integers(low, high))
        clip = self._reader.read(span.record)
        windows = self._windows(clip, span.record, np.arange(start, start + self._num_frames), rng)
        frame = self._reference_frame(span.record, start, rng)
        return {
            "windows": self._augmentation.windows(windows, rng),
            "expression": clip.expression[start : start + self._num_frames],
            "reference": clip.expression[frame],
            "blink": np.array([rng.random() if self._use_blink else 0.0], np.float32),
        }

    def _reference_frame(self, record: ClipRecord, start: int, rng: np.random.Generator) -> int:
        if self._reference == "first":
            return int(record.frames[0])
        frames = self._frames[record.clip_id]
        outside = frames[(frames < start) | (frames >= start + self._num_frames)]
        return int(rng.choice(outside if outside.size else frames))

    def _windows(
        self,
        clip: ClipData,
        record: ClipRecord,
        frames: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        if not self._augmentation.changes_wave:
            return frame_windows(clip, record, frames)
        starts = np.clip(
            window_starts(frames, record.fps) + offset_columns(record),
            -WINDOW_COLUMNS,
            clip.mel.shape[1],
        )
        # One more column on each side: pre-emphasis needs the sample before the first one.
        first = max(0, int(starts[0]) - 1)
        last = min(clip.mel.shape[1], int(starts[-1]) + WINDOW_COLUMNS + 1)
        wave = _cut(clip.wave, first * HOP - FFT_SIZE, last * HOP + FFT_SIZE)
        mel = melspectrogram(self._augmentation.wave(wave, rng), SAMPLE_RATE_HZ)
        skipped = FFT_SIZE // HOP
        return gather_windows(mel[:, skipped : skipped + last - first], starts - first)


def frame_windows(
    clip: ClipData, record: ClipRecord, frames: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mel windows [K, 80, 16] of some frames of a clip, from its stored mel."""
    return gather_windows(clip.mel, window_starts(frames, record.fps) + offset_columns(record))


def _cut(wave: NDArray[np.int16], first: int, last: int) -> NDArray[np.float64]:
    inside = wave[max(0, first) : max(0, last)].astype(np.float64) / INT16_SCALE
    padded = np.pad(inside, (max(0, -first), 0))
    return np.pad(padded, (0, max(0, last - first - padded.size)))


@dataclass(frozen=True)
class HeldOutRun:
    """One held-out stretch, whole.

    Args:
        clip_id: Its clip.
        windows: [T, 80, 16].
        expression: The fit [T, 64].
        reference: Expression of the clip's first good frame [64].
    """

    clip_id: str
    windows: NDArray[np.float32]
    expression: NDArray[np.float32]
    reference: NDArray[np.float32]


def held_out_runs(spans: Sequence[Span], reader: ClipReader, max_frames: int) -> list[HeldOutRun]:
    """Return the held-out stretches, at most `max_frames` frames in all, each at least 2 long."""
    runs, left = [], max_frames
    for span in spans:
        stop = min(span.stop, span.start + left)
        if stop - span.start < 2:
            continue
        clip, frames = reader.read(span.record), np.arange(span.start, stop)
        runs.append(
            HeldOutRun(
                clip_id=span.record.clip_id,
                windows=frame_windows(clip, span.record, frames),
                expression=clip.expression[frames],
                reference=clip.expression[int(span.record.frames[0])],
            )
        )
        left -= stop - span.start
    return runs
