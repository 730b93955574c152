"""Checks of face alignment against fixtures in the format of `parity/morphable` (spec 6)."""

from pathlib import Path
from typing import Any

import numpy as np

from nfs.face.align import arcface_transform, deep3d_alignment, five_points, pad_box_published
from nfs.face.ffhq import ffhq_crop_reference, sadtalker_crop

Check = dict[str, Any]


def checks(folder: Path) -> dict[str, Check]:
    """Return {name: {error, tolerance, ok}} of the checks whose fixture file is in the folder."""
    results: dict[str, Check] = {}
    for name, check in (
        ("face_crop.npz", _face_crop),
        ("align_outputs.npz", _align),
        ("augment.npz", _boxes),
    ):
        if (folder / name).is_file():
            with np.load(folder / name, allow_pickle=False) as data:
                results |= check(data)
    return results


def _face_crop(data: Any) -> dict[str, Check]:
    crop, rectangles = 0.0, 0.0
    for name in data["names"]:
        image, landmarks = data[f"{name}_image"], data[f"{name}_lm68"]
        expected = data[f"{name}_ffhq"]
        ours = ffhq_crop_reference(image, landmarks, int(data[f"{name}_size"]))
        crop = max(crop, float(np.abs(ours.astype(int) - expected).max()))
        size = (image.shape[1], image.shape[0])
        found = sadtalker_crop(size, landmarks, size_px=int(data[f"{name}_size"]))
        for ours_box, key in ((found.resized, "rsize"), (found.crop, "crop"), (found.quad, "quad")):
            rectangles = max(rectangles, _largest(ours_box, data[f"{name}_st_{key}"]))
    return {
        "face/ffhq_crop": _result(crop, 0.0),
        "face/sadtalker_rectangles": _result(rectangles, 1e-9),
    }


def _align(data: Any) -> dict[str, Check]:
    worst = dict.fromkeys(("five_points", "pos_shift", "pos_scale", "landmarks", "arcface"), 0.0)
    count = 0
    while f"{count}_lm68_yup" in data.files:
        key = f"{count}_"
        landmarks, five = data[key + "lm68_yup"], data[key + "lm5_yup"]
        width, height = (int(v) for v in data[key + "trans_params"][:2])
        aligned = deep3d_alignment(five, (width, height))
        crop_five = data[key + "lm5_crop"].astype(np.float64)
        index = np.column_stack([crop_five[:, 0], 223 - crop_five[:, 1]])
        expected_scale = float(data[key + "pos_s"])
        found = {
            "five_points": _largest(five_points(landmarks), five),
            "pos_shift": _largest(aligned.shift, data[key + "pos_t"]),
            "pos_scale": abs(102.0 / aligned.scale - expected_scale) / abs(expected_scale),
            "landmarks": _largest(aligned.landmarks_yup(landmarks), data[key + "lm68_crop"]),
            "arcface": _largest(arcface_transform(index), data[key + "arcface_M"]),
        }
        worst = {name: max(worst[name], found[name]) for name in worst}
        count += 1
    # float32 inputs of a few hundred pixels: one rounding is 3e-5
    tolerance = {"five_points": 1e-4, "arcface": 1e-5}
    return {f"face/{n}": _result(v, tolerance.get(n, 1e-6)) for n, v in worst.items() if count}


def _boxes(data: Any) -> dict[str, Check]:
    results = {}
    size = tuple(int(v) for v in data["bbox_wh"])
    for ratio, key in ((0.3, "bbox_padded_03"), (0.2, "bbox_padded_02")):
        ours = [pad_box_published(box, size, ratio) for box in data["bbox"]]
        results[f"face/{key}"] = _result(_largest(ours, data[key]), 0.0)
    return results


def _largest(ours: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - expected).max())


def _result(error: float, tolerance: float) -> Check:
    return {"error": error, "tolerance": tolerance, "ok": bool(error <= tolerance)}
