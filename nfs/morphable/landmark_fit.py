"""`fit_landmarks`: coefficients of a clip, or of unrelated photographs, from 68 landmarks.

A clip shares one identity and its neighbouring frames are tied together. Long clips have bounded
memory: the identity comes from frames spread over the clip, then overlapping segments are fitted
with it. Legend: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nfs.geometry.rotations import matrix_to_euler
from nfs.morphable.coefficients import PACKED_SIZES, Coefficients
from nfs.morphable.contour import NUM_JAW, asymmetry_matrix
from nfs.morphable.gauss_newton import (
    Contour,
    IdentityMode,
    Problem,
    State,
    clamp_to_box,
    full_step,
    project_state,
    rigid_step,
    slide_contour,
)
from nfs.morphable.initial_pose import orthographic_pose
from nfs.morphable.metrics import MOUTH, nme_percent
from nfs.morphable.model import MorphableModel

NUM_LANDMARKS = 68
FACE_SIZE_DM = 1.6
"""Side of the landmark box of an average face; turns dm into percent of the face size."""


@dataclass(frozen=True)
class FitSettings:
    """Weights and iteration counts of the landmark fit.

    Attributes:
        iterations: Gauss-Newton steps in all.
        rigid_iterations: Of those, steps that only move the head, at the start.
        identity_prior: Precision of identity coefficients (residuals are percent of the face size).
            A shared identity multiplies it by the square root of the number of frames: landmark
            errors repeat from frame to frame, so many frames say less than as many independent
            photographs.
        asymmetry_prior: Precision of left-right differences of the identity at landmarks, percent
            of the face size. Matters for single pictures: a face seen from one side gets a crooked
            nose otherwise. A clip whose head turns overrules it.
        hold_identity: Keep the identity of `start`.
        expression_prior: Precision of expression coefficients, times the model's own per-axis
            factor.
        pose_smoothness: Precision of pose differences of neighbouring frames, at temporal weight 1.
        expression_smoothness: The same for expressions.
        huber_percent: Landmark errors beyond this (percent of the face size) count linearly.
        jaw_weight: Weight of the 17 jaw points, which lie on a silhouette that turns with the head.
        slide_contour: Let the jaw points of turned heads move along the outline.
        mouth_weight: Weight of the 20 mouth points, which speech depends on.
        segment_frames: Longest run of frames solved at once.
        segment_overlap: Frames that neighbouring segments share; the outer halves are thrown away.
    """

    iterations: int = 8
    rigid_iterations: int = 2
    identity_prior: float = 1.0
    asymmetry_prior: float = 0.5
    hold_identity: bool = False
    expression_prior: float = 2.0
    pose_smoothness: float = 30.0
    expression_smoothness: float = 6.0
    huber_percent: float = 3.0
    jaw_weight: float = 0.25
    slide_contour: bool = True
    mouth_weight: float = 2.0
    segment_frames: int = 640
    segment_overlap: int = 32


@dataclass(frozen=True)
class Fit:
    """Result of a fit.

    Attributes:
        coefficients: T rows; texture and lighting are zero.
        nme_percent: `[T]` landmark error by the distance between the eye centres; NaN where a frame
            had no landmarks.
        landmarks_px: `[T, 68, 2]` fitted landmarks, continuous pixels; jaw points of turned heads
            where the fit has put them on the outline.
    """

    coefficients: Coefficients
    nme_percent: Tensor
    landmarks_px: Tensor


@torch.no_grad()
def fit_landmarks(
    model: MorphableModel,
    landmarks_px: Tensor,
    image_size_px: int,
    *,
    shared_identity: bool = True,
    temporal_weight: float = 1.0,
    weights: Tensor | None = None,
    settings: FitSettings | None = None,
    start: Coefficients | None = None,
) -> Fit:
    """Fit pose, identity and expression to landmarks (spec 4.2).

    Args:
        model: The model to fit.
        landmarks_px: `[T, 68, 2]` continuous pixels of a square image, y down.
        image_size_px: Side of that image.
        shared_identity: One identity for all frames (a clip), or one per frame (photographs).
        temporal_weight: Factor on the smoothness of `settings`; ignored without a shared identity.
        weights: `[T]` or `[T, 68]`, >= 0; a frame of zeros is filled in from its neighbours.
        settings: Default `FitSettings()`.
        start: T rows to start from, e.g. of a trained regressor; default the mean face in its
            orthographic pose.

    Returns:
        Coefficients on the device and in the order of the input.

    Raises:
        ValueError: If a shape is wrong, weighted landmarks are not finite, or no frame has weight.
    """
    settings = settings or FitSettings()
    frame_weights = _check_inputs(landmarks_px, weights, temporal_weight)
    if len(landmarks_px) == 0:
        empty = Coefficients.zeros(0, device=landmarks_px.device)
        return Fit(empty, landmarks_px.new_zeros(0), landmarks_px.new_zeros(0, NUM_LANDMARKS, 2))
    target, valid = _fill_gaps(landmarks_px.to(model.mean_shape), frame_weights)
    if not shared_identity:
        settings = replace(settings, pose_smoothness=0.0, expression_smoothness=0.0)
    if settings.hold_identity and start is None:
        raise ValueError("hold_identity keeps the identity of `start`, but `start` is None")
    mode: IdentityMode = "shared" if shared_identity else "free"
    if settings.hold_identity:
        mode = "fixed"
    problem = _make_problem(
        model, target, frame_weights.to(target), image_size_px, settings, temporal_weight, mode
    )
    first = None if start is None else _start_state(model, start, valid, shared_identity)
    state = _fit_clip(problem, settings, first)
    projected = project_state(slide_contour(problem, state), state)[2][..., :2]
    errors = torch.where(valid, nme_percent(projected, target), torch.nan)
    return Fit(_coefficients(model, state), errors, projected)


@torch.no_grad()
def measure_fit(
    model: MorphableModel,
    coefficients: Coefficients,
    landmarks_px: Tensor,
    image_size_px: int,
    *,
    usable: Tensor,
    settings: FitSettings | None = None,
) -> Fit:
    """Return given coefficients as a `Fit`, with the errors that `fit_landmarks` would report.

    Args:
        model: The model of the coefficients.
        coefficients: T rows.
        landmarks_px: `[T, 68, 2]` continuous pixels.
        image_size_px: Side of the square image.
        usable: `[T]` frames whose landmarks count.
        settings: Says whether jaw points slide.
    """
    weights = _check_inputs(landmarks_px, usable.float(), 0.0)
    target, valid = _fill_gaps(landmarks_px.to(model.mean_shape), weights)
    settings = settings or FitSettings()
    problem = _make_problem(model, target, weights, image_size_px, settings, 0.0, "free")
    state = _start_state(model, coefficients, valid, shared_identity=False)
    projected = project_state(slide_contour(problem, state), state)[2][..., :2]
    errors = torch.where(valid, nme_percent(projected, target), torch.nan)
    return Fit(coefficients, errors, projected)


def _check_inputs(landmarks: Tensor, weights: Tensor | None, temporal_weight: float) -> Tensor:
    """Return weights `[T, 68]` after checking shapes and values."""
    if landmarks.dim() != 3 or landmarks.shape[1:] != (NUM_LANDMARKS, 2):
        raise ValueError(f"landmarks_px must be [T, 68, 2], got {tuple(landmarks.shape)}")
    if temporal_weight < 0:
        raise ValueError(f"temporal_weight must be >= 0, got {temporal_weight}")
    count = len(landmarks)
    if weights is None:
        weights = landmarks.new_ones(count, NUM_LANDMARKS)
    if weights.shape not in ((count,), (count, NUM_LANDMARKS)):
        raise ValueError(f"weights must be [{count}] or [{count}, 68], got {tuple(weights.shape)}")
    if weights.dim() == 1:
        weights = weights[:, None].expand(count, NUM_LANDMARKS)
    weights = weights.to(landmarks)
    if bool((weights < 0).any()) or not bool(torch.isfinite(weights).all()):
        raise ValueError("weights must be finite and >= 0")
    if count and not bool((weights > 0).any()):
        raise ValueError("no frame has landmarks of positive weight; there is nothing to fit")
    wrong = ~torch.isfinite(landmarks).all(-1) & (weights > 0)
    if bool(wrong.any()):
        frame = int(wrong.any(1).nonzero()[0])
        raise ValueError(f"landmarks of frame {frame} are not finite; give that frame weight 0")
    return weights


def _fill_gaps(landmarks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Give frames without weight the landmarks of the nearest frame that has some.

    Returns:
        `[T, 68, 2]` and which frames are their own, `[T]`.
    """
    valid = (weights > 0).any(1)
    filled = landmarks[nearest_valid(valid)]
    return torch.where(torch.isfinite(filled), filled, torch.zeros_like(filled)), valid


