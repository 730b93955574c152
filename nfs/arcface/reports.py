"""Numbers and pictures of a verification."""

from __future__ import annotations

import numpy as np

from nfs.arcface.pair_files import PairSet
from nfs.arcface.plots import draw_histogram, draw_roc
from nfs.arcface.verification import (
    Floats,
    area_under_roc,
    evaluate_pairs,
    normalise_rows,
    tar_at_far,
)
from nfs.training.task import Evaluation


def report_pairs(
    pairs: PairSet, plain: Floats, mirrored: Floats, *, num_folds: int, title: str
) -> Evaluation:
    """Return accuracy, area and rates of a set (`val/<name>_..`), its ROC and its distances.

    Args:
        pairs: The set.
        plain: Embeddings of its images `[2n, D]`.
        mirrored: Embeddings of their mirror images.
        num_folds: Folds of the accuracy; fewer where the set has fewer pairs.
        title: Goes into the pictures.
    """
    folds = min(num_folds, len(pairs))
    result, length = evaluate_pairs(plain, mirrored, pairs.same, folds)
    rows = normalise_rows(plain + mirrored)
    distances: Floats = np.square(rows[0::2] - rows[1::2]).sum(1)
    metrics = {
        f"val/{pairs.name}_accuracy": result.accuracy,
        f"val/{pairs.name}_accuracy_std": result.accuracy_std,
        f"val/{pairs.name}_auc": area_under_roc(distances, pairs.same),
        f"val/{pairs.name}_tar_at_far_1e-3": tar_at_far(distances, pairs.same, 1e-3),
        f"val/{pairs.name}_tar_at_far_1e-2": tar_at_far(distances, pairs.same, 1e-2),
        f"val/{pairs.name}_embedding_norm": length,
    }
    images = {
        f"roc_{pairs.name}": draw_roc(distances, pairs.same, f"{pairs.name}, {title}"),
        f"distances_{pairs.name}": draw_histogram(distances, pairs.same, f"{pairs.name}, {title}"),
    }
    return Evaluation(metrics, images)
