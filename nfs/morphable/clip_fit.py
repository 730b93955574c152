"""The unit work of `jobs.fit_3dmm`: one clip in, one table out. Legend: T frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfs.artifacts.schemas import FITS
from nfs.artifacts.shards import ClipRun
from nfs.artifacts.store import Store
from nfs.artifacts.tables import read_rows, unit_places
from nfs.config.fit_3dmm import ClipFitConfig
from nfs.errors import ClipError, NonFiniteError
from nfs.media.images import decode_jpeg, encode_png
from nfs.morphable.appearance import fit_appearance, with_appearance
from nfs.morphable.coefficients import NUM_COEFFICIENTS, Coefficients
from nfs.morphable.landmark_fit import (
    NUM_LANDMARKS,
    Fit,
    FitSettings,
    fit_landmarks,
    nearest_valid,
)
from nfs.morphable.loading import load_model
from nfs.morphable.metrics import lip_gap_px
from nfs.morphable.model import MorphableModel
from nfs.morphable.overlay import contact_sheet
from nfs.morphable.photometric_fit import PhotometricSettings
from nfs.morphable.recon.predictor import ReconPredictor
from nfs.morphable.refine import Refiner

Item = Mapping[str, Any]
Images = NDArray[np.uint8]
USABLE = "ok"
POOR_FIT = "poor_fit"
FAILED_FRAME = -1
FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class ClipFit:
    """Fit of one clip or photo.

    Attributes:
        fit: Coefficients (with texture and light if images were given), errors, fitted landmarks.
        usable: `[T]` frames that had landmarks.
        photometric_l1: `[T]` colour error of the frames that appearance was estimated from, NaN
            elsewhere.
        median_nme_percent: Over the usable frames.
    """

    fit: Fit
    usable: Tensor
    photometric_l1: Tensor
    median_nme_percent: float


def fit_clip_frames(
    model: MorphableModel,
    landmarks_px: Tensor,
    image_size_px: int,
    *,
    usable: Tensor | None = None,
    images: Mapping[int, Images] | None = None,
    temporal_weight: float = 1.0,
    settings: FitSettings | None = None,
    start: Coefficients | None = None,
    refiner: Refiner | None = None,
) -> ClipFit:
    """Fit one clip, or one photo (T = 1).

    Args:
        model: The model to fit.
        landmarks_px: `[T, 68, 2]` continuous pixels of a square image, y down.
        image_size_px: Side of that image.
        usable: `[T]` bool, frames whose landmarks count; default those that are finite.
        images: Frame index -> uint8 RGB `[S, S, 3]` of the frames to estimate light and colour
            from.
        temporal_weight: See `fit_landmarks`.
        settings: See `fit_landmarks`.
        start: See `fit_landmarks`.
        refiner: Photometric stage; it works on `images`.

    Raises:
        ClipError: `no_face` if no frame is usable; `diverged` if the photometric stage does.
    """
    if usable is None:
        usable = torch.isfinite(landmarks_px).flatten(1).all(1)
    if not bool(usable.any()):
        raise ClipError("no_face", f"none of {len(landmarks_px)} frames has landmarks")
    fit = fit_landmarks(
        model,
        landmarks_px,
        image_size_px,
        temporal_weight=temporal_weight,
        weights=usable.float(),
        settings=settings,
        start=start,
    )
    photometric = torch.full_like(fit.nme_percent, torch.nan)
    if images:
        rows = torch.tensor(sorted(images))
        stack = np.stack([images[int(row)] for row in rows])
        pictures = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
        appearance = fit_appearance(model, fit.coefficients[rows], pictures)
        fit = replace(fit, coefficients=with_appearance(fit.coefficients, appearance))
        photometric[rows] = appearance.photometric_l1
    if refiner is not None and images:
        try:
            refined = refiner(
                fit,
                images,
                landmarks_px,
                usable,
                temporal_weight=temporal_weight,
                landmark_settings=settings,
            )
        except NonFiniteError as error:
            raise ClipError("diverged", f"photometric stage: {error}") from error
        fit = refined.fit
        photometric[torch.tensor(sorted(images))] = refined.photometric_l1
    median = float(fit.nme_percent[usable].median())
    return ClipFit(fit, usable, photometric, median)


class FitWork:
    """Fits the clips of an artifact; loads the model once, keeps nothing between clips.

    Items carry `key` and `clip_id`; `path` is the file of the frames table inside the artifact, and
    `first_row`, `num_rows` say where the clip lies in it (default: looked up); `sheet` false leaves
    out the contact sheet unless the fit is poor.

    Args:
        clips: The `clips` artifact.
        output: The `fits` artifact; contact sheets go to `sheets/<key>.png` in it.
        config: Tree of `ClipFitConfig`.
    """

    primary = "fits"

    def __init__(self, clips: str, output: str, config: Mapping[str, Any]):
        self.config = ClipFitConfig.from_tree(config, source="fit_3dmm.fit")
        self.clips, self.output = Store(clips), Store(output)
        self.model = load_model(self.config.model)
        landmarks = self.config.landmarks.tree()
        self.temporal_weight = landmarks.pop("temporal_weight")
        self.settings = FitSettings(**landmarks)
        self.refiner = build_refiner(self.model, self.config)
        self.recon: ReconPredictor | None = None
        if self.config.recon is not None:
            self.recon = ReconPredictor.load(self.config.recon, self.model)

    def __call__(self, item: Item) -> dict[str, pa.Table]:
        """Return the `fits` table of one clip, a row for every frame.

        Raises:
            ClipError: `no_face` (no frame with landmarks), `bad_frames` (no rows, mixed sizes).
        """
        frames = self._read(item)
        landmarks, usable = landmarks_of(frames)
        sizes = set(frames["image_size_px"].to_pylist())
        if len(sizes) != 1:
            raise ClipError("bad_frames", f"{item['path']}: image sizes {sorted(sizes)}, need one")
        chosen = spread_frames(usable, key_frames(self.config))
        result = fit_clip_frames(
            self.model,
            landmarks,
            int(sizes.pop()),
            usable=usable,
            images=self._images(item, chosen),
            temporal_weight=self.temporal_weight,
            settings=self.settings,
            start=self._start(item, landmarks, usable),
            refiner=self.refiner,
        )
        self._write_sheet(item, result, landmarks)
        return {"fits": fits_table(item["clip_id"], frames, result, self.config)}

    def failure(self, item: Item, status: str, error: str) -> dict[str, pa.Table]:
        """Return one row with frame index -1 that says why a clip has no fit."""
        zeros = Coefficients.zeros(1)
        nan = torch.full((1,), torch.nan)
        del error  # the manifest has the text; the table has the reason
        table = _table(item["clip_id"], [FAILED_FRAME], zeros, nan, nan, [status])
        return {"fits": table}

    def _read(self, item: Item) -> pa.Table:
        columns = ["clip_id", "frame_index", "landmarks_px", "image_size_px", "status"]
        frames = read_rows(self.clips, self._place(item), columns)
        if len(frames) == 0:
            raise ClipError("bad_frames", f"{item['path']}: the clip has no frames")
        return frames

    def _place(self, item: Item) -> ClipRun:
        """Return the clip's rows; a file holds several clips, one after the other."""
        key, clip_id, path = item["key"], item["clip_id"], item["path"]
        if "first_row" in item:
            return ClipRun(key, clip_id, path, item["first_row"], item["num_rows"])
        found = [run for run in unit_places(self.clips, path) if run.clip_id == clip_id]
        return found[0] if found else ClipRun(key, clip_id, path, 0, 0)

    def _start(self, item: Item, landmarks: Tensor, usable: Tensor) -> Coefficients | None:
        """Predict every frame from its picture; frames without landmarks copy a neighbour."""
        if self.recon is None or not bool(usable.any()):
            return None
        known = usable.nonzero()[:, 0]
        found = landmarks.new_zeros(len(landmarks), NUM_COEFFICIENTS)
        for part in known.split(FRAMES_AT_ONCE):
            images = self._images(item, part.tolist())
            stack = np.stack([images[int(row)] for row in part])
            found[part] = self.recon(stack, landmarks[part].numpy()).pack()
        return Coefficients.unpack(found[nearest_valid(usable)])

    def _images(self, item: Item, rows: Sequence[int]) -> dict[int, Images]:
        """Decode some frames, reading only the row groups that hold them."""
        images: dict[int, Images] = {}
        with self.clips.open_parquet(item["path"]) as parquet:
            start = -self._place(item).first_row
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                wanted = [row for row in rows if start <= row < end]
                if wanted:
                    column = parquet.read_row_group(group, columns=["image_jpeg"])["image_jpeg"]
                    images |= {row: decode_jpeg(column[row - start].as_py()) for row in wanted}
                start = end
        return images

    def _write_sheet(self, item: Item, result: ClipFit, landmarks: Tensor) -> None:
        poor = result.median_nme_percent > self.config.max_median_nme_percent
        if self.config.sheet_frames == 0 or not (poor or item.get("sheet", True)):
            return
        rows = sheet_frames(result, landmarks, self.config.sheet_frames)
        images = self._images(item, rows)
        index = torch.tensor(rows)
        sheet = contact_sheet(
            self.model,
            result.fit.coefficients[index],
            np.stack([images[row] for row in rows]),
            landmarks_px=landmarks[index],
            fitted_px=result.fit.landmarks_px[index],
        )
        self.output.write_bytes(sheet_path(item["key"]), encode_png(sheet))


