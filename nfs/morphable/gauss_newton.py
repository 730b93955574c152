"""One Gauss-Newton step of the landmark fit (spec 4.2), batched over frames.

Unknowns per frame: a rotation increment w (R <- R exp([w])), translation t, expression e; identity
a is shared, free per frame or fixed. With x = m + I a + E e, y = R x + t and p the projection of y,
the residual is 100 (target - p) / s, percent of the face size s, so that priors do not depend on
the image scale. During the fit e may leave its bounds by a few thousandths; the caller clamps at
the end. The jaw points of turned heads slide along candidates of the surface; which one counts is a
constant of each step. Legend: T frames, L landmarks, J jaw points, C candidates, E free expression
axes, K identity axes, n = 6 + E (+ K) unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nfs.geometry.rotations import skew, so3_exp, so3_log
from nfs.morphable.contour import NUM_JAW, outermost
from nfs.morphable.projection import CAMERA_DISTANCE, focal_px, pose_points, to_screen
from nfs.morphable.tridiagonal import solve_block_tridiagonal

IdentityMode = Literal["shared", "free", "fixed"]
NUM_POSE = 6
POSE_DAMPING = 1e-3
FLOOR = 1e-5
BOUND_STIFFNESS = 3e3


@dataclass(frozen=True)
class Contour:
    """Places of the jaw points on the surface.

    Attributes:
        mean: `[J, C, 3]` on the mean face, dm.
        basis: `[J, C, 3, E + K]` expression, then identity.
    """

    mean: Tensor
    basis: Tensor


@dataclass(frozen=True)
class Problem:
    """Everything that stays constant during a fit.

    Attributes:
        mean: `[L, 3]` landmarks of the mean face, dm.
        identity_basis: `[L, 3, K]`.
        expression_basis: `[L, 3, E]`, free axes only.
        lower: `[E]` bounds, -inf where free.
        upper: `[E]` bounds, inf where free.
        target: `[T, L, 2]` pixels.
        weights: `[T, L]`, 0 for landmarks to ignore.
        size: `[T]` face size in pixels.
        image_size_px: Side of the square image.
        identity_prior: `[K, K]` precision of the identity.
        expression_prior: `[E]` precisions.
        pose_smoothness: Precision of differences of neighbouring poses (rad and dm).
        expression_smoothness: `[E]` precision of differences of neighbouring expressions.
        huber_percent: Residuals beyond this count linearly.
        identity_mode: `shared` by all frames, `free` per frame or `fixed`.
        contour: Places of the jaw points; None keeps them where they are on a frontal face.
        slide: `[T, J]` place of each jaw point at present; None: the first of all.
    """

    mean: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    lower: Tensor
    upper: Tensor
    target: Tensor
    weights: Tensor
    size: Tensor
    image_size_px: int
    identity_prior: Tensor
    expression_prior: Tensor
    pose_smoothness: float
    expression_smoothness: Tensor
    huber_percent: float
    identity_mode: IdentityMode
    contour: Contour | None = None
    slide: Tensor | None = None

    def frames(self, rows: slice) -> Problem:
        """Return the problem of some frames."""
        target, weights, size = self.target[rows], self.weights[rows], self.size[rows]
        slide = None if self.slide is None else self.slide[rows]
        return replace(self, target=target, weights=weights, size=size, slide=slide)

    @property
    def coupled(self) -> bool:
        """Whether neighbouring frames are tied together."""
        smooth = self.pose_smoothness > 0 or bool((self.expression_smoothness > 0).any())
        return smooth and len(self.target) > 1


@dataclass(frozen=True)
class State:
    """Current estimate.

    Attributes:
        rotation: `[T, 3, 3]`.
        translation: `[T, 3]` dm.
        identity: `[1, K]` shared or fixed, `[T, K]` free.
        expression: `[T, E]`.
    """

    rotation: Tensor
    translation: Tensor
    identity: Tensor
    expression: Tensor

    def frames(self, rows: slice | Tensor) -> State:
        """Return the state of some frames; a common identity stays as it is."""
        identity = self.identity if len(self.identity) == 1 else self.identity[rows]
        return State(self.rotation[rows], self.translation[rows], identity, self.expression[rows])


@dataclass(frozen=True)
class Linearised:
    """Residuals and Jacobian of some frames.

    Attributes:
        residual: `[T, L, 2]` percent of the face size.
        robust: `[T, L]` landmark weights times Huber weights.
        pose: `[T, L, 2, 6]` derivative of the projection in percent, rotation then translation.
        shape: `[T, L, 2, E + K]` derivative by expression, then identity.
    """

    residual: Tensor
    robust: Tensor
    pose: Tensor
    shape: Tensor


@dataclass(frozen=True)
class NormalEquations:
    """`H dx = g` per frame and the identity's share of it.

    Attributes:
        matrix: `[T, n, n]`.
        right: `[T, n]`, the negative half gradient.
        cross: `[T, n, K]` against the shared identity (K = 0 unless shared).
        identity_matrix: `[K, K]`.
        identity_right: `[K]`.
    """

    matrix: Tensor
    right: Tensor
    cross: Tensor
    identity_matrix: Tensor
    identity_right: Tensor


def model_points(problem: Problem, state: State) -> Tensor:
    """Return the landmarks `[T, L, 3]` in model space."""
    identity = torch.einsum("lck,tk->tlc", problem.identity_basis, state.identity)
    expression = torch.einsum("lck,tk->tlc", problem.expression_basis, state.expression)
    points = problem.mean + identity + expression
    if problem.contour is None or problem.slide is None:
        return points
    places = _contour_points(problem.contour, state)
    index = problem.slide[..., None, None].expand(-1, -1, 1, 3)
    return torch.cat([places.gather(2, index)[:, :, 0], points[:, NUM_JAW:]], dim=1)


def slide_contour(problem: Problem, state: State) -> Problem:
    """Return the problem with the jaw points of turned heads on the outline of this state."""
    if problem.contour is None:
        return problem
    places = _contour_points(problem.contour, state)
    count = len(places)
    posed = pose_points(places.flatten(1, 2), state.rotation, state.translation)
    screen = to_screen(posed, problem.image_size_px).reshape(count, NUM_JAW, -1, 3)
    return replace(problem, slide=outermost(screen[..., :2], state.rotation))


def _contour_points(contour: Contour, state: State) -> Tensor:
    """Return all places of the jaw points `[T, J, C, 3]` in model space."""
    identity = state.identity.expand(len(state.expression), -1)
    weights = torch.cat([state.expression, identity], dim=1)
    offsets = weights @ contour.basis.flatten(0, 2).T
    return contour.mean + offsets.reshape(-1, *contour.mean.shape)


def project_state(problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Return model points, posed points and pixels with depth, each `[T, L, 3]`."""
    points = model_points(problem, state)
    posed = pose_points(points, state.rotation, state.translation)
    return points, posed, to_screen(posed, problem.image_size_px)


