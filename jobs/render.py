"""`python -m jobs.render CONFIG.yaml`: an identity and a speech to a talking video."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from nfs.errors import NfsError

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.artifacts.units import UnitWork
    from nfs.config.render import RenderConfig

logger = logging.getLogger("nfs.jobs")


def run(config: RenderConfig, job: JobRun) -> dict[str, Any]:
    """Render a video and return its artifact and metrics.

    Frames are rendered in units below `<run>/work`, so that a killed render goes on; the units go
    away when the artifact is complete.
    """
    from nfs.artifacts import Store
    from nfs.talker import artifact
    from nfs.talker.builders import build_plan, load_inputs
    from nfs.talker.plot import mouth_and_voice
    from nfs.talker.work import RenderFrames, frame_units

    if config.expression.kind == "still":
        return _run_orbit(config, job)
    uri, work = job.output("render"), Store(job.output("work"))
    inputs = load_inputs(config)
    plan = build_plan(config, inputs)
    mark = artifact.fingerprint(config, plan)
    metrics = artifact.finished_metrics(uri, mark)
    if metrics is None:
        if artifact.prepare_work(work, plan, mark):
            logger.info("inputs changed since the last attempt; all frames are rendered again")
        count = len(plan.expression)
        units = frame_units(count, config.frames_per_unit)
        make_work = functools.partial(RenderFrames, config.tree(), work.uri)
        timing = _render_units(config, job, units, work.uri, make_work)
        done = artifact.finish(
            config,
            uri,
            work,
            plan=plan,
            keys=[unit["key"] for unit in units],
            style=artifact.video_style(config, inputs.portrait.generator.img_resolution),
            audio=inputs.speech.track(count) if inputs.speech is not None else None,
            timing=timing,
        )
        metrics = done.metrics
        job.tracker.log_image("render/sheet", done.sheet)
        job.tracker.log_image("render/mouth_and_voice", mouth_and_voice(plan))
        job.tracker.log_file(Store(uri).local_path(artifact.VIDEO))
        artifact.clear(work)
    job.tracker.log_metrics(metrics, step=0)
    return {"metrics": metrics, "artifacts": {"render": uri}}


def _run_orbit(config: RenderConfig, job: JobRun) -> dict[str, Any]:
    """Render a camera orbit of an identity, or of faces of a checkpoint."""
    from jobs._run_directory import absolute
    from nfs.artifacts import Store
    from nfs.talker import artifact, orbit
    from nfs.talker.work import frame_units

    config = config.override({"identity": absolute(config.identity)})
    uri, work = job.output("render"), Store(job.output("work"))
    mark = orbit.mark(config)
    units = [
        {**unit, "key": f"{mark}-{unit['key']}"}
        for unit in frame_units(orbit.num_frames(config), config.frames_per_unit)
    ]
    make_work = functools.partial(orbit.RenderOrbit, config.tree())
    timing = _render_units(config, job, units, work.uri, make_work)
    metrics, sheet = orbit.finish(config, uri, work, [unit["key"] for unit in units], timing)
    job.tracker.log_image("render/sheet", sheet)
    for name in (artifact.VIDEO, orbit.DEPTH_VIDEO):
        job.tracker.log_file(Store(uri).local_path(name))
    artifact.clear(work)
    job.tracker.log_metrics(metrics, step=0)
    return {"metrics": metrics, "artifacts": {"render": uri}}


def _render_units(
    config: RenderConfig,
    job: JobRun,
    units: Sequence[Mapping[str, Any]],
    work_uri: str,
    make_work: Callable[[], UnitWork],
) -> dict[str, float]:
    """Render what is missing and return timing metrics.

    Raises:
        NfsError: If a range of frames cannot be rendered.
    """
    from nfs.artifacts import Store
    from nfs.runtime import run_units
    from nfs.talker.work import RENDERED

    frames = {unit["key"]: unit["stop"] - unit["start"] for unit in units}
    spent = {"frames": 0, "seconds": 0.0}
    with job.progress(sum(frames.values()), unit="frames") as bar:

        def on_done(result: Mapping[str, Any]) -> None:
            bar.update(frames[result["key"]])
            if result["status"] == "ok":
                spent["frames"] += frames[result["key"]]
                spent["seconds"] += result["seconds"]

        report = run_units(units, make_work, work_uri, config.launch, on_done, primary=RENDERED)
    if report.failed:
        for key in report.failed:  # so that the next attempt tries them again
            Store(work_uri).delete(f"{RENDERED}/{key}.parquet")
        key, reason = next(iter(report.failed.items()))
        raise NfsError(
            f"{len(report.failed)} of {len(units)} ranges of frames failed; the first, from frame "
            f"{int(key.rpartition('-')[2])}: {reason}. The same command again continues"
        )
    return {"render/seconds_per_frame": spent["seconds"] / max(spent["frames"], 1)}


if __name__ == "__main__":
    job_main("render", "nfs.config.render:RenderConfig")
