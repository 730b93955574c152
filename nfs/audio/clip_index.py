"""Which clips and frames can be used for audio training, and their data.

Joins the `clips` and `fits` artifacts per clip. The index holds a few numbers per clip; audio and
coefficients are read on demand (`ClipReader`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from nfs.artifacts.store import Store
from nfs.artifacts.tables import iter_files, read_clip
from nfs.audio.mel import MEL_RATE_HZ, NUM_MELS, SAMPLE_RATE_HZ
from nfs.errors import ArtifactError

INT16_SCALE = 32767.0


@dataclass(frozen=True)
class ClipRecord:
    """One usable clip.

    Args:
        clip_id: Its name in both artifacts.
        fps: Video frames per second.
        split: Value of the `split` column.
        identity_id: Who is seen.
        offset_s: Start of the audio minus start of the video, seconds.
        audio_path: File of its `audio` row.
        fits_path: File of its `fits` rows.
        frames: Frame numbers with a good fit, ascending [F].
    """

    clip_id: str
    fps: float
    split: str
    identity_id: str
    offset_s: float
    audio_path: str
    fits_path: str
    frames: NDArray[np.int64]

    def runs(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return [start, stop) of the stretches of consecutive good frames within [first, stop)."""
        inside = self.frames[(self.frames >= first) & (self.frames < stop)]
        if inside.size == 0:
            return []
        pieces = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
        return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


@dataclass(frozen=True)
class ClipData:
    """Audio and coefficients of one clip.

    Args:
        wave: Samples [L], int16, 16 kHz.
        mel: [80, T80].
        expression: [num_frames, 64]; rows of frames without a fit are NaN.
    """

    wave: NDArray[np.int16]
    mel: NDArray[np.float32]
    expression: NDArray[np.float32]


def index_clips(
    clips_uri: str, fits_uri: str, *, min_frames: int, max_offset_s: float
) -> tuple[list[ClipRecord], dict[str, int]]:
    """Return the usable clips in order of clip id, and how many were left out for which reason.

    Raises:
        ArtifactError: If none is usable.
    """
    rows, reasons = _clip_rows(clips_uri)
    audio_paths = _paths(clips_uri, "audio")
    records, seen = [], set()
    for path, table in iter_files(fits_uri, "fits", ["clip_id", "frame_index", "status"]):
        for clip_id in dict.fromkeys(table["clip_id"].to_pylist()):
            row = rows.get(clip_id)
            if row is None:
                continue
            seen.add(clip_id)
            good = pc.and_(pc.equal(table["clip_id"], clip_id), pc.equal(table["status"], "ok"))
            frames = np.sort(table.filter(good)["frame_index"].to_numpy()).astype(np.int64)
            reason = _unusable(row, frames, min_frames, max_offset_s, clip_id in audio_paths)
            if reason:
                reasons[reason] += 1
                continue
            records.append(
                ClipRecord(
                    clip_id=clip_id,
                    fps=float(row["fps"]),
                    split=row["split"] or "",
                    identity_id=row["identity_id"] or "",
                    offset_s=float(row["av_offset_s"] or 0.0),
                    audio_path=audio_paths[clip_id],
                    fits_path=path,
                    frames=frames,
                )
            )
    reasons["no_fits"] = len(rows.keys() - seen)
    left_out = {reason: count for reason, count in reasons.items() if count > 0}
    if not records:
        raise ArtifactError(
            f"{clips_uri} with {fits_uri}: no clip can be used for audio training "
            f"(left out: {left_out or 'there are no clips'}); it takes audio and {min_frames} "
            "consecutive fitted frames"
        )
    return sorted(records, key=lambda r: r.clip_id), left_out


def _clip_rows(clips_uri: str) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    columns = ["clip_id", "fps", "split", "identity_id", "av_offset_s", "has_audio", "status"]
    rows, reasons = {}, Counter[str]()
    for _, table in iter_files(clips_uri, "clips", columns):
        for row in table.to_pylist():
            if row["status"] == "ok":
                rows[row["clip_id"]] = row
            else:
                reasons[f"status_{row['status']}"] += 1
    return rows, reasons


def _unusable(
    row: dict[str, Any],
    frames: NDArray[np.int64],
    min_frames: int,
    max_offset_s: float,
    has_audio_row: bool,
) -> str:
    if not row["has_audio"] or not has_audio_row:
        return "no_audio"
    if abs(float(row["av_offset_s"] or 0.0)) > max_offset_s:
        return "av_offset"
    if frames.size < min_frames:
        return "too_few_frames"
    return ""


def _paths(uri: str, table_name: str) -> dict[str, str]:
    return {
        clip_id: path
        for path, table in iter_files(uri, table_name, ["clip_id"])
        for clip_id in table["clip_id"].to_pylist()
    }


class ClipReader:
    """Reads clips and keeps the most recently used ones.

    Args:
        clips_uri: Artifact with `audio`.
        fits_uri: Artifact with `fits`.
        cache_clips: Clips kept in memory.
    """

    def __init__(self, clips_uri: str, fits_uri: str, cache_clips: int):
        self._clips, self._fits = Store(clips_uri), Store(fits_uri)
        self._size = cache_clips
        self._cache: OrderedDict[str, ClipData] = OrderedDict()

    def read(self, record: ClipRecord) -> ClipData:
        """Return the clip's data.

        Raises:
            ArtifactError: If the stored audio is not 16 kHz or damaged.
        """
        data = self._cache.pop(record.clip_id, None) or self._load(record)
        self._cache[record.clip_id] = data
        if len(self._cache) > self._size:
            self._cache.popitem(last=False)
        return data

    def _load(self, record: ClipRecord) -> ClipData:
        columns = ["sample_rate_hz", "samples", "mel"]
        table = read_clip(self._clips, record.audio_path, record.clip_id, columns)
        row = table.to_pylist()[0]
        if row["sample_rate_hz"] != SAMPLE_RATE_HZ:
            raise ArtifactError(
                f"{self._clips.uri}: {record.clip_id} has {row['sample_rate_hz']} Hz audio; "
                f"preprocess must store {SAMPLE_RATE_HZ} Hz"
            )
        mel = np.asarray(row["mel"], np.float32).reshape(-1, NUM_MELS).T
        wave = np.frombuffer(row["samples"], dtype=np.int16)
        return ClipData(wave=wave, mel=np.ascontiguousarray(mel), expression=self._fit(record))

    def _fit(self, record: ClipRecord) -> NDArray[np.float32]:
        columns = ["frame_index", "expression", "status"]
        table = read_clip(self._fits, record.fits_path, record.clip_id, columns)
        table = table.filter(pc.equal(table["status"], "ok"))
        values = np.stack(table["expression"].to_numpy(zero_copy_only=False)).astype(np.float32)
        expression = np.full((int(record.frames[-1]) + 1, values.shape[1]), np.nan, np.float32)
        expression[table["frame_index"].to_numpy()] = values
        return expression


def offset_columns(record: ClipRecord) -> int:
    """Return how many mel columns to add so that column and frame show the same moment."""
    return -round(record.offset_s * MEL_RATE_HZ)
