"""A tiny generator and tiny artifacts for the tests of inversion."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from nfs.artifacts import Store, write_manifest
from nfs.artifacts.schemas import FITS, FRAMES
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.spec import GeneratorSpec

SIZE_PX = 16


def tiny_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    spec = GeneratorSpec(
        z_dim=8,
        w_dim=8,
        img_resolution=SIZE_PX,
        mapping_num_layers=2,
        field_hidden_dim=16,
        field_num_layers=3,
        background_dim=4,
        background_hidden_dim=8,
        background_num_layers=2,
        feature_dim=8,
        num_frequencies=3,
        resolution_vol=8,
        resolution_start=8,
        num_samples=4,
        channel_base=0.01,
        channel_max=16,
    )
    return Generator(spec).eval()


def write_checkpoint(directory, seed: int = 0) -> str:
    export_generator(directory, tiny_generator(seed))
    return str(directory)


def face_landmarks(mouth_open: float = 0.0, eyes_open: float = 1.0, size_px: float = 64.0):
    """A crude face in a square picture: only eyes and lips matter."""
    points = np.full((68, 2), 0.5)
    for start, x in ((36, 0.35), (42, 0.65)):
        up = 0.02 * eyes_open
        offsets = [(-0.06, 0), (-0.02, -up), (0.02, -up), (0.06, 0), (0.02, up), (-0.02, up)]
        points[start : start + 6] = np.array([x, 0.45]) + np.array(offsets)
    half = 0.1 * mouth_open
    inner = [(-0.08, 0), (-0.03, -half), (0, -half), (0.03, -half)]
    inner += [(0.08, 0), (0.03, half), (0, half), (-0.03, half)]
    points[60:68] = np.array([0.5, 0.75]) + np.array(inner)
    return points * size_px


def write_clip(folder, *, num_frames: int = 30, clip_id: str = "anna") -> tuple[str, str]:
    """Write `clips` (frames table only) and `fits` of one clip; returns their paths."""
    rng = np.random.default_rng(0)
    frames, fits = [], []
    yaws = np.linspace(-0.3, 0.3, num_frames)
    for index, yaw in enumerate(yaws):
        picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        picture[..., 0] = index
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        status = "no_face" if index == 3 else "ok"
        frames.append(
            {
                "clip_id": clip_id,
                "frame_index": index,
                "time_s": index / 25,
                "image_jpeg": buffer.getvalue(),
                "image_size_px": 64,
                "landmarks_px": face_landmarks(abs(np.sin(index))).ravel().tolist(),
                "crop_from_source": [1.0, 0, 0, 0, 1, 0],
                "detection_score": 1.0,
                "status": status,
            }
        )
        fits.append(
            {
                "clip_id": clip_id,
                "frame_index": index,
                "identity": [0.1] * 80,
                "expression": [0.0] * 64,
                "texture": [0.0] * 80,
                "rotation_rad": [0.0, float(yaw), 0.0],
                "translation": [0.0, 0.0, 0.0],
                "lighting": [0.0] * 27,
                "nme_percent": 1.0,
                "photometric_l1": 0.0,
                "status": "ok",
            }
        )
    clips_uri, fits_uri = str(folder / "clips"), str(folder / "fits")
    Store(clips_uri).write_table(
        "frames/a.parquet", pa.Table.from_pylist(frames, schema=FRAMES), row_group_size=8
    )
    write_manifest(clips_uri, kind="clips", config={})
    Store(fits_uri).write_table("fits/a.parquet", pa.Table.from_pylist(fits, schema=FITS))
    write_manifest(
        fits_uri,
        kind="fits",
        config={},
        parents=[clips_uri],
        extra={"model": "open_head", "model_checksum": "abc"},
    )
    return clips_uri, fits_uri
