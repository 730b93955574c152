"""Landmark fit, block-tridiagonal solver, appearance, fit by rendering."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfs.geometry.rotations import euler_to_matrix, so3_exp
from nfs.morphable.appearance import fit_appearance, with_appearance
from nfs.morphable.clip_fit import fit_clip_frames
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.contour import asymmetry_matrix
from nfs.morphable.gauss_newton import State, clamp_to_box, objective
from nfs.morphable.landmark_fit import (
    FitSettings,
    _check_inputs,
    _fill_gaps,
    _fit_clip,
    _make_problem,
    fit_landmarks,
)
from nfs.morphable.loading import load_model
from nfs.morphable.metrics import eye_distance_px, lip_gap_px, nme_percent
from nfs.morphable.model import MorphableModel
from nfs.morphable.photometric_fit import PhotometricSettings, fit_photometric
from nfs.morphable.projection import pose_points, project_points
from nfs.morphable.shading import render
from nfs.morphable.tridiagonal import solve_block_tridiagonal

SIZE = 256
FIXED_JAW = FitSettings(slide_contour=False)


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return load_model()


def synthetic(head: MorphableModel, frames: int, seed: int = 0) -> Coefficients:
    """A head that turns, speaks and blinks."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 6.28, frames)[:, None]
    truth = Coefficients.zeros(frames)
    rates = 1 + torch.rand(1, 64, generator=generator)
    phases = 6 * torch.rand(1, 64, generator=generator)
    expression = 0.15 * (1 + torch.sin(time * rates + phases))
    expression[:, ~torch.isfinite(head.expression_prior)] = 0
    rotation = torch.cat([0.1 * torch.sin(time), 0.3 * torch.sin(time + 1), 0.05 * time.cos()], 1)
    translation = torch.cat([0.1 * time.sin(), 0.1 * time.cos(), 0.2 * time.sin()], 1)
    identity = (0.6 * torch.randn(1, 80, generator=generator)).expand(frames, -1)
    return replace(
        truth, identity=identity, expression=expression, rotation=rotation, translation=translation
    )