def objective(problem: Problem, state: State) -> Tensor:
    """Return the scalar that the fit minimises."""
    _, _, screen = project_state(problem, state)
    residual = (problem.target - screen[..., :2]) * (100 / problem.size[:, None, None])
    length = residual.square().sum(-1).clamp_min(1e-20).sqrt()
    delta = problem.huber_percent
    loss = torch.where(length <= delta, length.square(), 2 * delta * length - delta**2)
    total = (problem.weights * loss).sum()
    total = total + (state.identity @ problem.identity_prior * state.identity).sum()
    total = total + (problem.expression_prior * state.expression.square()).sum()
    if problem.coupled:
        turn = so3_log(state.rotation[:-1].transpose(1, 2) @ state.rotation[1:])
        shift = state.translation.diff(dim=0)
        total = total + problem.pose_smoothness * (turn.square().sum() + shift.square().sum())
        change = state.expression.diff(dim=0).square()
        total = total + (problem.expression_smoothness * change).sum()
    return total


def linearise(problem: Problem, state: State) -> Linearised:
    """Return residuals, robust weights and derivatives at a state."""
    points, posed, screen = project_state(problem, state)
    scale = 100 / problem.size[:, None, None]
    residual = (problem.target - screen[..., :2]) * scale
    length = residual.norm(dim=-1).clamp_min(1e-12)
    robust = problem.weights * (problem.huber_percent / length).clamp_max(1.0)
    depth = CAMERA_DISTANCE - posed[..., 2]
    gain = scale[..., 0] * focal_px(problem.image_size_px) / depth
    camera = residual.new_zeros(*residual.shape, 3)
    camera[..., 0, 0], camera[..., 1, 1] = gain, -gain
    camera[..., 0, 2] = gain * posed[..., 0] / depth
    camera[..., 1, 2] = -gain * posed[..., 1] / depth
    model = camera @ state.rotation[:, None]
    pose = torch.cat([-(model @ skew(points)), camera], dim=-1)
    basis = torch.cat([problem.expression_basis, problem.identity_basis], dim=-1)
    by_landmark = model.permute(1, 0, 2, 3).flatten(1, 2) @ basis
    by_frame = by_landmark.reshape(len(by_landmark), -1, 2, by_landmark.shape[-1])
    shape = by_frame.permute(1, 0, 2, 3)
    if problem.contour is not None and problem.slide is not None:
        jaw = torch.arange(NUM_JAW, device=shape.device)
        moved = model[:, :NUM_JAW] @ problem.contour.basis[jaw, problem.slide]
        shape = torch.cat([moved, shape[:, NUM_JAW:]], dim=1)
    return Linearised(residual, robust, pose, shape)


