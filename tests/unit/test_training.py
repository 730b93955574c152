import copy
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfs.errors import ArtifactError, ConfigError, NonFiniteError
from nfs.runtime.local import LocalContext
from nfs.runtime.progress import Progress, read_progress, read_warnings
from nfs.runtime.state_mirror import StateMirror
from nfs.tracking.jsonl import JsonlTracker
from nfs.training import Evaluation, LoopSettings, train
from nfs.training.checkpoint import read_model, read_weights, write_checkpoint
from nfs.training.ema import Ema, ema_beta
from nfs.training.guard import check_finite
from nfs.training.sampler import SeekableSampler
from nfs.training.state import load_state, snapshot
from tests.toy import LineDataset, LineTask, line_worker


def losses(directory: Path) -> dict[int, float]:
    rows = JsonlTracker(directory / "tracking", "r").read()
    return {r["step"]: r["metrics"]["loss/line"] for r in rows if "loss/line" in r["metrics"]}


def run(directory: Path, on_report=None, **tree):
    tracker = JsonlTracker(directory / "tracking", "r")
    return line_worker({"total_samples": 96, **tree}, LocalContext(directory, tracker, on_report))


def test_run_ends_with_checkpoint_and_metrics(tmp_path):
    result = run(tmp_path)
    assert result["train/samples_seen"] == 96
    assert read_model(tmp_path / "checkpoint")["kind"] == "line"
    assert set(read_weights(tmp_path / "checkpoint")) == {"weight", "bias"}
    assert sorted(losses(tmp_path)) == list(range(8, 97, 8))
    assert read_progress(tmp_path) == Progress(96, 96, "samples")


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    whole = run(tmp_path / "whole")
    stop = iter([True, False])
    run(tmp_path / "cut", on_report=lambda _: next(stop))
    cut = run(tmp_path / "cut")
    assert cut == whole
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    a, b = (load_state(LocalContext(tmp_path / n, None).latest()) for n in ("whole", "cut"))
    torch.testing.assert_close(a.task, b.task, rtol=0, atol=0)


def mirrored(directory: Path, states: str, **hooks):
    tracker = JsonlTracker(directory / "tracking", "r")
    return line_worker(
        {"total_samples": 96}, LocalContext(directory, tracker, states=states, **hooks)
    )


def test_lost_machine_goes_on_from_the_copied_states(tmp_path):
    whole = run(tmp_path / "whole")
    states = f"file://{tmp_path}/states"
    stop = iter([True, False])
    mirrored(tmp_path / "first", states, on_report=lambda _: next(stop))
    shutil.rmtree(tmp_path / "first")
    assert mirrored(tmp_path / "second", states) == whole
    # What was computed on the lost machine is not computed again.
    assert min(losses(tmp_path / "second")) > 8
    kept = {p.parent.name for p in (tmp_path / "states").rglob("state.pt")}
    assert kept == set(map("{:06d}".format, StateMirror(states).numbers()))
    assert len(kept) == 2


def test_torn_copy_of_a_state_is_never_taken(tmp_path):
    states = f"file://{tmp_path}/states"
    stop = iter([True, False])
    mirrored(tmp_path / "first", states, on_report=lambda _: next(stop))
    newest = StateMirror(states).numbers()[-1]
    torn = tmp_path / "states" / f"{newest + 1:06d}"
    torn.mkdir()
    (torn / "state.pt").write_bytes(b"torn")
    context = LocalContext(tmp_path / "second", None, states=states)
    assert context.latest().name == f"{newest:06d}"
    mirrored(tmp_path / "second", states)
    kept = {p.parent.name for p in (tmp_path / "states").rglob("state.pt")}
    assert kept == set(map("{:06d}".format, StateMirror(states).numbers()))


def test_finished_run_does_nothing_again(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "tracking" / "metrics.jsonl").read_text()
    assert run(tmp_path)["train/samples_seen"] == first["train/samples_seen"]
    assert (tmp_path / "tracking" / "metrics.jsonl").read_text() == before


def test_nan_stops_before_the_step_and_names_the_term(tmp_path):
    with pytest.raises(NonFiniteError, match=r"loss/line is nan"):
        run(tmp_path, poison_at=40)
    state = load_state(LocalContext(tmp_path, None).latest())
    assert state.samples_seen == 32
    assert all(torch.isfinite(v).all() for v in state.task["model"].values())


