import dataclasses
import math

import pytest
import torch

from nfs.geometry.cameras import orbit_cameras
from nfs.inversion.locality import Locality, near_pivot
from nfs.inversion.noise import noise_regulariser, normalise_noise
from nfs.inversion.projector import Start, project, w_statistics
from nfs.inversion.rendering import frames_of_step, render, turned_cameras
from nfs.inversion.settings import ProjectSettings, TuneSettings
from nfs.inversion.targets import compare_with, tile_mask
from nfs.inversion.tuning import TuneOptions, trainable_parameters, tune
from nfs.perceptual import PixelDistance
from tests.unit.inversion_fakes import SIZE_PX, tiny_generator

PROJECT = ProjectSettings(num_steps=12, learning_rate=0.1, num_w_samples=20, l2_weight=1.0)
TUNE = TuneSettings(num_steps=10, learning_rate=5e-3)


@pytest.fixture
def generator():
    return tiny_generator()


@pytest.fixture
def cameras():
    return orbit_cameras(torch.tensor([0.0, 0.3]), torch.full((2,), math.pi / 2))


@pytest.fixture
def target():
    return torch.rand(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run_project(generator, target, cameras, settings=PROJECT, **options):
    return project(
        generator,
        target,
        cam2world=cameras,
        distance=PixelDistance(),
        settings=settings,
        **options,
    )


def run_tune(generator, target, cameras, settings=TUNE, options=None):
    ws = generator.mapping(torch.ones(1, generator.z_dim)).detach()
    tuning = tune(
        generator,
        target,
        ws,
        background_code=torch.zeros(1, generator.background_dim),
        cam2world=cameras,
        distance=PixelDistance(),
        settings=settings,
        options=options,
    )
    return ws, tuning


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_projection_shares_one_latent_over_frames_and_leaves_the_generator(
    generator, target, cameras
):
    before = state_of(generator)
    found = run_project(generator, target, cameras)
    assert found.ws.shape == (1, generator.num_ws, generator.w_dim)
    assert torch.equal(found.ws[:, 0], found.ws[:, -1])
    assert found.background_code.abs().max() > 0
    assert found.losses[-1]["total"] < found.losses[0]["total"]
    assert found.losses[0]["lr_factor"] == 0
    assert same_state(before, state_of(generator))
    assert all(p.requires_grad for p in generator.parameters())


def test_w_plus_lets_layers_differ_and_delta_pulls_them_together(generator, target, cameras):
    free = run_project(generator, target, cameras, dataclasses.replace(PROJECT, space="w_plus")).ws
    tied = run_project(
        generator,
        target,
        cameras,
        dataclasses.replace(PROJECT, space="w_plus", delta_weight=1000.0),
    ).ws
    spread = [(ws - ws.mean(1, keepdim=True)).square().mean().item() for ws in (free, tied)]
    assert spread[0] > 2 * spread[1]
    assert spread[0] > 0


def test_projection_is_a_function_of_the_seed(generator, target, cameras):
    torch.manual_seed(5)
    first = run_project(generator, target, cameras)
    torch.manual_seed(6)
    assert torch.equal(first.ws, run_project(generator, target, cameras).ws)
    other = run_project(generator, target, cameras, dataclasses.replace(PROJECT, seed=1))
    assert not torch.equal(first.ws, other.ws)


def test_a_killed_projection_continues_exactly(generator, target, cameras, tmp_path):
    settings = dataclasses.replace(PROJECT, save_every=3, frames_per_step=1)
    whole = run_project(generator, target, cameras, settings)
    state = tmp_path / "projection.pt"

    def kill(step, _losses):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_project(generator, target, cameras, settings, on_step=kill, state=state)
    found = run_project(generator, target, cameras, settings, state=state)
    assert torch.equal(found.ws, whole.ws)
    assert torch.equal(found.background_code, whole.background_code)
    assert found.losses == whole.losses


def test_a_given_start_is_used(generator, target, cameras):
    start = Start(ws=torch.full((1, generator.num_ws, generator.w_dim), 0.5))
    settings = dataclasses.replace(PROJECT, num_steps=1)  # learning rate 0 at step 0
    found = run_project(generator, target, cameras, settings, start=start)
    assert torch.allclose(found.ws, start.ws)
    assert found.background_code.abs().max() == 0


def test_shapes_that_do_not_fit_are_named(generator, target, cameras):
    with pytest.raises(ValueError, match=r"target must be \[T, 3, 16, 16\]"):
        run_project(generator, target[..., :8], cameras)
    with pytest.raises(ValueError, match=r"cam2world must be \[2, 4, 4\]"):
        run_project(generator, target, cameras[:1])


def test_w_statistics_follow_the_published_stream(generator):
    import numpy as np

    z = torch.from_numpy(np.random.RandomState(123).randn(30, generator.z_dim)).float()
    w = generator.mapping(z)[:, 0].detach()
    statistics = w_statistics(generator, 30)
    assert torch.allclose(statistics.mean[0, 0], w.mean(0), atol=1e-6)
    expected = ((w - w.mean(0)).square().sum() / 30).sqrt().item()
    assert abs(statistics.std - expected) < 1e-5


def test_tuning_moves_a_copy_towards_the_target(generator, target, cameras):
    before = state_of(generator)
    ws, tuning = run_tune(generator, target, cameras)
    assert tuning.losses[-1]["total"] < tuning.losses[0]["total"]
    assert same_state(before, state_of(generator))
    assert not any(p.requires_grad for p in tuning.generator.parameters())
    assert not ws.requires_grad
    unchanged = dict(generator.mapping_network.named_parameters())
    tuned = dict(tuning.generator.mapping_network.named_parameters())
    assert all(torch.equal(unchanged[name], tuned[name]) for name in unchanged)


@pytest.mark.parametrize("which", ["all", "upsampler", "field"])
def test_only_the_chosen_parameters_move(generator, target, cameras, which):
    _, tuning = run_tune(
        generator, target, cameras, dataclasses.replace(TUNE, num_steps=2, trainable=which)
    )
    chosen = trainable_parameters(generator, which)
    after = dict(tuning.generator.named_parameters())
    moved = {n for n, p in generator.named_parameters() if not torch.equal(p, after[n])}
    assert moved <= set(chosen)
    assert len(moved) > len(chosen) / 2
    parts = {name.split(".")[0] for name in moved}
    assert (
        parts
        == {
            "all": {"foreground", "background", "upsampler"},
            "upsampler": {"upsampler"},
            "field": {"foreground", "background"},
        }[which]
    )


def test_tuning_stops_when_every_frame_is_below_the_threshold(generator, target, cameras):
    _, free = run_tune(generator, target, cameras, dataclasses.replace(TUNE, frames_per_step=1))
    values = [row["perceptual"] for row in free.losses]
    threshold = max(values[-2:]) + 1e-6
    settings = dataclasses.replace(TUNE, frames_per_step=1, stop_threshold=threshold)
    _, stopped = run_tune(generator, target, cameras, settings)
    assert stopped.result.stopped == "threshold"
    assert all(row["perceptual"] <= threshold for row in stopped.losses[-2:])
    first = next(i for i in range(1, len(values)) if max(values[i - 1], values[i]) <= threshold)
    assert stopped.result.num_updates == first


def test_a_killed_tuning_continues_exactly(generator, target, cameras, tmp_path):
    settings = dataclasses.replace(TUNE, save_every=2)
    _, whole = run_tune(generator, target, cameras, settings)

    def kill(step, _generator):
        if step == 5:
            raise KeyboardInterrupt

    state = tmp_path / "tuning.pt"
    with pytest.raises(KeyboardInterrupt):
        run_tune(generator, target, cameras, settings, TuneOptions(inspect=kill, state=state))
    _, found = run_tune(generator, target, cameras, settings, TuneOptions(state=state))
    assert same_state(state_of(whole.generator), state_of(found.generator))
    assert found.losses == whole.losses


def test_locality_is_zero_for_the_original_and_pulls_back(generator, target, cameras):
    ws = generator.mapping(torch.ones(1, generator.z_dim)).detach()
    code = torch.zeros(1, generator.background_dim)
    locality = Locality(generator, ws, code, cameras, PixelDistance(), alpha=1.0)
    assert locality(generator, 3).item() == 0
    options = TuneOptions(regulariser=locality)
    base = dataclasses.replace(TUNE, locality_interval=1)
    _, free = run_tune(generator, target, cameras, base, options)
    strong = dataclasses.replace(base, locality_weight=100.0)
    _, held = run_tune(generator, target, cameras, strong, options)
    assert held.losses[-1]["locality"] < free.losses[-1]["locality"]


def test_near_pivot_has_the_wanted_distance():
    pivot, ws = torch.randn(1, 4, 8), torch.randn(3, 4, 8)
    moved = near_pivot(pivot, ws, 30.0)
    assert torch.allclose((moved - pivot).flatten(1).norm(dim=1), torch.full((3,), 30.0))


def test_frames_take_turns():
    steps = [frames_of_step(s, num_frames=3, frames_per_step=2) for s in range(3)]
    assert steps == [[0, 1], [2, 0], [1, 2]]
    assert frames_of_step(9, num_frames=2, frames_per_step=5) == [0, 1]


def test_turned_cameras_swing_about_the_vertical_axis():
    front = orbit_cameras(torch.zeros(1), torch.full((1,), 1.4))[0]
    turned = turned_cameras(front, [0.0, 20.0])
    yaw = torch.tensor([math.radians(20.0)])
    expected = orbit_cameras(yaw, torch.full((1,), 1.4))[0]
    assert torch.allclose(turned[0], front, atol=1e-6)
    assert torch.allclose(turned[1], expected, atol=1e-6)


def test_the_background_does_not_turn_with_the_camera(generator):
    ws = generator.mapping(torch.ones(1, generator.z_dim))
    cameras = orbit_cameras(torch.tensor([0.0, 0.4]), torch.full((2,), math.pi / 2))
    code = torch.ones(1, generator.background_dim)
    result = render(generator, ws, cameras, background_code=code)
    assert torch.allclose(result.background_weights[0], result.background_weights[1])


def test_what_the_mask_hides_counts_nowhere(target):
    mask = tile_mask(SIZE_PX, tiles=4, held_out=0.3)
    assert 0.6 < mask.mean() < 0.8
    comparison = compare_with(target, PixelDistance(), mask=mask)
    damaged = target + (1 - mask) * 5
    losses = comparison.losses(damaged, [0, 1])
    assert losses["l2"] == 0
    assert losses["perceptual"].abs() < 1e-6


def test_an_identity_term_needs_a_backend_that_embeds(target):
    with pytest.raises(ValueError, match="no identity embedding"):
        compare_with(target, PixelDistance(), identity=True)


def test_noise_regulariser_matches_the_recording(shared_dir):
    from safetensors.torch import load_file

    recorded = load_file(shared_dir / "parity/inversion/pti_noise_reg.safetensors")
    value = noise_regulariser([recorded["noise"]])
    assert abs(value / recorded["reg"] - 1) < 1e-6
    noise = recorded["noise"].clone()
    normalise_noise([noise])
    assert abs(noise.mean()) < 1e-6
    assert abs(noise.square().mean() - 1) < 1e-5
