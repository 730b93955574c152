"""`python -m jobs.evaluate CONFIG.yaml`: a generator checkpoint to numbers and pictures."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute
from nfs.errors import NfsError

if TYPE_CHECKING:
    from jobs._evaluation import Evaluated
    from jobs._launch import JobRun
    from nfs.config.evaluate import EvaluateConfig

    Units = Mapping[str, list[dict[str, Any]]]


def run(config: EvaluateConfig, job: JobRun) -> dict[str, Any]:
    """Evaluate and return metrics and the artifact of pictures.

    Work is done in units below `<run>/work`, so that a killed evaluation goes on.
    """
    from jobs._evaluation import REAL, Evaluated
    from nfs.artifacts import write_manifest

    config = _absolute(config)
    evaluated, work = Evaluated(config), job.output("work")
    real_place = config.real_features or work
    units = _plan(evaluated)
    by_place: dict[str, list[dict[str, Any]]] = {}
    for kind in units:
        by_place.setdefault(real_place if kind == REAL else work, []).extend(units[kind])
    for place, some in by_place.items():
        _make(config, job, some, place)
    metrics, pictures = _summarise(evaluated, units, work, real_place)
    uri = job.output("evaluation")
    _write(config, job, uri, units, metrics, pictures)
    write_manifest(
        uri,
        kind="evaluation",
        config=config.tree(),
        parents=_parents(config),
        counts={kind: sum(u["stop"] - u["start"] for u in units[kind]) for kind in units},
        extra={"metrics": metrics, "network": evaluated.features.checksum if config.data else None},
    )
    job.tracker.log_metrics(metrics, step=0)
    return {"metrics": metrics, "artifacts": {"evaluation": uri}}


def _absolute(config: EvaluateConfig) -> EvaluateConfig:
    """Workers run in other directories."""
    paths = {"checkpoint": config.checkpoint, "real_features": config.real_features}
    if config.data is not None:
        paths |= {"data.path": config.data.path, "data.exclude": config.data.exclude}
    for name in ("features", "identity"):
        part = getattr(config, name)
        paths |= {f"{name}.{k}": getattr(part, k, None) for k in ("path", "checkpoint")}
    return config.override({k: absolute(v) for k, v in paths.items() if v is not None})


def _parents(config: EvaluateConfig) -> list[str]:
    from jobs._run_directory import artifact_ids

    paths = [config.checkpoint, *([config.data.path] if config.data is not None else [])]
    return list(artifact_ids(paths))


def _plan(evaluated: Evaluated) -> Units:
    """Return the units by kind; what is wrong with the inputs shows here."""
    from jobs._evaluation import GENERATED, ORBIT, REAL, VIEWS, plan_units

    config, step = evaluated.config, evaluated.config.images_per_unit
    counts = {VIEWS: (config.num_views, max(1, step // 3))}
    if config.data is not None:
        counts[REAL] = (len(evaluated.chosen_reals()), step)
        counts[GENERATED] = (config.num_generated, step)
    if config.orbit_latents:
        whole_frames = max(1, step // config.orbit_latents) * config.orbit_latents
        counts[ORBIT] = (config.orbit_latents * config.orbit_frames, whole_frames)
    return {
        kind: plan_units(kind, count, size, evaluated.mark(kind))
        for kind, (count, size) in counts.items()
    }


def _make(
    config: EvaluateConfig, job: JobRun, units: Sequence[Mapping[str, Any]], uri: str
) -> None:
    """Make the rows that are missing.

    Raises:
        NfsError: If a range cannot be made.
    """
    from jobs._evaluation import UNITS, EvaluateUnit
    from nfs.artifacts import Store
    from nfs.runtime import run_units

    size = {unit["key"]: unit["stop"] - unit["start"] for unit in units}
    with job.progress(sum(size.values()), unit="images") as bar:
        make_work = functools.partial(EvaluateUnit, config.tree())
        report = run_units(
            units,
            make_work,
            uri,
            config.launch,
            lambda result: bar.update(size[result["key"]]),
            primary=UNITS,
        )
    if report.failed:
        for key in report.failed:  # so that the next attempt tries them again
            Store(uri).delete(f"{UNITS}/{key}.parquet")
        key, reason = next(iter(report.failed.items()))
        raise NfsError(
            f"{len(report.failed)} of {len(units)} units failed; the first, {key}: {reason}. "
            "The same command again continues"
        )


def _summarise(
    evaluated: Evaluated, units: Units, work: str, real_uri: str
) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Return metrics, and the rows of the subjects that are shown."""
    import logging

    import torch

    from jobs._evaluation import GENERATED, REAL, VIEWS, read_facts, read_rows
    from nfs.perceptual.extractors import compare_sets
    from nfs.stylenerf.portrayal import summarise

    keys = {kind: [unit["key"] for unit in units[kind]] for kind in units}
    parts = list(read_rows(work, keys[VIEWS]))
    rows = {n: torch.cat([p[n] for p in parts if n in p]) for n in parts[0]}
    metrics, problems = summarise(rows, evaluated.identity.name)
    for problem in problems:
        logging.getLogger("nfs.jobs").warning("%s: %s", evaluated.config.checkpoint, problem)
    if GENERATED in units:
        generated, real = (
            torch.cat([part["features"] for part in read_rows(uri, keys[kind])])
            for kind, uri in ((GENERATED, work), (REAL, real_uri))
        )
        found = compare_sets(real, generated, evaluated.features.names, seed=evaluated.config.seed)
        metrics |= {f"eval/{name}": value for name, value in found.items()}
        metrics |= {"eval/num_generated": len(generated), "eval/num_real": len(real)}
    peaks: dict[str, float] = {}
    for kind in keys:
        facts = read_facts(real_uri if kind == REAL else work, keys[kind])
        count = sum(unit["stop"] - unit["start"] for unit in units[kind])
        seconds = sum(fact.pop("seconds") for fact in facts)
        metrics[f"time/{kind}_s"] = seconds
        metrics[f"eval/{kind}_images_per_s"] = count / max(seconds, 1e-9)
        for fact in facts:
            peaks |= {name: max(value, peaks.get(name, 0.0)) for name, value in fact.items()}
    return metrics | peaks, rows


def _write(
    config: EvaluateConfig,
    job: JobRun,
    uri: str,
    units: Units,
    metrics: Mapping[str, float],
    rows: Mapping[str, Any],
) -> None:
    """Write and record the pictures and numbers."""
    import tempfile
    from pathlib import Path

    from jobs._evaluation import ORBIT, read_rows
    from nfs.artifacts import Store
    from nfs.media.images import encode_png
    from nfs.stylenerf.orbits import orbit_frames, write_frames
    from nfs.stylenerf.portrayal import grid_of_views

    store = Store(uri)
    grid = grid_of_views(rows)
    store.write_bytes("grid.png", encode_png(grid))
    store.write_bytes("metrics.json", json.dumps(dict(metrics), indent=1).encode())
    job.tracker.log_image("evaluation/grid", grid)
    if ORBIT not in units:
        return
    parts = read_rows(job.output("work"), [unit["key"] for unit in units[ORBIT]])
    frames = (frame for part in parts for frame in orbit_frames(part, config.orbit_latents))
    with tempfile.TemporaryDirectory(prefix="nfs-orbit-") as folder:
        file = Path(folder) / "orbit.mp4"
        write_frames(file, frames, config.orbit_fps)
        store.write_bytes(file.name, file.read_bytes())
        job.tracker.log_file(file, "previews")


if __name__ == "__main__":
    job_main("evaluate", "nfs.config.evaluate:EvaluateConfig")