def nearest_valid(valid: Tensor) -> Tensor:
    """Return for each of T frames the index of the nearest frame that is valid.

    Args:
        valid: `[T]`, at least one true.
    """
    known = valid.nonzero()[:, 0]
    index = torch.arange(len(valid), device=valid.device)
    place = torch.searchsorted(known, index).clamp_max(len(known) - 1)
    after, before = known[place], known[(place - 1).clamp_min(0)]
    return torch.where((index - before).abs() < (after - index).abs(), before, after)


def _start_state(
    model: MorphableModel, start: Coefficients, valid: Tensor, shared_identity: bool
) -> State:
    """Turn coefficients into a state; a shared identity is the mean of the valid frames'."""
    start = start.to(model.mean_shape.device)
    identity = start.identity
    if shared_identity:
        identity = identity[valid].mean(0, keepdim=True)
    free = torch.isfinite(model.expression_prior)
    return State(start.rotation_matrix, start.translation, identity, start.expression[:, free])


def _make_problem(
    model: MorphableModel,
    target: Tensor,
    weights: Tensor,
    image_size_px: int,
    settings: FitSettings,
    temporal_weight: float,
    mode: IdentityMode,
) -> Problem:
    mean, basis = model.landmark_basis()
    free = torch.isfinite(model.expression_prior)
    expression_basis = basis[..., model.num_identity :][..., free]
    prior = model.expression_prior[free]
    per_landmark = weights.new_ones(NUM_LANDMARKS)
    per_landmark[:NUM_JAW] = settings.jaw_weight
    per_landmark[MOUTH] = settings.mouth_weight
    num_valid = int((weights > 0).any(1).sum())
    repeats = num_valid**0.5 if mode == "shared" else 1.0
    identity_basis = basis[..., : model.num_identity]
    asymmetry = (100 / FACE_SIZE_DM) ** 2 * asymmetry_matrix(identity_basis)
    identity_prior = settings.identity_prior * torch.eye(len(asymmetry)).to(asymmetry)
    return Problem(
        mean=mean,
        identity_basis=identity_basis,
        expression_basis=expression_basis,
        lower=model.expression_lower[free],
        upper=model.expression_upper[free],
        target=target,
        weights=weights * per_landmark,
        size=(target.amax(1) - target.amin(1)).amax(1).clamp_min(1.0),
        image_size_px=image_size_px,
        identity_prior=repeats * identity_prior + settings.asymmetry_prior * asymmetry,
        expression_prior=settings.expression_prior * prior,
        pose_smoothness=temporal_weight * settings.pose_smoothness,
        expression_smoothness=temporal_weight * settings.expression_smoothness * prior,
        huber_percent=settings.huber_percent,
        identity_mode=mode,
        contour=_contour(model, free) if settings.slide_contour else None,
    )


