"""Rendered heads with known coefficients as `clips` and `fits` artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from nfs.artifacts import Store, write_manifest
from nfs.artifacts.schemas import CLIPS, FITS, FRAMES
from nfs.media.images import encode_jpeg
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.model import MorphableModel
from nfs.morphable.shading import posed_vertices, render, to_screen

SIZE = 96
NUM_FRAMES = 20
JAW_OPEN = "jawOpen"


def heads(model: MorphableModel, seed: int, count: int = NUM_FRAMES) -> Coefficients:
    """One person who turns the head and speaks."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = Coefficients.zeros(count)
    coefficients.identity[:] = torch.randn(1, 80, generator=generator)
    coefficients.texture[:, :10] = 0.3 * torch.randn(1, 10, generator=generator)
    coefficients.rotation[:, 1] = 0.3 * torch.sin(torch.linspace(0, 20, count))
    coefficients.translation[:, 0] = 0.1
    jaw = model.expression_names.index(JAW_OPEN)
    coefficients.expression[:, jaw] = torch.rand(count, generator=generator)
    return coefficients


def landmarks_px(model: MorphableModel, coefficients: Coefficients, size: int = SIZE):
    """Projected landmarks [B, 68, 2]."""
    points = model.landmarks_of(posed_vertices(model, coefficients))
    return to_screen(points, size)[..., :2]


def write_clips(folder: Path, model: MorphableModel, people: dict[str, str]) -> dict[str, str]:
    """Write artifacts with a clip per person (`clip_id -> split`); frame 3 of each is unusable."""
    uris = {"clips": str(folder / "clips"), "fits": str(folder / "fits")}
    for seed, (clip_id, split) in enumerate(people.items()):
        coefficients = heads(model, seed)
        images = (render(model, coefficients, SIZE).image.clamp(0, 1) * 255).byte().numpy()
        points = landmarks_px(model, coefficients).numpy()
        row = dict.fromkeys(CLIPS.names)
        row |= {
            "clip_id": clip_id, "status": "ok", "num_frames": NUM_FRAMES, "fps": 25.0,
            "error": "", "split": split, "identity_id": clip_id,
        }  # fmt: skip
        frames, fits = [], []
        for i in range(NUM_FRAMES):
            status = "no_face" if i == 3 else "ok"
            one = coefficients[i : i + 1]
            frames.append(
                {
                    "clip_id": clip_id, "frame_index": i, "time_s": i / 25,
                    "image_jpeg": encode_jpeg(images[i]), "image_size_px": SIZE,
                    "landmarks_px": points[i].ravel(), "crop_from_source": np.zeros(6),
                    "detection_score": 1.0, "status": status,
                }
            )  # fmt: skip
            fits.append(
                {
                    "clip_id": clip_id, "frame_index": i, "nme_percent": 0.0,
                    "photometric_l1": 0.0, "status": "poor_fit" if i == 4 else status,
                    "identity": one.identity[0].numpy(), "expression": one.expression[0].numpy(),
                    "texture": one.texture[0].numpy(), "rotation_rad": one.rotation[0].numpy(),
                    "translation": one.translation[0].numpy(),
                    "lighting": one.lighting[0].numpy(),
                }
            )  # fmt: skip
        tables = {
            "clips": pa.Table.from_pylist([row], CLIPS),
            "frames": pa.Table.from_pylist(frames, FRAMES),
        }
        for name, table in tables.items():
            path = f"{name}/{clip_id}.parquet"
            Store(uris["clips"]).write_table(path, table, row_group_size=7)
        table = pa.Table.from_pylist(fits, FITS)
        Store(uris["fits"]).write_table(f"fits/{clip_id}.parquet", table, row_group_size=7)
    write_manifest(uris["clips"], kind="clips", config={})
    write_manifest(
        uris["fits"],
        kind="fits",
        config={},
        parents=[uris["clips"]],
        extra={"model": model.model_id, "model_checksum": model.checksum},
    )
    return uris