def rigid_step(problem: Problem, state: State) -> State:
    """Improve only the poses; frames are independent."""
    linear = linearise(problem, state)
    jacobian = linear.pose.flatten(1, 2)
    weights = linear.robust.repeat_interleave(2, dim=1)[..., None]
    matrix = jacobian.transpose(1, 2) @ (weights * jacobian)
    right = (weights * jacobian).transpose(1, 2) @ linear.residual.flatten(1)[..., None]
    damping = POSE_DAMPING * matrix.diagonal(dim1=1, dim2=2) + FLOOR
    factor = torch.linalg.cholesky(matrix + torch.diag_embed(damping))
    step = torch.cholesky_solve(right, factor)[..., 0]
    return replace(
        state,
        rotation=state.rotation @ so3_exp(step[:, :3]),
        translation=state.translation + step[:, 3:],
    )


def full_step(problem: Problem, state: State, *, chunk_frames: int = 128) -> State:
    """Improve all unknowns by one Gauss-Newton step."""
    rows = [slice(i, i + chunk_frames) for i in range(0, len(problem.target), chunk_frames)]
    parts = [_data_equations(problem.frames(r), state.frames(r)) for r in rows]
    equations = NormalEquations(
        torch.cat([part.matrix for part in parts]),
        torch.cat([part.right for part in parts]),
        torch.cat([part.cross for part in parts]),
        torch.stack([part.identity_matrix for part in parts]).sum(0),
        torch.stack([part.identity_right for part in parts]).sum(0),
    )
    coupling = _add_priors(problem, state, equations)
    _add_bounds(problem, state, equations)
    step, identity_step = _solve(problem, equations, coupling)
    num_expression = state.expression.shape[1]
    expression = state.expression + step[:, NUM_POSE : NUM_POSE + num_expression]
    identity = state.identity
    if problem.identity_mode == "free":
        identity = identity + step[:, NUM_POSE + num_expression :]
    elif problem.identity_mode == "shared":
        identity = identity + identity_step
    return State(
        state.rotation @ so3_exp(step[:, :3]),
        state.translation + step[:, 3:NUM_POSE],
        identity,
        expression,
    )


def _data_equations(problem: Problem, state: State) -> NormalEquations:
    """Sum `J^T W J` and `J^T W r` of some frames."""
    linear = linearise(problem, state)
    num_expression = state.expression.shape[1]
    free = problem.identity_mode == "free"
    own = linear.shape if free else linear.shape[..., :num_expression]
    jacobian = torch.cat([linear.pose, own], dim=-1).flatten(1, 2)
    weights = linear.robust.repeat_interleave(2, dim=1)[..., None]
    weighted = (weights * jacobian).transpose(1, 2)
    residual = linear.residual.flatten(1)[..., None]
    num_identity = problem.identity_basis.shape[-1] if problem.identity_mode == "shared" else 0
    identity = linear.shape[..., num_expression:][..., :num_identity].flatten(1, 2)
    flat = identity.flatten(0, 1)
    flat_weighted = (weights * identity).flatten(0, 1).T
    return NormalEquations(
        weighted @ jacobian,
        (weighted @ residual)[..., 0],
        weighted @ identity,
        flat_weighted @ flat,
        (flat_weighted @ residual.flatten(0, 1))[..., 0],
    )