def test_torn_state_is_reported_with_its_place(tmp_path):
    run(tmp_path)
    latest = LocalContext(tmp_path, None).latest()
    (latest / "state.pt").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"state\.pt.*delete this directory"):
        run(tmp_path)


def test_half_written_state_is_never_seen(tmp_path):
    context = LocalContext(tmp_path, None)

    def fail(folder):
        (folder / "x").write_text("half")
        raise OSError("disk full")

    context.save(fail, {})
    with pytest.raises(OSError, match="disk full"):
        context.settle()
    assert context.latest() is None
    context.save(lambda folder: (folder / "x").touch(), {})
    context.settle()
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["000000"]


def test_a_failed_write_ends_the_run_at_the_next_state(tmp_path):
    context = LocalContext(tmp_path, None)
    context.save(lambda folder: (folder / "missing" / "x").touch(), {})
    with pytest.raises(OSError, match="missing"):
        context.save(lambda folder: None, {})


def test_states_are_written_while_the_caller_goes_on(tmp_path):
    context, go_on, order = LocalContext(tmp_path, None), threading.Event(), []

    def write(folder):
        assert go_on.wait(20)
        order.append("written")

    context.save(write, {})
    assert context.latest() is None
    order.append("returned")
    go_on.set()
    context.save(lambda folder: order.append("second"), {})
    context.settle()
    assert order == ["returned", "written", "second"]
    assert context.latest().name == "000001"


def test_snapshot_shares_nothing_that_a_step_changes(tmp_path):
    task = LineTask()
    task.setup(LocalContext(tmp_path, None))
    task.train_step({"x": torch.ones(8), "y": torch.zeros(8)}, 0)
    state = snapshot(task.state_dict())
    before = copy.deepcopy(state)
    task.train_step({"x": torch.ones(8), "y": torch.zeros(8)}, 8)
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    assert not torch.equal(state["model"]["weight"], task.model.weight)
    assert state["model"]._metadata == task.model.state_dict()._metadata


def test_only_the_newest_states_are_kept(tmp_path):
    run(tmp_path)
    names = sorted(p.name for p in (tmp_path / "states").iterdir() if not p.name.startswith("."))
    assert len(names) == 2


def test_batch_must_be_shared_evenly(tmp_path):
    context = LocalContext(tmp_path, JsonlTracker(tmp_path, "r"))
    context.world_size = 3
    settings = LoopSettings(8, 8, 8, 8, 8)
    with pytest.raises(ConfigError, match=r"batch_size=8 is not divisible by .*3"):
        train(LineTask(), None, settings, context)


@given(st.integers(1, 50), st.integers(0, 5), st.sampled_from([1, 2, 4]), st.integers(0, 20))
def test_order_is_a_permutation_per_epoch_and_independent_of_ranks(n, seed, world, step):
    batch = 8
    whole = SeekableSampler(n, seed)
    split = [
        SeekableSampler(n, seed).item_at(p)
        for r in range(world)
        for p in whole.rank_positions(step * batch, batch_size=batch, rank=r, world_size=world)
    ]
    together = [whole.item_at(p) for p in range(step * batch, (step + 1) * batch)]
    assert sorted(split) == sorted(together)
    assert sorted(whole.item_at(p) for p in range(3 * n, 4 * n)) == list(range(n))


def test_order_is_numpys_permutation():
    from nfs.runtime.seeding import derive_seed

    rng = np.random.default_rng(derive_seed("order", 4, 1))
    sampler = SeekableSampler(1000, 4)
    assert [sampler.item_at(p) for p in range(1000, 2000)] == rng.permutation(1000).tolist()
    assert sampler.item_at(5) == SeekableSampler(1000, 4).item_at(5)


def test_check_finite_names_the_first_bad_term():
    terms = {"loss/a": torch.ones(()), "loss/b": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match="loss/b is inf at samples_seen=3"):
        check_finite(terms, "samples_seen=3")


