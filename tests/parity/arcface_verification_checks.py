"""Parity of the verification protocol and of reading pair files."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from nfs.arcface.pair_files import PairSet, decode_pair_image, read_pairs
from nfs.arcface.verification import Verification, embed_pairs, evaluate, evaluate_pairs
from nfs.media.images import decode_jpeg
from tests.parity.replay import Check, check

_EXACT, _RESIZED = 1e-12, 8e-4


def verification_checks(folder: Path) -> dict[str, Check]:
    """Run every check whose files are in `folder`."""
    results: dict[str, Check] = {}
    for file in sorted(folder.glob("verif_*.npz")):
        with np.load(file, allow_pickle=False) as recorded:
            data = dict(recorded)
        if "emb" in data:
            result = evaluate(data["emb"], data["issame"])
            results |= _protocol(file.stem, result, data)
        else:
            results |= _pairs(file, data)
    return results


def _protocol(
    name: str, result: Verification, data: dict[str, np.ndarray], tolerance: float = _EXACT
) -> dict[str, Check]:
    found = {
        "tpr": result.tpr,
        "fpr": result.fpr,
        "acc": result.accuracies,
        "val": result.val,
        "val_std": result.val_std,
        "far": result.far,
        "best_thresholds": result.best_thresholds,
    }
    return {
        f"verification/{name}/{key}": check(
            float(np.abs(np.asarray(value) - data[f"f10_{key}"]).max()), tolerance
        )
        for key, value in found.items()
        if f"f10_{key}" in data
    }


def _pairs(file: Path, data: dict[str, np.ndarray]) -> dict[str, Check]:
    name = file.stem
    pairs = read_pairs(file.with_suffix(".bin"))
    pixels = np.stack([decode_pair_image(image) for image in pairs.images])
    native = [decode_jpeg(image).shape == (112, 112, 3) for image in pairs.images]
    sums = pixels.reshape(len(pixels), -1).sum(1, dtype=np.int64)
    recorded = embed_pairs(_pool, pairs, batch_size=7)
    embedded = max(
        float(np.abs(recorded[0] - data["pool_emb"]).max()),
        float(np.abs(recorded[1] - data["pool_emb_flip"]).max()),
    )
    result, xnorm = evaluate_pairs(*recorded, pairs.same)
    differences = np.abs(sums - data["image_sum"]) / pixels[0].size
    results = {
        f"verification/{name}/issame": check(int((pairs.same != data["issame"]).sum()), 0),
        f"verification/{name}/image_sums": check(float(differences[native].max()), 0),
        f"verification/{name}/resized_sums": check(
            float(differences[~np.asarray(native)].max(initial=0)), 0.2
        ),
        f"verification/{name}/pool_emb": check(embedded, _RESIZED),
        f"verification/{name}/acc": check(abs(result.accuracy - float(data["acc"])), _EXACT),
        f"verification/{name}/std": check(abs(result.accuracy_std - float(data["std"])), _EXACT),
        f"verification/{name}/xnorm": check(abs(xnorm - float(data["xnorm"])), _RESIZED),
    }
    for key in data:
        if key.startswith("resized_"):
            expected = data[key].astype(int)
            height, width = expected.shape[:2]
            ours = pixels[int(key.removeprefix("resized_")), :height, :width].astype(int)
            gap = np.abs(ours - expected)
            results[f"verification/{name}/{key}"] = check(float(gap.max()), 1)
            results[f"verification/{name}/{key}_mean"] = check(float(gap.mean()), 0.2)
    # Distances of resized images move by rounding, so rates are compared on recorded embeddings.
    exact, _ = evaluate_pairs(data["pool_emb"], data["pool_emb_flip"], data["issame"])
    results |= _protocol(name, exact, data)
    for other in sorted(file.parent.glob("verif_*.bin")):
        if not other.with_suffix(".npz").exists():
            results[f"verification/{other.stem}/same_images"] = check(
                _other_file(read_pairs(other), pixels, pairs.same), 0
            )
    return results


def _other_file(pairs: PairSet, pixels: np.ndarray, same: np.ndarray) -> int:
    wrong = int((pairs.same != same[: len(pairs)]).sum())
    for number, image in enumerate(pairs.images):
        wrong += int((decode_pair_image(image) != pixels[number]).any())
    return wrong


def _pool(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images, 14).flatten(1)
