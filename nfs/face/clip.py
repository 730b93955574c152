"""One video or photo -> rows of the tables `frames`, `audio` and `clips` (architecture.md).

Two passes over the file keep memory bounded: the first finds the landmarks of every frame, the
second cuts and encodes the aligned faces once the smoothed crop of the whole clip is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nfs.artifacts.schemas import AUDIO, CLIPS, FRAMES
from nfs.artifacts.zip_archive import ZipArchive
from nfs.config.preprocess import ClipConfig
from nfs.errors import ClipError, InputError
from nfs.face.align import ffhq_square, middle_square, smooth_square
from nfs.face.detectors import build_detector
from nfs.face.keypoints import Keypoints, extract_keypoints
from nfs.face.landmarks import build_landmarks
from nfs.face.protocols import Array
from nfs.face.tracking import FaceTracker, TrackSettings
from nfs.media.audio import read_audio
from nfs.media.images import apply_affine, encode_jpeg, warp_affine
from nfs.media.video import TimedFrame, VideoInfo, probe, read_frames

SAMPLE_RATE_HZ = 16000

Item = Mapping[str, Any]
Mel = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


class ClipWork:
    """The unit work of `jobs.preprocess`; loads the models once, keeps nothing between clips.

    Items carry `key`, `path`, `clip_id`, `source_uri`, `source_sha256`, `identity_id`, `split` and,
    for a part of a long video, `start_s` and `end_s`.

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
        """Return the tables of one clip.

        Raises:
            ClipError: `decode_error`, `no_video`, `too_short`, `no_face`, `multiple_faces`.
        """
        path = item["path"]
        if not Path(path).is_file():
            raise ClipError("decode_error", f"{path}: the file has gone since the job started")
        if item.get("member"):
            return self._photo_of_zip(item)
        return self._tables(item)

    def _photo_of_zip(self, item: Item) -> dict[str, pa.Table]:
        if self._archive is None or self._archive.uri != item["path"]:
            self._archive = ZipArchive(item["path"])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"photo{Path(item['member']).suffix}"
            try:
                file.write_bytes(self._archive.read(item["member"]))
                return self._tables({**item, "path": str(file)})
            except InputError as error:
                raise ClipError("decode_error", str(error)) from None
            except ClipError as error:
                text = str(error).replace(str(file), item["source_uri"])
                raise ClipError(error.status, text) from None

    def _tables(self, item: Item) -> dict[str, pa.Table]:
        info = probe(item["path"])
        keypoints = self._find(item)
        tables = {"frames": self._frames(item, keypoints)}
        count = len(keypoints.valid)
        has_audio = info.has_audio
        if has_audio:
            tables["audio"] = self._audio(item, count)
        row = {
            "fps": self.config.fps,
            "num_frames": count,
            "duration_s": 0.0 if info.is_photo else count / self.config.fps,
            "has_audio": has_audio,
            "status": "ok",
            "error": "",
        }
        tables["clips"] = _clip_row(item, info, row)
        return tables

    def failure(self, item: Item, status: str, error: str) -> dict[str, pa.Table]:
        """Return the clips row that says why a file was given up."""
        row = {
            "fps": 0.0,
            "num_frames": 0,
            "duration_s": 0.0,
            "has_audio": False,
            "status": status,
            "error": error,
        }
        return {"clips": _clip_row(item, None, row)}

    def _find(self, item: Item) -> Keypoints:
        """First pass: follow the face; decide whether the clip is usable."""
        config, path = self.config, item["path"]
        settings = TrackSettings(config.detect_every, config.min_score)
        tracker = FaceTracker(self.detector, self.points, settings)
        found = extract_keypoints((image for _, image in self._read(item)), tracker)
        count, seen = len(found.valid), int(found.valid.sum())
        if count < config.min_frames:
            raise ClipError(
                "too_short", f"{path}: {count} frames, needs clip.min_frames={config.min_frames}"
            )
        if seen == 0 or seen < config.min_face_fraction * count:
            raise ClipError(
                "no_face",
                f"{path}: a whole face in {seen} of {count} frames, needs "
                f"clip.min_face_fraction={config.min_face_fraction:g} of them (faces cut off by "
                f"the edge or under {config.smallest_face:g} of the shorter side do not count)",
            )
        ratio = tracker.height_ratio
        if config.faces == "single" and ratio < config.dominance:
            raise ClipError(
                "multiple_faces",
                f"{path}: {tracker.most_faces} faces, the largest only {ratio:.2f} times as high "
                f"as the next (clip.dominance={config.dominance:g}); crop the file to one person, "
                "or set clip.faces=largest",
            )
        return found

    def _frames(self, item: Item, found: Keypoints) -> pa.Table:
        """Second pass: cut, warp and encode."""
        config, count = self.config, len(found.valid)
        matrices = self._crops(item, found)
        pictures: list[bytes] = []
        for matrix, (_, image) in zip(matrices, self._read(item), strict=True):
            crop = warp_affine(image, matrix, config.crop_size_px)
            pictures.append(encode_jpeg(crop, config.jpeg_quality))
        landmarks = apply_affine(matrices, found.landmarks)
        columns = [
            [item["clip_id"]] * count,
            np.arange(count, dtype=np.int32),
            np.arange(count) / config.fps,
            pa.array(pictures, pa.binary()),
            np.full(count, config.crop_size_px, np.int32),
            _fixed_lists(landmarks),
            _fixed_lists(matrices),
            found.score.astype(np.float32),
            ["ok" if valid else "no_face" for valid in found.valid],
        ]
        return pa.table(columns, schema=FRAMES)

    def _crops(self, item: Item, found: Keypoints) -> Array:
        """Return the map [T, 2, 3] from each frame to its crop."""
        config = self.config
        if config.align == "none":
            _, first = next(iter(self._read(item)))
            middle = middle_square(first.shape[1], first.shape[0], config.crop_size_px)
            return np.repeat(middle[None], len(found.valid), axis=0)
        square = smooth_square(
            ffhq_square(found.landmarks), found.valid, config.crop_smoothing_s * config.fps
        )
        return square.crop_from_source(config.crop_size_px)

    def _audio(self, item: Item, num_frames: int) -> pa.Table:
        """Return the sound of exactly the clip's frames; sample 0 belongs to frame 0."""
        start_s = float(item.get("start_s") or 0.0)
        duration_s = num_frames / self.config.fps
        sound = read_audio(
            item["path"], SAMPLE_RATE_HZ, start_s=start_s, end_s=start_s + duration_s
        )
        samples = sound.cut(start_s, round(duration_s * SAMPLE_RATE_HZ))
        mel = self.melspectrogram(samples, SAMPLE_RATE_HZ)
        row = {
            "clip_id": item["clip_id"],
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "samples": np.round(samples * 32767.0).astype("<i2").tobytes(),
            "mel": np.ascontiguousarray(mel.T, np.float32).ravel(),
            "num_mel_frames": mel.shape[1],
        }
        return pa.Table.from_pylist([row], schema=AUDIO)

    def _read(self, item: Item) -> Iterator[TimedFrame]:
        start_s, end_s = float(item.get("start_s") or 0.0), item.get("end_s")
        return read_frames(item["path"], fps=self.config.fps, start_s=start_s, end_s=end_s)


def _clip_row(item: Item, info: VideoInfo | None, row: Mapping[str, Any]) -> pa.Table:
    known = {
        "clip_id": item["clip_id"],
        "source_uri": item["source_uri"],
        "source_sha256": item["source_sha256"],
        "identity_id": item["identity_id"],
        "split": item["split"],
        "width_px": info.width_px if info else 0,
        "height_px": info.height_px if info else 0,
        "av_offset_s": 0.0,
    }
    return pa.Table.from_pylist([{**known, **row}], schema=CLIPS)


def _fixed_lists(values: Array) -> pa.Array:
    flat = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
