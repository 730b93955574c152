"""One video or photo -> rows of the tables `frames`, `audio` and `clips` (architecture.md).

Two passes over the file keep memory bounded: the first follows the faces through all frames and
decides which of them become clips, the second cuts, measures and encodes the aligned faces once
the smoothed crop of each whole clip is known.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nfs.artifacts.zip_archive import ZipArchive
from nfs.config.preprocess import ClipConfig
from nfs.errors import ClipError, InputError
from nfs.face.align import face_square, middle_square, smooth_square
from nfs.face.batch_tracking import BatchTracker
from nfs.face.clip_tables import (
    ClipFrames,
    audio_table,
    clip_row,
    clips_table,
    frame_statuses,
    frame_summary,
    frames_table,
)
from nfs.face.cuts import CutDetector
from nfs.face.detectors import build_detector
from nfs.face.landmarks import build_landmarks
from nfs.face.planning import (
    SAMPLE_RATE_HZ,
    ClipPlan,
    Samples,
    plan_clips,
    sound_of,
    track_settings,
)
from nfs.face.protocols import Array, FrameLandmarks
from nfs.face.quality import head_pose_deg, measure_picture
from nfs.face.remote import copy_object, is_remote, shown
from nfs.face.selection import FaceSpan, face_heights_px
from nfs.face.speech import match_speech
from nfs.face.tracking import FaceTracker, FollowedFaces
from nfs.media.audio import read_audio
from nfs.media.images import apply_affine, encode_jpeg, warp_affine
from nfs.media.video import TimedFrame, probe, read_frames

Item = Mapping[str, Any]
Mel = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


@dataclass(frozen=True)
class _Sound:
    """A clip's sound [N], and what is known about its place in time."""

    samples: Samples
    facts: dict[str, Any]