def landmarks(head: MorphableModel, coefficients: Coefficients) -> torch.Tensor:
    points = head.landmarks(coefficients.identity, coefficients.expression)
    posed = pose_points(points, coefficients.rotation_matrix, coefficients.translation)
    return project_points(posed, SIZE)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_block_tridiagonal_solver_is_exact(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    upper = torch.randn(count - 1, size, size, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    diagonal = noise @ noise.transpose(1, 2) + 30 * torch.eye(size, dtype=torch.float64)
    right = torch.randn(count, size, 3, generator=generator, dtype=torch.float64)
    dense = torch.block_diag(*diagonal)
    for i in range(count - 1):
        rows, columns = slice(i * size, (i + 1) * size), slice((i + 1) * size, (i + 2) * size)
        dense[rows, columns], dense[columns, rows] = upper[i], upper[i].T
    expected = torch.linalg.solve(dense, right.flatten(0, 1)).reshape(right.shape)
    assert torch.allclose(solve_block_tridiagonal(diagonal, upper, right), expected, atol=1e-9)


def test_clip_fit_recovers_pose_and_landmarks(head):
    truth = synthetic(head, 24)
    target = landmarks(head, truth)
    noise = 0.4 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    fit = fit_landmarks(head, target + noise, SIZE)
    turn = fit.coefficients.rotation_matrix.transpose(1, 2) @ truth.rotation_matrix
    angle = torch.rad2deg(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos())
    assert fit.nme_percent.median() < 1.3
    assert nme_percent(fit.landmarks_px, target).median() < 1.0
    assert angle.median() < 3
    inner = landmarks(head, fit.coefficients)[:, 17:]
    assert torch.allclose(inner, fit.landmarks_px[:, 17:], atol=1e-3)
    gap, true_gap = lip_gap_px(fit.landmarks_px), lip_gap_px(target)
    assert torch.corrcoef(torch.stack([gap, true_gap]))[0, 1] > 0.97


def test_identity_is_shared_or_free(head):
    target = landmarks(head, synthetic(head, 6))
    shared = fit_landmarks(head, target, SIZE).coefficients.identity
    free = fit_landmarks(head, target, SIZE, shared_identity=False).coefficients.identity
    assert torch.equal(shared, shared[:1].expand(6, -1))
    assert not torch.allclose(free[0], free[1])


def test_a_photo_alone_equals_a_photo_in_a_batch(head):
    target = landmarks(head, synthetic(head, 5))
    batch = fit_landmarks(head, target, SIZE, shared_identity=False).coefficients.pack()
    alone = fit_landmarks(head, target[3:4], SIZE, shared_identity=False).coefficients.pack()
    assert torch.allclose(batch[3:4], alone, atol=2e-3)


def test_fit_is_deterministic(head):
    target = landmarks(head, synthetic(head, 5))
    first = fit_landmarks(head, target, SIZE).coefficients.pack()
    assert torch.equal(first, fit_landmarks(head, target, SIZE).coefficients.pack())


def test_expressions_stay_in_the_box_and_unseen_axes_are_zero(head):
    target = landmarks(head, synthetic(head, 8))
    wild = target + 4 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    expression = fit_landmarks(head, wild, SIZE).coefficients.expression
    assert (expression >= head.expression_lower).all()
    assert (expression <= head.expression_upper).all()
    unseen = [n.startswith(("eyeLook", "tongueOut", "cheekPuff")) for n in head.expression_names]
    assert sum(unseen) == 10
    assert not expression[:, unseen].any()


def test_temporal_weight_smooths(head):
    target = landmarks(head, synthetic(head, 16))
    noisy = target + torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    rough, smooth = (
        fit_landmarks(head, noisy, SIZE, temporal_weight=w).coefficients.expression.diff(dim=0)
        for w in (0.0, 5.0)
    )
    assert smooth.abs().mean() < 0.6 * rough.abs().mean()


def problem_of(head: MorphableModel, target: torch.Tensor, mode: str, temporal: float):
    weights = _check_inputs(target, None, temporal)
    return _make_problem(head, target, weights, SIZE, FIXED_JAW, temporal, mode)


@pytest.mark.parametrize(("mode", "temporal"), [("shared", 1.0), ("free", 0.0)])
def test_gauss_newton_reaches_what_adam_reaches(head, mode, temporal):
    target = landmarks(head, synthetic(head, 3))
    target = target + torch.randn(target.shape, generator=torch.Generator().manual_seed(4))
    problem = problem_of(head, target, mode, temporal)
    state = _fit_clip(problem, replace(FIXED_JAW, iterations=14))
    ours = objective(problem, state)
    turn = torch.zeros(3, 3, requires_grad=True)
    variables = [
        turn,
        *(
            x.clone().requires_grad_()
            for x in (state.translation, state.identity, state.expression)
        ),
    ]
    # Adam starts beside our solution and must not find anything better inside the box.
    with torch.no_grad():
        for variable in variables:
            variable += 0.02 * torch.randn(
                variable.shape, generator=torch.Generator().manual_seed(5)
            )
    adam, best = torch.optim.Adam(variables, lr=3e-3), torch.inf
    for step in range(240):
        if step == 160:
            adam.param_groups[0]["lr"] = 3e-4
        moved = State(state.rotation @ so3_exp(turn), *variables[1:])
        value = objective(problem, moved)
        best = min(best, float(value.detach()))
        adam.zero_grad()
        value.backward()
        adam.step()
        with torch.no_grad():
            variables[3].copy_(clamp_to_box(problem, variables[3]))
    assert float(ours) < 1.005 * best


def test_long_clips_are_fitted_in_segments(head):
    truth = synthetic(head, 96)
    target = landmarks(head, truth)
    settings_ = FitSettings(segment_frames=48, segment_overlap=16)
    whole = fit_landmarks(head, target, SIZE)
    parts = fit_landmarks(head, target, SIZE, settings=settings_)
    assert parts.nme_percent.median() < whole.nme_percent.median() + 0.3
    steps = parts.coefficients.rotation.diff(dim=0).norm(dim=1)
    assert steps.max() < 3 * truth.rotation.diff(dim=0).norm(dim=1).max()
    assert len(set(map(tuple, parts.coefficients.identity.tolist()))) == 1


def test_frames_without_landmarks_are_filled_in(head):
    target = landmarks(head, synthetic(head, 40))[:12]
    broken = target.clone()
    broken[4:7] = torch.nan
    weights = torch.ones(12)
    weights[4:7] = 0
    fit = fit_landmarks(head, broken, SIZE, weights=weights)
    assert torch.isnan(fit.nme_percent[4:7]).all()
    assert torch.isfinite(fit.coefficients.pack()).all()
    assert (fit.landmarks_px[5] - target[5]).norm(dim=-1).mean() < 6
    result = fit_clip_frames(head, broken, SIZE)
    assert result.usable.tolist() == [True] * 4 + [False] * 3 + [True] * 5


def test_gaps_take_the_nearest_frame():
    values = torch.arange(5.0)[:, None, None].expand(5, 68, 2)
    weights = torch.tensor([0.0, 1, 0, 0, 1])[:, None].expand(5, 68)
    filled, valid = _fill_gaps(values, weights)
    assert filled[:, 0, 0].tolist() == [1, 1, 1, 4, 4]
    assert valid.tolist() == [False, True, False, False, True]


def test_huber_ignores_a_wild_landmark(head):
    target = landmarks(head, synthetic(head, 4))
    wild = target.clone()
    wild[:, 30] += 60
    fit = fit_landmarks(head, wild, SIZE)
    others = [i for i in range(68) if i != 30]
    assert (fit.landmarks_px - target)[:, others].norm(dim=-1).mean() < 2


def outline(head: MorphableModel, truth: Coefficients) -> torch.Tensor:
    """Landmarks whose jaw points of the far side lie on the outline, as detectors see them."""
    target = landmarks(head, truth)
    shape = head.vertices(truth.identity, truth.expression)
    points = head.landmarks_of(shape)
    skin = shape[:, head.vertex_groups["skin"]]
    screen = project_points(pose_points(skin, truth.rotation_matrix, truth.translation), SIZE)
    for jaw in (i for i in range(17) if i != 8):
        side = -1 if jaw < 8 else 1
        near = (skin[..., 1] - points[:, jaw, None, 1]).abs() < 0.05
        near &= (skin[..., 2] > points[:, jaw, None, 2]) & (side * skin[..., 0] > 0)
        outward = torch.where(near, side * screen[..., 0], -torch.inf).amax(1)
        target[:, jaw, 0] = side * torch.maximum(outward, side * target[:, jaw, 0])
    return target


def turned(head: MorphableModel, yaw_rad: float, frames: int = 4, seed: int = 0) -> Coefficients:
    truth = synthetic(head, frames, seed)
    rotation = torch.zeros(frames, 3)
    rotation[:, 1] = yaw_rad
    return replace(truth, rotation=rotation)


@pytest.mark.parametrize("yaw_rad", [-0.55, 0.55])
def test_jaw_points_of_a_turned_head_slide_along_the_outline(head, yaw_rad):
    truth = turned(head, yaw_rad)
    target = outline(head, truth)
    moved = (target - landmarks(head, truth)).norm(dim=-1)[:, :17].mean(0)
    far, near = (moved[9:], moved[:8]) if yaw_rad > 0 else (moved[:8], moved[9:])
    assert far.mean() > 3 * near.mean()
    other = turned(head, yaw_rad, seed=1)
    cases = [(truth, target), (other, outline(head, other))]

    def yaw_bias(settings: FitSettings) -> torch.Tensor:
        fits = [fit_landmarks(head, points, SIZE, settings=settings) for _, points in cases]
        turns = torch.cat([fit.coefficients.rotation[:, 1] for fit in fits])
        return (turns - yaw_rad).mean().abs()

    assert yaw_bias(FitSettings()) < 0.75 * yaw_bias(FIXED_JAW)


def test_a_frontal_head_keeps_its_jaw_points(head):
    target = landmarks(head, turned(head, 0.0))
    sliding, fixed = (fit_landmarks(head, target, SIZE, settings=s) for s in (None, FIXED_JAW))
    assert torch.equal(sliding.landmarks_px, fixed.landmarks_px)


def test_candidates_start_at_the_landmark_and_move_inwards(head):
    mean, _ = head.contour_basis()
    jaw = head.landmarks(torch.zeros(1, 80), torch.zeros(1, 64))[0, :17]
    assert torch.allclose(mean[:, 0], jaw, atol=1e-5)
    assert (mean[:, :, 0].abs().diff(dim=1) <= 1e-5).all()
    assert (mean[:, :, 1] - jaw[:, None, 1]).abs().max() < 1e-4
    assert (mean[1:16, -1, 2] >= jaw[1:16, 2] - 0.02).all()


def test_asymmetry_prior_straightens_a_photo_taken_from_one_side(head):
    truth = turned(head, 0.45, frames=6)
    points = outline(head, truth)
    noisy = points + torch.randn(points.shape, generator=torch.Generator().manual_seed(6))
    matrix = asymmetry_matrix(head.landmark_basis()[1][..., :80])
    crooked, straight = (
        fit_landmarks(
            head,
            noisy,
            SIZE,
            shared_identity=False,
            settings=FitSettings(asymmetry_prior=prior),
        )
        for prior in (0.0, 2.0)
    )

    def asymmetry(fit):
        identity = fit.coefficients.identity
        return (identity @ matrix * identity).sum(1).sqrt().mean()

    assert asymmetry(straight) < 0.5 * asymmetry(crooked)
    assert straight.nme_percent.mean() < crooked.nme_percent.mean() + 0.3


def test_a_held_identity_is_kept_while_poses_are_found(head):
    truth = synthetic(head, 10)
    target = landmarks(head, truth)
    start = replace(truth, rotation=truth.rotation + 0.1)
    held = FitSettings(hold_identity=True)
    fit = fit_landmarks(head, target, SIZE, settings=held, start=start)
    assert torch.allclose(fit.coefficients.identity, truth.identity)
    assert (fit.coefficients.rotation - truth.rotation).abs().max() < 0.04
    with pytest.raises(ValueError, match="hold_identity"):
        fit_landmarks(head, target, SIZE, settings=held)


def test_gaze_and_tongue_do_not_absorb_noise(head):
    """Shaken landmarks change what they can see, and nothing else."""
    target = landmarks(head, turned(head, 0.1))
    shaken = target + 2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(7))
    change = (
        (
            fit_landmarks(head, shaken, SIZE).coefficients.expression
            - fit_landmarks(head, target, SIZE).coefficients.expression
        )
        .abs()
        .amax(0)
    )
    names = head.expression_names
    assert all(change[i] == 0 for i, n in enumerate(names) if n.startswith(("eyeLook", "tongue")))
    assert change[names.index("jawOpen")] > 0.01


def test_empty_and_bad_inputs(head):
    assert len(fit_landmarks(head, torch.zeros(0, 68, 2), SIZE).coefficients) == 0
    with pytest.raises(ValueError, match=r"must be \[T, 68, 2\]"):
        fit_landmarks(head, torch.zeros(2, 5, 2), SIZE)
    bad = landmarks(head, synthetic(head, 2))
    bad[1, 0] = torch.inf
    with pytest.raises(ValueError, match="frame 1 are not finite"):
        fit_landmarks(head, bad, SIZE)
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_landmarks(head, torch.zeros(2, 68, 2), SIZE, weights=torch.zeros(2))
    with pytest.raises(ValueError, match="weights must be"):
        fit_landmarks(head, torch.zeros(2, 68, 2), SIZE, weights=torch.zeros(3))


def test_collapsed_landmarks_give_finite_numbers(head):
    fit = fit_landmarks(head, torch.full((2, 68, 2), 128.0), SIZE)
    assert torch.isfinite(fit.coefficients.pack()).all()


def test_metrics():
    points = torch.zeros(1, 68, 2)
    points[:, 42:48, 0] = 50
    points[:, 65:68, 1] = 7
    assert eye_distance_px(points).tolist() == [50]
    assert nme_percent(points + torch.tensor([3.0, 4.0]), points).tolist() == [10]
    assert lip_gap_px(points).tolist() == [7]


def test_appearance_is_recovered(head):
    truth = Coefficients.zeros(2)
    truth.rotation[1, 1] = 0.3
    truth.lighting[:] = 0.1 * torch.randn(27, generator=torch.Generator().manual_seed(0))
    truth.texture[:] = torch.randn(80, generator=torch.Generator().manual_seed(1))
    images = render(head, truth, 96).image.permute(0, 3, 1, 2)
    start = replace(truth, texture=torch.zeros(2, 80), lighting=torch.zeros(2, 27))
    appearance = fit_appearance(head, start, images)
    assert appearance.photometric_l1.max() < 0.03
    again = render(head, with_appearance(start, appearance), 96)
    inner = again.mask & (again.image.sum(-1) > 0)
    assert (again.image - images.permute(0, 2, 3, 1))[inner].abs().mean() < 0.08


def test_fit_by_rendering_lowers_its_objective(head):
    truth = synthetic(head, 1)
    images = render(head, truth, 64).image.clamp(0, 1)
    target = landmarks(head, truth) * 64 / SIZE
    start = replace(truth, translation=truth.translation + 0.1)
    before = start.pack().clone()
    fit = fit_photometric(
        head,
        images,
        target,
        start=start,
        settings=PhotometricSettings(rigid_steps=3, joint_steps=6),
    )
    for stage in (fit.rigid, fit.joint):
        assert stage.history[-1]["total"] < stage.history[0]["total"]
    assert torch.equal(start.pack(), before)


def test_rotation_convention_of_the_fit(head):
    truth = replace(Coefficients.zeros(1), rotation=torch.tensor([[0.1, -0.4, 0.2]]))
    fit = fit_landmarks(head, landmarks(head, truth), SIZE)
    assert torch.allclose(fit.coefficients.rotation, truth.rotation, atol=0.02)
    matrix = euler_to_matrix(fit.coefficients.rotation)
    assert torch.allclose(matrix, fit.coefficients.rotation_matrix)
