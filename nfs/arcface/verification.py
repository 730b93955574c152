"""Face verification by ten-fold cross-validation and TAR at FAR (spec/arcface.md 2.11).

n pairs; embeddings 2i and 2i + 1 are pair i. Distances are squared Euclidean, in [0, 4].
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.arcface.pair_files import PairSet, decode_pair_image
from nfs.errors import InputError

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

_ACCURACY_THRESHOLDS = np.arange(400) / 100
_VAL_THRESHOLDS = np.arange(4000) / 1000


@dataclass(frozen=True)
class Verification:
    """Result of an evaluation.

    Attributes:
        tpr: True positive rate at thresholds 0, 0.01, .., mean over folds `[400]`.
        fpr: False positive rate, the same.
        accuracies: Accuracy of each test fold at the best threshold of the others `[folds]`.
        best_thresholds: Those thresholds `[folds]`.
        val: True accept rate at `far_target`, mean over folds; NaN if a fold lacks same pairs.
        val_std: Its standard deviation.
        far: False accept rate reached; NaN if a fold lacks different pairs.
    """

    tpr: Floats
    fpr: Floats
    accuracies: Floats
    best_thresholds: Floats
    val: float
    val_std: float
    far: float

    @property
    def accuracy(self) -> float:
        """Mean accuracy in [0, 1]."""
        return float(self.accuracies.mean())

    @property
    def accuracy_std(self) -> float:
        """Population standard deviation of the folds' accuracies."""
        return float(self.accuracies.std())


def evaluate(
    embeddings: NDArray[np.floating] | Tensor,
    issame: Sequence[bool] | NDArray[np.bool_],
    num_folds: int = 10,
    far_target: float = 1e-3,
) -> Verification:
    """Evaluate unit embeddings `[2n, D]` of n pairs.

    Args:
        embeddings: Rows 2i and 2i + 1 are pair i.
        issame: `[n]`, whether pair i shows one person.
        num_folds: Contiguous folds; 1 finds and tests thresholds on all pairs.
        far_target: False accept rate at which `val` is measured.

    Raises:
        InputError: If counts do not fit or all pairs are of one kind.
    """
    rows = np.asarray(embeddings, np.float64)
    same = np.asarray(issame, bool)
    if len(rows) != 2 * len(same) or not len(same):
        raise InputError(f"{len(rows)} embeddings do not make {len(same)} pairs")
    if same.all() or not same.any():
        kind = "different" if same.all() else "same"
        raise InputError(f"verification needs pairs of both kinds; there is no {kind} pair")
    if not 1 <= num_folds <= len(same):
        raise InputError(f"num_folds={num_folds} does not fit {len(same)} pairs")
    distances = np.square(rows[0::2] - rows[1::2]).sum(1)
    folds = _folds(len(same), num_folds)
    return _cross_validate(distances, same, folds, far_target)