def build_refiner(model: MorphableModel, config: ClipFitConfig) -> Refiner | None:
    """Return the photometric stage of a configuration, None if it has none."""
    chosen = config.photometric
    if chosen is None:
        return None
    settings = PhotometricSettings(
        rigid_steps=chosen.rigid_steps,
        joint_steps=chosen.joint_steps,
        learning_rate=chosen.learning_rate,
        weights=chosen.weights.tree(),
        normal_weighting=chosen.normal_weighting,
        backend=chosen.backend,
    )
    return Refiner(model, settings, chosen.image_size_px)


def key_frames(config: ClipFitConfig) -> int:
    """Return how many pictures of a clip are looked at for light and texture."""
    stage = config.photometric
    return config.appearance_frames if stage is None else stage.frames


def sheet_path(key: str) -> str:
    """Return where the contact sheet of a unit lies in the artifact."""
    return f"sheets/{key}.png"


def landmarks_of(frames: pa.Table) -> tuple[Tensor, Tensor]:
    """Return landmarks `[T, 68, 2]` and which frames are usable `[T]` of a `frames` table."""
    flat = frames["landmarks_px"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    landmarks = np.array(flat, np.float32).reshape(-1, 2 * NUM_LANDMARKS)
    status_ok = np.array([status == USABLE for status in frames["status"].to_pylist()])
    usable = status_ok & np.isfinite(landmarks).all(1)
    return (
        torch.from_numpy(landmarks).reshape(-1, NUM_LANDMARKS, 2),
        torch.from_numpy(usable),
    )


def spread_frames(usable: Tensor, count: int) -> list[int]:
    """Return up to `count` usable frames, evenly spread over the clip."""
    known = usable.nonzero()[:, 0]
    places = torch.linspace(0, len(known) - 1, min(count, len(known))).round().long()
    return [int(row) for row in known[places]]


def sheet_frames(result: ClipFit, landmarks: Tensor, count: int) -> list[int]:
    """Return the frames to show: the worst, the extremes of the mouth, then an even spread."""
    usable = result.usable
    gap = torch.where(usable, lip_gap_px(landmarks), torch.nan)
    errors = result.fit.nme_percent
    special = [
        int(torch.nan_to_num(errors, nan=-1.0).argmax()),
        int(torch.nan_to_num(gap, nan=-1.0).argmax()),
        int(torch.nan_to_num(gap, nan=torch.inf).argmin()),
    ]
    rows = list(dict.fromkeys(special + spread_frames(usable, count)))
    return sorted(rows[:count])


def fits_table(clip_id: str, frames: pa.Table, result: ClipFit, config: ClipFitConfig) -> pa.Table:
    """Return the rows of one clip; frames without landmarks keep their own status."""
    poor = result.median_nme_percent > config.max_median_nme_percent
    fitted = POOR_FIT if poor else USABLE
    status = [
        fitted if good else (own if own != USABLE else "no_landmarks")
        for good, own in zip(result.usable.tolist(), frames["status"].to_pylist(), strict=True)
    ]
    return _table(
        clip_id,
        frames["frame_index"].to_pylist(),
        result.fit.coefficients,
        result.fit.nme_percent,
        result.photometric_l1,
        status,
    )


def _table(
    clip_id: str,
    frame_index: Sequence[int],
    coefficients: Coefficients,
    nme: Tensor,
    photometric: Tensor,
    status: Sequence[str],
) -> pa.Table:
    columns = [
        [clip_id] * len(frame_index),
        pa.array(frame_index, pa.int32()),
        *(
            _lists(part)
            for part in (
                coefficients.identity,
                coefficients.expression,
                coefficients.texture,
                coefficients.rotation,
                coefficients.translation,
                coefficients.lighting,
            )
        ),
        pa.array(nme.float().numpy()),
        pa.array(photometric.float().numpy()),
        list(status),
    ]
    return pa.table(columns, schema=FITS)


def _lists(values: Tensor) -> pa.Array:
    flat = values.float().contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