def _contour(model: MorphableModel, free: Tensor) -> Contour | None:
    """Return the places of the jaw points with the free expression axes, if the model has some."""
    mean, basis = model.contour_basis()
    if mean.shape[1] == 0:
        return None
    identity, expression = basis.tensor_split([model.num_identity], dim=-1)
    return Contour(mean, torch.cat([expression[..., free], identity], dim=-1))


def _fit_clip(problem: Problem, settings: FitSettings, start: State | None = None) -> State:
    """Fit all frames at once, or in segments with the identity of a spread-out selection."""
    count, length = len(problem.target), settings.segment_frames
    if problem.identity_mode == "fixed":
        assert start is not None
        return _join_segments(problem, settings, start.identity, start)
    if count <= length or problem.identity_mode == "free":
        rows = [slice(i, i + length) for i in range(0, count, length)]
        return _join([_minimise(problem.frames(r), settings, None, _rows(start, r)) for r in rows])
    usable = (problem.weights > 0).any(1).nonzero()[:, 0]
    places = torch.linspace(0, len(usable) - 1, min(length // 2, len(usable)))
    chosen = usable[places.round().long()]
    selection = replace(
        problem,
        target=problem.target[chosen],
        weights=problem.weights[chosen],
        size=problem.size[chosen],
        identity_prior=problem.identity_prior * (len(chosen) / len(usable)) ** 0.5,
        pose_smoothness=0.0,
        expression_smoothness=torch.zeros_like(problem.expression_smoothness),
    )
    identity = _minimise(selection, settings, None, _rows(start, chosen)).identity
    fixed = replace(problem, identity_mode="fixed")
    return _join_segments(fixed, settings, identity, start)


def _rows(start: State | None, rows: slice | Tensor) -> State | None:
    return None if start is None else start.frames(rows)


def _join_segments(
    problem: Problem, settings: FitSettings, identity: Tensor, begin: State | None
) -> State:
    """Fit overlapping segments and keep the inner part of each."""
    count, margin = len(problem.target), settings.segment_overlap // 2
    step = settings.segment_frames - 2 * margin
    parts = []
    for start in range(0, count, step):
        end = min(start + step, count)
        first, last = max(0, start - margin), min(count, end + margin)
        rows = slice(first, last)
        state = _minimise(problem.frames(rows), settings, identity, _rows(begin, rows))
        parts.append(state.frames(slice(start - first, end - first)))
    return _join(parts)


def _join(parts: list[State]) -> State:
    common = len(parts[0].identity) == 1 and len(parts[0].rotation) != 1
    identities = [part.identity for part in parts]
    return State(
        torch.cat([part.rotation for part in parts]),
        torch.cat([part.translation for part in parts]),
        identities[0] if common else torch.cat(identities),
        torch.cat([part.expression for part in parts]),
    )


def _minimise(
    problem: Problem, settings: FitSettings, identity: Tensor | None, start: State | None = None
) -> State:
    """Run the Gauss-Newton steps from the mean face, or from a given state."""
    state = _mean_face(problem) if start is None else start
    if identity is not None:
        state = replace(state, identity=identity)
    for iteration in range(settings.iterations):
        if iteration < settings.rigid_iterations:
            state = rigid_step(problem, state)
        else:
            problem = slide_contour(problem, state)
            state = full_step(problem, state)
    return replace(state, expression=clamp_to_box(problem, state.expression))


def _mean_face(problem: Problem) -> State:
    count = len(problem.target)
    rotation, translation = orthographic_pose(problem)
    rows = count if problem.identity_mode == "free" else 1
    identity = problem.mean.new_zeros(rows, problem.identity_basis.shape[-1])
    expression = problem.mean.new_zeros(count, problem.expression_basis.shape[-1])
    return State(rotation, translation, identity, expression)


def _coefficients(model: MorphableModel, state: State) -> Coefficients:
    """Widen a state to coefficient rows; axes that landmarks cannot see are zero."""
    count = len(state.rotation)
    expression = state.expression.new_zeros(count, PACKED_SIZES["expression"])
    expression[:, torch.isfinite(model.expression_prior)] = state.expression
    return Coefficients(
        identity=state.identity.expand(count, -1).clone(),
        expression=expression,
        texture=expression.new_zeros(count, PACKED_SIZES["texture"]),
        rotation=matrix_to_euler(state.rotation),
        translation=state.translation,
        lighting=expression.new_zeros(count, PACKED_SIZES["lighting"]),
    )