def _add_priors(problem: Problem, state: State, equations: NormalEquations) -> Tensor:
    """Add damping, priors and temporal terms in place; return the coupling `[n]` of neighbours."""
    matrix, right = equations.matrix, equations.right
    num_expression = state.expression.shape[1]
    expression = slice(NUM_POSE, NUM_POSE + num_expression)
    diagonal = torch.full_like(right, FLOOR)
    diagonal[:, :NUM_POSE] += POSE_DAMPING * matrix.diagonal(dim1=1, dim2=2)[:, :NUM_POSE]
    diagonal[:, expression] += problem.expression_prior
    right[:, expression] -= problem.expression_prior * state.expression
    if problem.identity_mode == "free":
        matrix[:, expression.stop :, expression.stop :] += problem.identity_prior
        right[:, expression.stop :] -= state.identity @ problem.identity_prior
    elif problem.identity_mode == "shared":
        equations.identity_matrix.add_(problem.identity_prior)
        equations.identity_right.sub_(problem.identity_prior @ state.identity[0])
    coupling = torch.zeros_like(right[0])
    if problem.coupled:
        coupling[:NUM_POSE] = problem.pose_smoothness
        coupling[expression] = problem.expression_smoothness
        turn = so3_log(state.rotation[:-1].transpose(1, 2) @ state.rotation[1:])
        change = torch.zeros_like(right[1:])
        change[:, :3], change[:, 3:NUM_POSE] = turn, state.translation.diff(dim=0)
        change[:, expression] = state.expression.diff(dim=0)
        right[:-1] += coupling * change
        right[1:] -= coupling * change
        diagonal[:-1] += coupling
        diagonal[1:] += coupling
    matrix.diagonal(dim1=1, dim2=2).add_(diagonal)
    return coupling


def _add_bounds(problem: Problem, state: State, equations: NormalEquations) -> None:
    """Tie expressions that left the box to its border, in place.

    With a stiff penalty this is the primal-dual active-set iteration: an axis is released when the
    solution itself comes back inside (Hintermueller, Ito and Kunisch 2002).
    """
    expression = slice(NUM_POSE, NUM_POSE + state.expression.shape[1])
    excess = state.expression - clamp_to_box(problem, state.expression)
    stiffness = BOUND_STIFFNESS * (excess != 0)
    equations.matrix.diagonal(dim1=1, dim2=2)[:, expression].add_(stiffness)
    equations.right[:, expression].sub_(BOUND_STIFFNESS * excess)


def clamp_to_box(problem: Problem, expression: Tensor) -> Tensor:
    """Return the nearest expressions `[T, E]` inside the bounds."""
    return torch.minimum(torch.maximum(expression, problem.lower), problem.upper)


def _solve(problem: Problem, equations: NormalEquations, coupling: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the per-frame steps `[T, n]` and the identity step `[K]` (Schur complement)."""
    right = torch.cat([equations.right[..., None], equations.cross], dim=-1)
    if problem.coupled:
        upper = torch.diag(-coupling).expand(len(right) - 1, -1, -1)
        solved = solve_block_tridiagonal(equations.matrix, upper, right)
    else:
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(equations.matrix))
    own, through = solved[..., 0], solved[..., 1:]
    if problem.identity_mode != "shared":
        return own, own.new_zeros(0)
    schur = equations.identity_matrix - torch.einsum("tnk,tnm->km", equations.cross, through)
    reduced = equations.identity_right - torch.einsum("tnk,tn->k", equations.cross, own)
    identity_step = torch.linalg.solve((schur + schur.T) / 2, reduced)
    return own - through @ identity_step, identity_step
