"""Checks of the coefficient regressor's data against `parity/morphable` (spec 2.6 and 2.10)."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfs.media.images import invert_affine
from nfs.morphable.recon.augment import Change, move_landmarks
from nfs.morphable.recon.skin import skin_probability
from tests.parity.replay import Check, check

# The ranges that the recordings were made with (README of the fixtures).
SHIFT_PX, SCALE, ROTATION_DEG = 10, 0.1, 10.0


def checks(folder: Path) -> dict[str, Check]:
    """Return {name: check} for the fixture files that the folder has."""
    results: dict[str, Check] = {}
    for file, compare in (("augment", _augment), ("skin", _skin)):
        if (folder / f"{file}.npz").is_file():
            with np.load(folder / f"{file}.npz", allow_pickle=False) as data:
                results |= compare(data)
    return results


def _augment(data: Any) -> dict[str, Check]:
    from PIL import Image

    size = data["image"].shape[0]
    worst = dict.fromkeys(("affine", "flip", "landmarks", "image"), 0.0)
    for key in [name for name in data.files if name.endswith("_affine")]:
        seed = key.removesuffix("_affine")
        change = original_draw(int(seed))
        matrix = change.matrix(size)
        points = data["lm68_yup"].copy()
        points[:, 1] = size - 1 - points[:, 1]  # the original maps index coordinates, y down
        moved = move_landmarks(points, matrix)
        moved[:, 1] = size - 1 - moved[:, 1]
        found = {
            "affine": np.abs(matrix - data[key][:2]).max(),
            "flip": float(change.flip != bool(data[f"{seed}_flip"])),
            "landmarks": np.abs(moved - data[f"{seed}_lm"]).max(),
        }
        recorded = data[f"{seed}_image"]
        if recorded.ndim == 3:
            warped = Image.fromarray(data["image"]).transform(
                (size, size),
                Image.Transform.AFFINE,
                tuple(invert_affine(matrix).ravel()),
                Image.Resampling.BICUBIC,
            )
            found["image"] = np.abs(np.asarray(warped).astype(int) - recorded).max()
        worst = {name: max(value, float(found.get(name, 0))) for name, value in worst.items()}
    tolerance = {"affine": 1e-9, "flip": 0.0, "landmarks": 1e-6, "image": 1.0}
    return {f"recon/augment_{n}": check(v, tolerance[n]) for n, v in worst.items()}


def original_draw(seed: int) -> Change:
    """Repeat the original's random draws: shift x, shift y, scale, rotation, flip."""
    rng = random.Random(seed)
    x, y = rng.randint(-SHIFT_PX, SHIFT_PX), rng.randint(-SHIFT_PX, SHIFT_PX)
    scale = 1 + SCALE * (2 * rng.random() - 1)
    rotation = ROTATION_DEG * (2 * rng.random() - 1)
    return Change((x, y), scale, rotation, rng.random() > 0.5)


def _skin(data: Any) -> dict[str, Check]:
    rgb = np.ascontiguousarray(data["image_bgr"][..., ::-1])
    found = skin_probability(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].numpy() * 255
    return {"recon/skin": check(float(np.abs(found - data["mask"]).max()), 1e-4)}