def roc(distances: Floats, same: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return (far, tar) at every threshold that separates two distances, far ascending."""
    order = np.argsort(distances, kind="stable")
    hits, last = same[order], np.r_[np.diff(distances[order]) > 0, True]
    tar, far = np.cumsum(hits) / same.sum(), np.cumsum(~hits) / (~same).sum()
    return np.r_[0.0, far[last]], np.r_[0.0, tar[last]]


def area_under_roc(distances: Floats, same: NDArray[np.bool_]) -> float:
    """Return the chance that a same pair lies closer than a different one (ties count half)."""
    fars, tars = roc(distances, same)
    return float(np.trapezoid(tars, fars))


def tar_at_far(distances: Floats, same: NDArray[np.bool_], far: float) -> float:
    """Return the largest true accept rate whose false accept rate is at most `far`."""
    fars, tars = roc(distances, same)
    return float(tars[fars <= far].max())


def normalise_rows(rows: NDArray[np.floating]) -> Floats:
    """Return rows of length 1 in float64; zero rows stay zero."""
    values = np.asarray(rows, np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length == 0, 1, length)


@torch.no_grad()
def embed_pairs(
    model: Callable[[Tensor], Tensor],
    pairs: PairSet,
    *,
    batch_size: int = 32,
    part: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
    image_size_px: int = 112,
) -> tuple[Floats, Floats]:
    """Return embeddings of a set's images, plain and mirrored, `[M, D]` each, not normalised.

    Args:
        model: Embedding network in eval mode: `[B, 3, S, S]` in [-1, 1] -> `[B, D]`.
        pairs: The set.
        batch_size: Images per forward pass.
        part: (rank, ranks): images rank, rank + ranks, ..
        device: Where the model is.
        image_size_px: S; 112 images are resized (area) for networks of other sizes.
    """
    numbers = range(part[0], len(pairs.images), part[1])
    plain, mirrored = [], []
    for start in range(0, len(numbers), batch_size):
        chunk = numbers[start : start + batch_size]
        pixels = np.stack(
            [decode_pair_image(pairs.images[i], f"{pairs.name}: image {i}") for i in chunk]
        )
        images = to_model_input(torch.from_numpy(pixels).to(device), image_size_px)
        plain.append(model(images).float().cpu())
        mirrored.append(model(images.flip(3)).float().cpu())
    if not plain:
        return np.empty((0, 0)), np.empty((0, 0))
    return torch.cat(plain).double().numpy(), torch.cat(mirrored).double().numpy()


def to_model_input(pixels: Tensor, image_size_px: int = 112) -> Tensor:
    """Convert uint8 RGB `[B, H, W, 3]` to float `[B, 3, S, S]`: `(x / 255 - .5) / .5`."""
    images = ((pixels.permute(0, 3, 1, 2).float() / 255) - 0.5) / 0.5
    if images.shape[-1] == image_size_px:
        return images
    return torch.nn.functional.interpolate(
        images, size=(image_size_px, image_size_px), mode="bilinear", antialias=True
    )


def evaluate_pairs(
    plain: Floats, mirrored: Floats, same: NDArray[np.bool_], num_folds: int = 10
) -> tuple[Verification, float]:
    """Evaluate a set with the flip test; return the result and the mean embedding length."""
    lengths = np.linalg.norm(np.concatenate([plain, mirrored]), axis=1)
    result = evaluate(normalise_rows(plain + mirrored), same, num_folds)
    return result, float(lengths.mean())


def _folds(count: int, num_folds: int) -> list[slice]:
    """Return contiguous folds, the first ones larger by one."""
    size, extra = divmod(count, num_folds)
    edges = np.cumsum([0] + [size + (i < extra) for i in range(num_folds)])
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def _cross_validate(
    distances: Floats, same: NDArray[np.bool_], folds: list[slice], far_target: float
) -> Verification:
    accept = np.stack([_counts(distances[f], same[f], _ACCURACY_THRESHOLDS) for f in folds])
    accept_val = np.stack([_counts(distances[f], same[f], _VAL_THRESHOLDS) for f in folds])
    totals = np.asarray([[same[f].sum(), (~same[f]).sum()] for f in folds])
    tpr, fpr = (_share(accept[:, kind], totals[:, kind, None]) for kind in (0, 1))
    accuracies, best, vals, fars = [], [], [], []
    for fold in range(len(folds)):
        others = [f for f in range(len(folds)) if f != fold] or [fold]
        right = _right(accept[others].sum(0), totals[others].sum(0))
        chosen = int(right.argmax())
        best.append(_ACCURACY_THRESHOLDS[chosen])
        accuracies.append(_right(accept[fold], totals[fold])[chosen] / totals[fold].sum())
        threshold = _threshold_at(
            _share(accept_val[others, 1].sum(0), totals[others, 1].sum()), far_target
        )
        hits, false = _counts(distances[folds[fold]], same[folds[fold]], np.array([threshold]))
        vals.append(hits[0] / totals[fold, 0] if totals[fold, 0] else np.nan)
        fars.append(false[0] / totals[fold, 1] if totals[fold, 1] else np.nan)
    if not (totals > 0).all():
        logger.warning("a fold lacks same or different pairs: val or far is NaN")
    return Verification(
        tpr=tpr.mean(0),
        fpr=fpr.mean(0),
        accuracies=np.asarray(accuracies),
        best_thresholds=np.asarray(best),
        val=float(np.mean(vals)),
        val_std=float(np.std(vals)),
        far=float(np.mean(fars)),
    )


def _counts(distances: Floats, same: NDArray[np.bool_], thresholds: Floats) -> NDArray[np.int64]:
    """Return how many same and different pairs `[2, K]` have `d < threshold`."""
    return np.stack(
        [np.searchsorted(np.sort(distances[kind]), thresholds, "left") for kind in (same, ~same)]
    )


def _right(accepted: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.int64]:
    right: NDArray[np.int64] = accepted[0] + totals[1] - accepted[1]
    return right


def _share(accepted: NDArray[np.int64], total: NDArray[np.int64]) -> Floats:
    return np.where(total == 0, 0.0, accepted / np.maximum(total, 1))


def _threshold_at(fars: Floats, target: float) -> float:
    """Return the threshold whose FAR is `target`, linear between the two nearest ones."""
    if fars.max() < target:
        return 0.0
    last = int(np.flatnonzero(fars <= target)[-1])
    if last == len(fars) - 1:
        return float(_VAL_THRESHOLDS[last])
    slope = (target - fars[last]) / (fars[last + 1] - fars[last])
    low, high = _VAL_THRESHOLDS[last], _VAL_THRESHOLDS[last + 1]
    return float(low + slope * (high - low))
