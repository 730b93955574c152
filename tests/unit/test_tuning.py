import json
import math

import pytest

import tuning.pti
from nfs.config.base import JobConfig
from nfs.config.tuning import SearchConfig, TuneAudio2expConfig, TunePtiConfig, space_example
from nfs.errors import ConfigError, NonFiniteError
from nfs.tracking.null import NullTracker
from tuning._search import finish_search, run_search, trials_markdown
from tuning._trial import Reporter, TrialPlan, run_trial, trial_name

SPACE = """
seed: {kind: int, low: 1, high: 3}
launch.cpus_per_worker: {kind: loguniform, low: 0.1, high: 2}
launch.gpus_per_worker: {kind: uniform, low: 0, high: 1}
storage: {kind: choice, values: [a, b]}
"""


def toy_trial(tree, report, directory, _tracker):
    """Report three evaluations; diverge for seed 2, break for seed 3."""
    if tree["seed"] == 2:
        raise NonFiniteError("loss/total", float("nan"))
    if tree["seed"] == 3:
        raise RuntimeError("broken")
    for clock in (10, 20, 30):
        report({"val/error": 1.0 / clock, "clock": clock})
    (directory / "model").write_text("done")


def plan_of(tmp_path, **changes):
    options = {
        "root": str(tmp_path), "storage": str(tmp_path), "tree": JobConfig().tree(),
        "schema": "nfs.config.base:JobConfig", "function": "tests.unit.test_tuning:toy_trial",
        "objective": "val/error", "mode": "min", "clock": "clock", "max_clock": 30,
        "tracking": {"kind": "jsonl"}, "parent_run_id": None, **changes,
    }  # fmt: skip
    return TrialPlan(**options)


def search_config(tmp_path, **changes):
    (tmp_path / "base.yaml").write_text("seed: 4\nstorage: x")
    (tmp_path / "space.yaml").write_text(changes.pop("text", SPACE))
    tree = {
        "base": {"file": str(tmp_path / "base.yaml"), "seed": 7},
        "space": str(tmp_path / "space.yaml"), "num_trials": 2, "objective": "val/error",
        "clock": "clock", "scheduler": {"grace": 1}, **changes,
    }  # fmt: skip
    return SearchConfig.from_tree(tree, source="search")


def summary(tmp_path, trial_id, sample):
    file = tmp_path / "trials" / trial_name(trial_id, sample) / "summary.json"
    return json.loads(file.read_text())


def test_files_are_read_into_the_resolved_configuration(tmp_path):
    config = search_config(tmp_path)
    assert (config.base.seed, config.base.storage) == (7, "x")
    assert SearchConfig.from_tree(config.tree()) == config
    assert space_example(config.space) == {
        "seed": 1, "launch.cpus_per_worker": 0.1, "launch.gpus_per_worker": 0.0, "storage": "a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: {kind: int, low: 2, high: 1}", "not below"),
        ("seed: {kind: loguniform, low: 0, high: 1}", "greater than 0"),
        ("seed: {kind: gaussian}", "gaussian"),
        ("seed: {kind: choice, values: []}", "at least 1"),
        ("{}", "at least 1"),
        ("optimizer.lr: {kind: uniform, low: 0, high: 1}", "does not fit base.*optimizer"),
        ("seed: {kind: uniform, low: -3, high: 1}", "does not fit base.*seed"),
    ],
)
def test_wrong_dimensions_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        search_config(tmp_path, text=text)


def test_a_search_needs_ray(tmp_path):
    config = search_config(tmp_path, launch={"kind": "local"})
    with pytest.raises(ConfigError, match="needs Ray"):
        run_search(config, Job(tmp_path), plan_of(tmp_path))


def test_a_trial_reports_and_sends_the_last_report_after_it_is_done(tmp_path):
    sent, sample = [], {"seed": 1}
    model = tmp_path / "trials" / trial_name("t1", sample) / "model"

    def send(message):
        sent.append((message["clock"], model.exists()))

    run_trial(sample, "t1", plan_of(tmp_path), send)
    assert sent == [(10, False), (20, False), (30, True)]
    assert summary(tmp_path, "t1", sample)["status"] == "finished"
    reports = (model.parent / "reports.jsonl").read_text().splitlines()
    assert json.loads(reports[1]) == {"val/error": 0.05, "clock": 20}


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_a_diverging_trial_gets_the_worst_objective(tmp_path, mode, worst):
    sent = []
    run_trial({"seed": 2}, "t1", plan_of(tmp_path, mode=mode), sent.append)
    assert sent == [{"objective": worst, "clock": 30.0}]
    assert summary(tmp_path, "t1", {"seed": 2})["status"].startswith("diverged: loss/total")


