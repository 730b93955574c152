"""What the repository ships fits together: configurations, README, Makefile."""

import re
import subprocess
from pathlib import Path

import pytest

from nfs.config.jobs import SCHEMAS, schema_of

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "jobs" / "configs").glob("*/*.yaml"))
SEARCHES = sorted((REPOSITORY / "tuning" / "configs").glob("*/*.yaml"))
# What only the caller knows.
REQUIRED = {
    "render": ["identity=i", "expression.checkpoint=c", "speech=s.wav"],
    "render/orbit": ["identity=i"],
    "pipeline": ["input=clip.mp4"],
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_job_configuration_is_valid(file):
    job = file.parent.name
    config = schema_of(job).load(file, REQUIRED.get(f"{job}/{file.stem}", REQUIRED.get(job, [])))
    assert schema_of(job).from_tree(config.tree()) == config


@pytest.mark.parametrize("file", SEARCHES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_search_configuration_is_valid(file):
    schema_of(f"tuning.{file.parent.name}").load(file)


def test_every_job_has_smoke_and_base():
    jobs = [j for j in SCHEMAS if "." not in j and j != "pipeline"]
    names = {(f.parent.name, f.stem) for f in CONFIGS}
    missing = [(j, kind) for j in jobs for kind in ("smoke", "base") if (j, kind) not in names]
    assert missing == []


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_pipeline_stages_exist_and_fit(name):
    from jobs import pipeline

    config = schema_of("pipeline").load(
        f"jobs/configs/pipeline/{name}.yaml", ["input=clip.mp4", "storage=/data/runs"]
    )
    for stage in pipeline.STAGES:
        links = pipeline._links(config, {}, stage)
        stage_config = pipeline._stage_config(config, stage, links)
        assert stage_config is not None
        assert stage_config.storage == "/data/runs"


def test_readme_names_only_what_exists():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) < 150
    paths = set(re.findall(r"`?((?:docs|jobs|nfs|cluster|tests)/[\w/.]+\.(?:md|py|yaml|sh))", text))
    assert paths
    assert [p for p in paths if not (REPOSITORY / p).exists()] == []
    for job in re.findall(r"^\| `(\w+)` \|", text, re.M):
        assert job in SCHEMAS


def test_readme_commands_are_make_targets():
    text = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"\bmake (\w[\w-]*)", text)) - {"sure"}
    assert {"demo", "test", "check", "bench"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], check=True, capture_output=True)


def test_ci_runs_the_readme_test_command():
    script = (REPOSITORY / ".ci" / "run").read_text()
    assert script.strip().splitlines()[-1] == "make test"


def test_constraints_pin_every_direct_dependency():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    needed = {
        re.split(r"[\[=<>~ ]", item)[0].lower().replace("_", "-")
        for item in project["dependencies"]
    }
    assert needed - pinned == set()
