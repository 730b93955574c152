"""The whole chain from one YAML: clips -> fits -> networks -> identity -> video -> report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import JobRun, job_main, launch

if TYPE_CHECKING:
    from nfs.config.base import JobConfig
    from nfs.config.pipeline import PipelineConfig, StageConfig

# Its stages decide what is left to do.
INCREMENTAL = True

# Stage -> job. Order of execution.
STAGES = {
    "preprocess": "preprocess",
    "fit_3dmm": "fit_3dmm",
    "train_stylenerf": "train_stylenerf",
    "train_audio2exp": "train_audio2exp",
    "tune_audio2exp": "tuning.audio2exp",
    "invert": "invert",
    "tune_pti": "tuning.pti",
    "render": "render",
}
SHOWN = ("clips", "fits", "generator", "audio2exp", "identity", "render")
# Settings that the pipeline fills in; the stage files need not have them.
PLACEHOLDER = "<filled in by the pipeline>"


def run(config: PipelineConfig, job: JobRun) -> dict[str, Any]:
    """Run the stages in order, each as a child run, then write the report."""
    from jobs import _report

    for stage in STAGES:  # every file is checked before the first second of work
        _stage_config(config, stage, _links(config, {}, stage))
    results: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, str] = {}
    for stage, job_name in STAGES.items():
        stage_config = _stage_config(config, stage, _links(config, artifacts, stage))
        if stage_config is None:
            continue
        results[stage] = launch(
            job_name,
            stage_config,
            run_name=f"{job.name}/{stage}",
            directory=job.directory / "stages" / stage,
            parent_run_id=job.tracker.run_id or None,
            quiet=job.quiet,
        )
        artifacts |= _stage_artifacts(config, stage, results[stage])
    report = _report.write_report(config, job, results, artifacts["person"])
    job.tracker.log_file(report)
    metrics = {f"time/{stage}_s": float(r["seconds"]) for stage, r in results.items()}
    metrics |= {k: v for r in results.values() for k, v in r["metrics"].items()}
    job.tracker.log_metrics(metrics, step=0)
    paths = {kind: artifacts[kind] for kind in SHOWN if kind in artifacts}
    return {"metrics": metrics, "artifacts": {**paths, "report": str(report)}}


def _settings(config: PipelineConfig, stage: str) -> StageConfig | None:
    settings: StageConfig | None = getattr(config, stage)
    return settings


def _stage_config(config: PipelineConfig, stage: str, links: dict[str, Any]) -> JobConfig | None:
    """Return a stage's configuration: its file, the links, the shared settings, its overrides."""
    from nfs.config.base import apply_overrides, read_yaml, set_dotted
    from nfs.config.jobs import schema_of

    settings = _settings(config, stage)
    if settings is None or not settings.enabled:
        return None
    tree = read_yaml(settings.config)
    shared = config.tree()
    tree |= {"storage": config.storage, "seed": config.seed, "tracking": shared["tracking"]}
    tree["launch"] = {**shared["launch"], **tree.get("launch", {}), "kind": config.launch.kind}
    if tree.get("cameras", {}).get("kind") != "fits":  # cameras that do not look at fits
        links.pop("cameras.path", None)
    for key, value in links.items():
        set_dotted(tree, key, value)
    apply_overrides(tree, settings.overrides)
    return schema_of(STAGES[stage]).from_tree(tree, source=settings.config)


def _links(config: PipelineConfig, artifacts: dict[str, str], stage: str) -> dict[str, Any]:
    """Return the settings of a stage that come from the pipeline and from earlier stages.

    Before the first stage `artifacts` is empty and the values are placeholders.
    """
    found = {
        name: artifacts.get(name, PLACEHOLDER)
        for name in ("clips", "fits", "generator", "audio2exp", "identity", "person", "voice")
    }
    clips_and_fits = {"clips": found["clips"], "fits": found["fits"]}
    person = {**clips_and_fits, "checkpoint": found["generator"], "clip_id": found["person"]}
    return {
        "preprocess": {"inputs": [*config.inputs(), *config.extra_inputs]},
        "fit_3dmm": {"clips": found["clips"]},
        "train_stylenerf": {"clips": found["clips"], "cameras.path": found["fits"]},
        "train_audio2exp": clips_and_fits,
        "tune_audio2exp": {f"base.{k}": v for k, v in clips_and_fits.items()},
        "invert": person,
        "tune_pti": {f"base.{k}": v for k, v in person.items()},
        "render": {
            "identity": found["identity"],
            "expression.checkpoint": found["audio2exp"],
            "speech": found["voice"],
        },
    }[stage]


def _stage_artifacts(config: PipelineConfig, stage: str, result: dict[str, Any]) -> dict[str, str]:
    """Return the artifacts of a stage under the names that `_links` uses."""
    names = {"train_stylenerf": "generator", "train_audio2exp": "audio2exp"}
    found = {names.get(stage, kind): path for kind, path in result["artifacts"].items()}
    if stage == "preprocess":
        found |= _person(config, found["clips"])
    return found


def _person(config: PipelineConfig, clips: str) -> dict[str, str]:
    """Choose the clip that is inverted and the voice that it speaks with."""
    from pathlib import Path

    from nfs.artifacts.tables import read_table
    from nfs.errors import InputError

    columns = ["clip_id", "source_uri", "status", "error", "num_frames", "has_audio"]
    rows = read_table(clips, "clips", columns).to_pylist()
    wanted = {str(Path(p).resolve()) for p in config.inputs()}
    mine = [r for r in rows if str(Path(r["source_uri"]).resolve()) in wanted]
    usable = [r for r in mine if r["status"] == "ok" and r["num_frames"] > 1]
    if not usable:
        reasons = "; ".join(f"{r['source_uri']}: {r['status']} {r['error'] or ''}" for r in mine)
        raise InputError(f"input={config.input}: no usable video ({reasons or 'nothing found'})")
    voice = config.speech or next((r["source_uri"] for r in usable if r["has_audio"]), None)
    if voice is None:
        raise InputError(f"input={config.input}: the video has no sound; give speech=FILE.wav")
    return {"person": usable[0]["clip_id"], "voice": voice}


if __name__ == "__main__":
    job_main("pipeline", "nfs.config.pipeline:PipelineConfig")