def test_a_broken_trial_raises(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        run_trial({"seed": 3}, "t1", plan_of(tmp_path), lambda _: None)


def test_a_sample_out_of_range_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="seed"):
        run_trial({"seed": -1}, "t1", plan_of(tmp_path), lambda _: None)


def test_a_report_without_the_objective_says_what_it_has(tmp_path):
    reporter = Reporter(plan_of(tmp_path), tmp_path, NullTracker(), lambda _: None)
    with pytest.raises(KeyError, match=r"val/error.*other"):
        reporter({"other": 1.0})


def test_the_same_trial_id_with_another_sample_is_another_directory():
    assert trial_name("t1", {"seed": 1}) != trial_name("t1", {"seed": 2})
    assert trial_name("t1", {"seed": 1}) == trial_name("t1", {"seed": 1})


class Job:
    def __init__(self, directory):
        self.directory, self.tracker = directory, NullTracker()


def test_the_best_configuration_and_the_table_are_written(tmp_path):
    config = search_config(tmp_path)
    rows = [
        {"trial": "a-1", "status": "finished", "objective": 0.5, "clock": 30.0,
         "sample": {"seed": 2}, "metrics": {"val/error": 0.5}},
        {"trial": "b-2", "status": "stopped", "objective": 0.7, "clock": 10.0,
         "sample": {"seed": 1}, "metrics": {}},
        {"trial": "c-3", "status": "failed: x", "objective": None, "clock": None,
         "sample": {"seed": 3}, "metrics": {}},
    ]  # fmt: skip
    for row in rows:
        (tmp_path / "trials" / row["trial"] / "states").mkdir(parents=True)
    (tmp_path / "trials" / "a-1" / "checkpoint").mkdir()
    result = finish_search(config, Job(tmp_path), rows)
    assert JobConfig.load(result["artifacts"]["best_config"]).seed == 2
    assert result["artifacts"]["checkpoint"].endswith("a-1/checkpoint")
    assert result["metrics"]["search/best_objective"] == 0.5
    assert result["metrics"]["search/stopped_early"] == 1
    assert result["metrics"]["search/failed"] == 1
    assert (tmp_path / "trials" / "a-1" / "states").is_dir()
    assert not (tmp_path / "trials" / "b-2" / "states").exists()
    assert "| b-2 | stopped | 10 | 0.7 | 1 |" in trials_markdown(rows)


@pytest.mark.parametrize(
    ("space", "longest"),
    [
        ("project.learning_rate: {kind: uniform, low: 0.1, high: 1}", 100),
        ("tune.num_steps: {kind: int, low: 1, high: 9}", 69),
        ("tune.num_steps: {kind: choice, values: [3, 8]}", 68),
    ],
)
def test_the_longest_inversion_bounds_the_clock(tmp_path, space, longest):
    (tmp_path / "s.yaml").write_text(space)
    config = TunePtiConfig.from_tree(
        {
            "base": {
                "checkpoint": "c",
                "portrait": "p.png",
                "project": {"num_steps": 60},
                "tune": {"num_steps": 40},
            },
            "space": str(tmp_path / "s.yaml"),
            "num_trials": 1,
            "scheduler": {"grace": 1},
        }
    )
    assert tuning.pti._longest_trial(config) == longest


@pytest.mark.parametrize("name", ["base", "smoke"])
def test_the_shipped_audio_searches_are_valid(repository, monkeypatch, name):
    monkeypatch.chdir(repository)
    config = TuneAudio2expConfig.load(
        f"tuning/configs/audio2exp/{name}.yaml", ["base.clips=here", "base.data.num_frames=16"]
    )
    assert config.base.clips == "here"
    assert config.base.data.num_frames == 16
    assert config.base.total_samples > 0


@pytest.mark.parametrize("name", ["pti", "pti_smoke"])
def test_the_shipped_inversion_spaces_are_valid(repository, name):
    TunePtiConfig.from_tree(
        {
            "base": {"checkpoint": "c", "portrait": "p.png"},
            "space": str(repository / f"tuning/spaces/{name}.yaml"),
            "num_trials": 1,
            "scheduler": {"grace": 1},
        }
    )