class ClipWork:
    """The unit work of `jobs.preprocess`; loads the models once, keeps nothing between files.

    Items carry `key`, `path`, `clip_id`, `source_uri`, `source_sha256`, `identity_id`, `split` and,
    for a part of a long video, `start_s` and `end_s`. One file can give several clips: their ids
    are `clip_id` with a suffix for scene and face.

    Args:
        config: Tree of `ClipConfig`.
        melspectrogram: (samples [N], sample_rate_hz) -> mel [80, T].
    """

    primary = "clips"

    def __init__(self, config: Mapping[str, Any], melspectrogram: Mel):
        self.config = ClipConfig.from_tree(config, source="preprocess.clip")
        device = _device(self.config.device)
        self.detector = build_detector(self.config.detector, device, self.config.smallest_face)
        self.points = build_landmarks(self.config.landmarks, device)
        self.melspectrogram = melspectrogram
        self._archive: ZipArchive | None = None

    def __call__(self, item: Item) -> dict[str, pa.Table]:
        """Return the tables of one file: its clips, and a row for each scene that gives none.

        Raises:
            ClipError: If it gives no clip at all: `decode_error`, `no_video`, `too_short`,
                `no_face`, `multiple_faces`, `no_audio`, `no_speaker`, `low_quality`.
        """
        path = item["path"]
        remote = is_remote(path)
        try:
            if not remote:
                with Path(path).open("rb"):
                    pass
        except OSError as error:
            raise ClipError("decode_error", f"{path}: cannot be read: {error.strerror}") from None
        if remote or item.get("member"):
            return self._from_copy(item)
        return self._tables(item)

    def failure(self, item: Item, status: str, error: str) -> dict[str, pa.Table]:
        """Return the clips row that says why a file was given up."""
        return {"clips": clips_table([clip_row(item, None, {"status": status, "error": error})])}

    def find(self, item: Item) -> FollowedFaces:
        """First pass: cut into scenes and follow the faces."""
        settings, batch = track_settings(self.config), self.config.batch_frames
        if batch > 0:
            points = cast(FrameLandmarks, self.points)
            batches = BatchTracker(self.detector, points, settings, batch)
            self._follow(item, batches)
            batches.finish()
            return batches
        tracker = FaceTracker(self.detector, self.points, settings)
        self._follow(item, tracker)
        return tracker

    def _follow(self, item: Item, tracker: FaceTracker | BatchTracker) -> None:
        cuts = CutDetector()
        for _, image in self._read(item):
            cut = self.config.split_scenes and cuts.is_cut(image)
            tracker.step(image, new_scene=cut)

    def _from_copy(self, item: Item) -> dict[str, pa.Table]:
        """Work on a temporary copy of an object of a store or of a photo in a zip."""
        name = PurePosixPath(item.get("member") or shown(item["path"]))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"copy{name.suffix}"
            digest = self._fetch(item, file)
            try:
                return self._tables({**item, "path": str(file), "source_sha256": digest})
            except ClipError as error:
                text = str(error).replace(str(file), item["source_uri"])
                raise ClipError(error.status, text) from None

    def _fetch(self, item: Item, target: Path) -> str:
        """Copy the item's content to a file and return its sha256."""
        member = item.get("member")
        if not member:
            return copy_object(item["path"], target)
        if self._archive is None or self._archive.uri != item["path"]:
            self._archive = ZipArchive(item["path"])
        try:
            data = self._archive.read(member)
        except InputError as error:
            raise ClipError("decode_error", str(error)) from None
        target.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def _tables(self, item: Item) -> dict[str, pa.Table]:
        info = probe(item["path"], max_pixels=self.config.max_frame_pixels)
        tracker = self.find(item)
        sound = self._sound(item, tracker.num_frames) if info.has_audio else None
        plans = plan_clips(tracker, sound, self.config, item["path"])
        frames = self._cut_out(item, [plan.span for plan in plans if plan.span is not None])
        rows: list[dict[str, Any]] = []
        tables: dict[str, list[pa.Table]] = {"frames": [], "audio": []}
        refused: list[ClipError] = []
        for plan in plans:
            named = self._named(item, plan)
            try:
                if plan.span is None:
                    assert plan.refused is not None
                    raise plan.refused
                row, parts = self._clip(named, plan.span, frames.pop(0), sound)
                for name, table in parts.items():
                    tables[name].append(table)
            except ClipError as error:
                refused.append(error)
                row = {"status": error.status, "error": str(error)}
            row["num_faces"] = plan.scene.num_faces
            rows.append(clip_row(named, info, row))
        if len(refused) == len(rows):
            raise _nothing(item, refused)
        joined = {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}
        return {**joined, "clips": clips_table(rows)}

    def _named(self, item: Item, plan: ClipPlan) -> dict[str, Any]:
        """Return the item of one clip: its id, its identity and its place in the source."""
        config, clip_id = self.config, f"{item['clip_id']}{plan.suffix}"
        start = plan.scene.start if plan.span is None else plan.span.start
        stop = plan.scene.stop if plan.span is None else plan.span.stop
        origin = float(item.get("start_s") or 0.0)
        identity = clip_id if config.faces == "all" else item["identity_id"]
        place = {"start_s": origin + start / config.fps, "end_s": origin + stop / config.fps}
        return {**item, "clip_id": clip_id, "identity_id": identity, **place}

    def _clip(
        self, item: Item, span: FaceSpan, frames: ClipFrames, sound: Samples | None
    ) -> tuple[dict[str, Any], dict[str, pa.Table]]:
        """Return row and tables of a clip; raise ClipError `low_quality`."""
        config, count = self.config, len(frames.pictures)
        statuses = frame_statuses(frames, config.quality)
        _check_quality(item, statuses, config)
        table = frames_table(item["clip_id"], frames, statuses, config.fps, config.crop_size_px)
        row = {
            "fps": config.fps,
            "num_frames": count,
            "duration_s": count / config.fps,
            "has_audio": sound is not None,
            **frame_summary(frames, statuses),
        }
        if sound is None:
            return row, {"frames": table}
        placed = self._placed(span, sound)
        mel = self.melspectrogram(placed.samples, SAMPLE_RATE_HZ)
        audio = audio_table(item["clip_id"], placed.samples, mel, SAMPLE_RATE_HZ)
        return {**row, **placed.facts}, {"frames": table, "audio": audio}

    def _placed(self, span: FaceSpan, sound: Samples) -> _Sound:
        """Return a clip's sound and its offset to the lips, corrected if that is wanted."""
        samples, fps = sound_of(span, sound, self.config.fps), self.config.fps
        match = match_speech(span.keypoints.landmarks, samples, fps, SAMPLE_RATE_HZ)
        if match is None:
            return _Sound(samples, {"av_confidence": 0.0})
        facts: dict[str, Any] = {"av_confidence": match.confidence}
        if not match.sure:
            return _Sound(samples, facts)
        # sound that is late has to begin before the picture
        if not self.config.correct_av_offset:
            return _Sound(samples, {**facts, "av_offset_s": -match.delay_s})
        first = round((span.start / fps + match.delay_s) * SAMPLE_RATE_HZ)
        moved = _window(sound, first, len(samples))
        return _Sound(moved, {**facts, "av_offset_s": 0.0, "av_corrected_s": -match.delay_s})

    def _cut_out(self, item: Item, spans: Sequence[FaceSpan]) -> list[ClipFrames]:
        """Second pass: cut, warp, measure and encode the frames of all clips."""
        config = self.config
        results = [self._empty(item, span) for span in spans]
        last = max((span.stop for span in spans), default=0)
        for index, (_, image) in enumerate(self._read(item)):
            if index >= last:
                break
            for span, result in zip(spans, results, strict=True):
                if not span.start <= index < span.stop:
                    continue
                row = index - span.start
                matrix = result.matrices[row]
                crop = warp_affine(image, matrix, config.crop_size_px)
                result.pictures.append(encode_jpeg(crop, config.jpeg_quality))
                seen = bool(span.keypoints.valid[row])
                points = apply_affine(matrix, span.keypoints.landmarks[row])
                result.quality.append(measure_picture(crop, points) if seen else None)
        return results

    def _empty(self, item: Item, span: FaceSpan) -> ClipFrames:
        points = span.keypoints.landmarks
        matrices = self._crops(item, span)
        return ClipFrames(
            span.keypoints, matrices, face_heights_px(points), head_pose_deg(points), [], []
        )

    def _crops(self, item: Item, span: FaceSpan) -> Array:
        """Return the map [T, 2, 3] from each frame to its crop."""
        config, found = self.config, span.keypoints
        if config.align == "none":
            _, first = next(iter(self._read(item)))
            middle = middle_square(first.shape[1], first.shape[0], config.crop_size_px)
            return np.repeat(middle[None], len(found.valid), axis=0)
        wanted = face_square(found.landmarks, config.align, config.crop_size_px)
        sigma_frames = config.crop_smoothing_s * config.fps
        square = smooth_square(wanted, found.valid, sigma_frames)
        return square.crop_from_source(config.crop_size_px)

    def _sound(self, item: Item, num_frames: int) -> Samples:
        """Return the sound of exactly these frames; sample 0 belongs to frame 0."""
        start_s = float(item.get("start_s") or 0.0)
        duration_s = num_frames / self.config.fps
        sound = read_audio(
            item["path"], SAMPLE_RATE_HZ, start_s=start_s, end_s=start_s + duration_s
        )
        return sound.cut(start_s, round(duration_s * SAMPLE_RATE_HZ))

    def _read(self, item: Item) -> Iterator[TimedFrame]:
        start_s, end_s = float(item.get("start_s") or 0.0), item.get("end_s")
        return read_frames(
            item["path"],
            fps=self.config.fps,
            start_s=start_s,
            end_s=end_s,
            max_pixels=self.config.max_frame_pixels,
        )


def _check_quality(item: Item, statuses: Sequence[str], config: ClipConfig) -> None:
    seen = [status for status in statuses if status != "no_face"]
    good = sum(status == "ok" for status in seen)
    if good > 0 and good >= config.min_face_fraction * len(seen):
        return
    reasons = ", ".join(f"{seen.count(s)} {s}" for s in sorted(set(seen) - {"ok"}))
    raise ClipError(
        "low_quality",
        f"{item['path']}: {good} of {len(seen)} frames with the face pass clip.quality "
        f"({reasons}), needs clip.min_face_fraction={config.min_face_fraction:g} of them",
    )


def _nothing(item: Item, refused: Sequence[ClipError]) -> ClipError:
    first = refused[0]
    if len(refused) == 1:
        return first
    return ClipError(
        first.status, f"{item['path']}: none of {len(refused)} clips is usable; first: {first}"
    )


def _window(samples: Samples, first: int, count: int) -> Samples:
    """Return `count` samples from `first` on; silence where there are none."""
    result = np.zeros(count, np.float32)
    low, high = max(first, 0), min(first + count, len(samples))
    if high > low:
        result[low - first : high - first] = samples[low:high]
    return result


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
