import numpy as np
import pytest
import torch

from nfs.errors import NonFiniteError
from nfs.optim import LoopSettings, below, fading_noise, minimise, ramp, step_generator


def quadratic(seed=0, noise=0.1):
    """A variable pulled to 3 with noise drawn per step."""
    value = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([value], lr=0.2)

    def objective(step):
        draw = torch.randn(2, generator=step_generator(seed, step)) * noise
        return {"pull": (value + draw - 3).square().sum(), "size": value.square().sum()}

    return value, optimizer, objective


def run(num_steps=20, weights=None, **options):
    value, optimizer, objective = quadratic()
    settings = LoopSettings(
        num_steps, save_every=options.pop("save_every", 0), weights=weights or {"size": 0.0}
    )
    result = minimise(
        objective, variables={"value": value}, optimizer=optimizer, settings=settings, **options
    )
    return value.detach(), result


def test_it_minimises_and_records_every_loss():
    value, result = run(80)
    assert (value - 3).abs().max() < 0.3
    assert result.num_updates == len(result.history) == 80
    assert result.stopped == "steps"
    assert set(result.history[0]) == {"pull", "size", "total", "lr_factor"}
    assert result.history[0]["total"] == result.history[0]["pull"]


def test_the_stop_rule_is_asked_before_the_update():
    value, result = run(80, stop=below("pull", 1.0, patience=2))
    assert result.stopped == "threshold"
    assert result.num_updates == len(result.history) - 1
    again, _ = run(result.num_updates)
    assert torch.equal(value, again)
    assert all(row["pull"] <= 1 for row in result.history[-2:])
    assert result.history[-3]["pull"] > 1


@pytest.mark.parametrize("killed_after", [4, 7])
def test_a_killed_run_continues_exactly(tmp_path, killed_after):
    options = {"schedule": ramp(20), "save_every": 2}
    expected, whole = run(20, **options)

    class Killed(Exception):
        pass

    def kill(step, _losses):
        if step == killed_after:
            raise Killed

    state = tmp_path / "state.pt"
    with pytest.raises(Killed):
        run(20, state=state, after_step=kill, **options)
    value, result = run(20, state=state, **options)
    assert torch.equal(value, expected)
    assert result.history == whole.history
    assert not list(tmp_path.glob(".state*"))
    finished, once_more = run(20, state=state, **options)
    assert torch.equal(finished, expected)
    assert once_more.num_updates == 20


def test_a_run_stopped_by_the_threshold_stays_stopped(tmp_path):
    state = tmp_path / "state.pt"
    first, result = run(80, stop=below("pull", 1.0), state=state)
    second, again = run(80, stop=below("pull", 1.0), state=state)
    assert torch.equal(first, second)
    assert again.history == result.history
    assert again.stopped == "threshold"


def test_the_time_limit_stops_cleanly():
    value, optimizer, objective = quadratic()
    result = minimise(
        objective,
        variables={"value": value},
        optimizer=optimizer,
        settings=LoopSettings(50, time_limit_s=0.0),
    )
    assert result.stopped == "time"
    assert result.num_updates == 0


def test_a_bad_loss_is_named_and_nothing_moves():
    value = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=1.0)

    def objective(step):
        bad = float("nan") if step == 2 else 1.0
        return {"good": value.sum(), "perceptual_dlib": value.sum() * bad}

    with pytest.raises(NonFiniteError, match="loss/perceptual_dlib is nan at step=2"):
        minimise(objective, variables={"v": value}, optimizer=optimizer, settings=LoopSettings(9))
    assert value.item() == 1 - 2 * 2


def test_a_state_of_something_else_is_refused(tmp_path):
    state = tmp_path / "state.pt"
    run(2, state=state)
    other, optimizer, objective = quadratic()
    with pytest.raises(ValueError, match="different optimisation"):
        minimise(
            objective,
            variables={"other": other},
            optimizer=optimizer,
            settings=LoopSettings(3),
            state=state,
        )


def test_all_weights_zero_is_an_error():
    with pytest.raises(ValueError, match="weight 0"):
        run(2, weights={"pull": 0.0, "size": 0.0})


def test_draws_depend_on_seed_step_and_stream_only():
    draw = lambda *key: torch.randn(4, generator=step_generator(*key))  # noqa: E731 - short
    assert torch.equal(draw(1, 5), draw(1, 5))
    keys = [(1, 5, 0), (1, 5, 1), (1, 6, 0), (2, 5, 0), (0, 0, 0)]
    values = [tuple(draw(*key).tolist()) for key in keys]
    assert len(set(values)) == len(keys)


def test_schedules_are_those_of_the_projector(shared_dir):
    recorded = np.load(shared_dir / "parity/inversion/pti_schedule_450.npz")
    rate, noise = ramp(450), fading_noise(450)
    steps = range(450)
    assert np.abs([0.01 * rate(s) for s in steps] - recorded["lr"]).max() < 1e-12
    assert np.abs([0.05 * noise(s) for s in steps] - recorded["noise_over_wstd"]).max() < 1e-12


def test_schedule_ends():
    rate = ramp(100, up_fraction=0, down_fraction=0)
    assert rate(0) == rate(99) == 1
    assert ramp(100)(0) == 0
    assert ramp(100)(99) < 0.01