def test_ema_half_life():
    assert ema_beta(1000, 1.0) == 0.5
    module = torch.nn.BatchNorm1d(2)
    ema = Ema(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(7.0)
    ema.update(module, 0.5)
    assert ema.module.weight.tolist() == [2.0, 2.0]
    assert ema.module.running_mean.tolist() == [7.0, 7.0]


def test_checkpoint_round_trip(tmp_path):
    weights = {"w": torch.arange(6.0).view(2, 3).T}
    write_checkpoint(tmp_path, weights, model={"kind": "m", "size": 3}, ema={"w": weights["w"] + 1})
    assert json.loads((tmp_path / "model.json").read_text())["size"] == 3
    torch.testing.assert_close(read_weights(tmp_path)["w"], weights["w"] + 1)
    torch.testing.assert_close(read_weights(tmp_path, ema=False)["w"], weights["w"])
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        read_model(tmp_path / "nowhere")


def test_item_noise_depends_on_position_not_on_rank():
    from nfs.runtime.seeding import derive_seed
    from nfs.training.loading import BatchReader
    from tests.toy import LineDataset

    readers = [
        BatchReader(LineDataset(), seed=0, batch_size=8, rank=rank, world_size=2)
        for rank in range(2)
    ]
    first, again = (reader.item(5) for reader in readers)
    assert first == again
    assert first != readers[0].item(5 + 37)
    assert derive_seed("a", 1) != derive_seed("a", 2)
    assert isinstance(first["x"], np.float32)


class TalkativeTask(LineTask):
    """Prepares evaluations, leaves a file and a warning."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.prepared = folder, []

    def prepare_evaluation(self, samples_seen: int) -> None:
        self.prepared.append(samples_seen)

    def evaluate(self, samples_seen: int) -> Evaluation:
        file = self.folder / f"orbit-{samples_seen}.txt"
        file.write_text("turn")
        return Evaluation(files=[file], warnings=["the geometry is flat\nin 2 of 2"])


def test_files_and_warnings_of_an_evaluation_are_recorded(tmp_path, caplog):
    settings = LoopSettings(
        total_samples=64, batch_size=8, log_every=8, checkpoint_every=64, evaluate_every=32
    )
    (tmp_path / "run").mkdir()
    task, tracker = TalkativeTask(tmp_path / "run"), JsonlTracker(tmp_path / "tracking", "r")
    train(task, LineDataset(), settings, LocalContext(tmp_path / "run", tracker))
    assert task.prepared == [32, 64]
    previews = tmp_path / "tracking" / "files" / "previews"
    assert sorted(p.name for p in previews.iterdir()) == ["orbit-32.txt", "orbit-64.txt"]
    said = [f"samples_seen={n}: the geometry is flat in 2 of 2" for n in (32, 64)]
    assert read_warnings(tmp_path / "run") == said
    assert caplog.text.count("the geometry is flat") == 2
    rows = [row["metrics"] for row in tracker.read() if "time/evaluate_s" in row["metrics"]]
    assert len(rows) == 2
    assert all(row["memory/rss_peak_mb"] > 50 for row in rows)


def evaluations(directory: Path) -> dict[int, float]:
    rows = JsonlTracker(directory / "tracking", "r").read()
    return {r["step"]: r["metrics"]["val/weight"] for r in rows if "val/weight" in r["metrics"]}


@pytest.mark.parametrize(("goal", "choose"), [("min", min), ("max", max)])
def test_the_model_of_the_best_evaluation_is_kept(tmp_path, goal, choose):
    result = run(tmp_path, best={"metric": "val/weight", "goal": goal})
    found = evaluations(tmp_path)
    step = choose(found, key=found.get)
    assert (result["best/value"], result["best/samples_seen"]) == (found[step], step)
    assert float(read_weights(tmp_path / "best")["weight"]) == pytest.approx(found[step])
    last = float(read_weights(tmp_path / "checkpoint")["weight"])
    assert last == pytest.approx(found[96])
    assert len(set(found.values())) == 3
    assert not list(tmp_path.glob(".best*"))


def test_a_resumed_run_knows_the_best_evaluation(tmp_path):
    best = {"metric": "val/weight", "goal": "min"}
    run(tmp_path / "cut", on_report=lambda _: False, best=best)
    assert run(tmp_path / "cut", best=best) == run(tmp_path / "whole", best=best)
    ours, theirs = (read_weights(tmp_path / n / "best") for n in ("cut", "whole"))
    assert torch.equal(ours["weight"], theirs["weight"])


def test_an_unknown_metric_of_the_best_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"best\.metric=val/fid: evaluations have val/weight"):
        run(tmp_path, best={"metric": "val/fid"})
