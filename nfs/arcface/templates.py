"""IJB-B and IJB-C: verification of templates, sets of images of one person (spec/arcface.md 2.12).

Legend: N images, T templates, D embedding size, L pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nfs.arcface.datasets import ALIGNED_PX
from nfs.arcface.verification import Floats, normalise_rows, roc, to_model_input
from nfs.errors import InputError
from nfs.face.align import arcface_transform
from nfs.media.images import decode_jpeg

FPR_TARGETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_PAIRS_AT_ONCE = 100_000


@dataclass(frozen=True)
class TemplateSet:
    """The files of a template protocol.

    Attributes:
        root: Folder with `meta/` and `loose_crop/`.
        files: Image names `[N]`.
        templates: Template of each image `[N]`, an index into `ids`.
        media: Media (photo or video) of each image `[N]`.
        points: Eyes, nose, mouth corners in index coordinates `[N, 5, 2]`.
        scores: Detector scores `[N]`.
        ids: Template numbers of the protocol `[T]`, ascending.
        pairs: Template indices `[L, 2]`.
        same: `[L]` whether a pair is one person.
    """

    root: Path
    files: list[str]
    templates: NDArray[np.int64]
    media: NDArray[np.int64]
    points: Floats
    scores: Floats
    ids: NDArray[np.int64]
    pairs: NDArray[np.int64]
    same: NDArray[np.bool_]

    def images_of(self, templates: range) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each template of a range with the numbers of its images."""
        order = np.argsort(self.templates, kind="stable")
        edges = np.searchsorted(self.templates[order], np.arange(len(self.ids) + 1))
        for template in templates:
            yield template, order[edges[template] : edges[template + 1]]


def read_templates(root: str | Path, name: str = "ijbc") -> TemplateSet:
    """Read `meta/<name>_face_tid_mid.txt`, `_template_pair_label.txt` and `_name_5pts_score.txt`.

    Raises:
        InputError: If a file is missing, malformed, or they do not belong together.
    """
    folder = Path(root) / "meta"
    faces = _rows(folder / f"{name}_face_tid_mid.txt", 3)
    scored = _rows(folder / f"{name}_name_5pts_score.txt", 12)
    labels = _rows(folder / f"{name}_template_pair_label.txt", 3)
    files = [row[0] for row in scored]
    if files != [row[0] for row in faces]:
        raise InputError(
            f"{folder}: {name}_face_tid_mid.txt and {name}_name_5pts_score.txt do not list the "
            f"same images ({len(faces)} and {len(files)} lines)"
        )
    numbers = _numbers(folder, [row[1:] for row in scored])
    ids, templates = np.unique(
        _numbers(folder, [row[1] for row in faces]).astype(np.int64), return_inverse=True
    )
    table = _numbers(folder, labels).astype(np.int64)
    unknown = np.setdiff1d(table[:, :2], ids)
    if len(unknown):
        raise InputError(f"{folder}: pairs name templates without images, e.g. {unknown[0]}")
    return TemplateSet(
        Path(root),
        files,
        templates,
        _numbers(folder, [row[2] for row in faces]).astype(np.int64),
        numbers[:, :10].reshape(-1, 5, 2),
        numbers[:, 10],
        ids,
        np.searchsorted(ids, table[:, :2]),
        table[:, 2] == 1,
    )


@torch.no_grad()
def embed_templates(
    model: Callable[[Tensor], Tensor],
    templates: TemplateSet,
    chosen: range,
    *,
    device: torch.device | None = None,
    image_size_px: int = 112,
    batch_size: int = 32,
) -> Floats:
    """Return unit rows `[len(chosen), D]` of templates.

    The embedding of an image is that of the image plus that of its mirror image, times the
    detector's score; a template is the sum over its media of the mean over a media's images.

    Args:
        model: Embedding network in eval mode: `[B, 3, S, S]` in [-1, 1] -> `[B, D]`.
        templates: The protocol.
        chosen: Templates, as indices into `ids`.
        device: Where the model is.
        image_size_px: S.
        batch_size: Images per forward pass.
    """
    members = list(templates.images_of(chosen))
    numbers = np.concatenate([images for _, images in members])
    rows = []
    for start in range(0, len(numbers), batch_size):
        pixels = np.stack([_aligned(templates, i) for i in numbers[start : start + batch_size]])
        images = to_model_input(torch.from_numpy(pixels).to(device), image_size_px)
        rows.append((model(images) + model(images.flip(3))).double().cpu())
    embedded = torch.cat(rows).numpy() * templates.scores[numbers, None]
    sums: list[Floats] = []
    start = 0
    for _, members_of in members:
        part = embedded[start : start + len(members_of)]
        _, media = np.unique(templates.media[members_of], return_inverse=True)
        means = np.zeros((media.max() + 1, part.shape[1]))
        np.add.at(means, media, part)
        sums.append((means / np.bincount(media)[:, None]).sum(0))
        start += len(members_of)
    return normalise_rows(np.stack(sums))


def score_templates(rows: Floats, pairs: NDArray[np.int64]) -> Floats:
    """Return the cosine `[L]` of pairs of unit template rows `[T, D]`."""
    parts = [
        (rows[part[:, 0]] * rows[part[:, 1]]).sum(1)
        for part in np.array_split(pairs, max(1, len(pairs) // _PAIRS_AT_ONCE))
    ]
    return np.concatenate(parts)


def tpr_at_fprs(scores: Floats, same: NDArray[np.bool_]) -> dict[float, float]:
    """Return the true positive rate at the point of the ROC nearest to each of `FPR_TARGETS`.

    The largest one where several points are equally near, as the original reads its curve.

    Raises:
        InputError: If all pairs are of one kind.
    """
    if same.all() or not same.any():
        raise InputError("template pairs are all of one kind; verification needs both")
    fprs, tprs = roc(-scores, same)
    found = {}
    for target in FPR_TARGETS:
        distance = np.abs(fprs - target)
        found[target] = float(tprs[distance == distance.min()].max())
    return found


def _aligned(templates: TemplateSet, number: int) -> NDArray[np.uint8]:
    """Warp an image by its five points: bilinear, black outside."""
    file = templates.root / "loose_crop" / templates.files[number]
    try:
        pixels = decode_jpeg(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {error}") from None
    forward = np.vstack([arcface_transform(templates.points[number]), [0, 0, 1]])
    back = np.linalg.inv(forward)[:2]
    # Points are pixel centres at integers, Pillow's maps are continuous.
    back[:, 2] += 0.5 - back[:, :2] @ np.full(2, 0.5)
    size = (ALIGNED_PX, ALIGNED_PX)
    warped = Image.fromarray(pixels).transform(
        size, Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def _rows(path: Path, columns: int) -> list[list[str]]:
    if not path.is_file():
        raise InputError(f"{path} is missing; root must be the folder that holds meta/")
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise InputError(f"{path}: line {number} has {len(row)} columns, need {columns}")
    if not rows:
        raise InputError(f"{path} is empty")
    return rows


def _numbers(folder: Path, values: list[str] | list[list[str]]) -> Floats:
    try:
        return np.asarray(values, np.float64)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
