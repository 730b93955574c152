"""Fit the morphable model to clips: `python -m jobs.fit_3dmm CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.fit_3dmm import Fit3dmmConfig


def run(config: Fit3dmmConfig, job: JobRun) -> dict[str, Any]:
    """Fit every usable clip and return metrics and the `fits` artifact."""
    from functools import partial

    from jobs._cards import write_fits_card
    from nfs.artifacts import read_manifest, write_manifest
    from nfs.artifacts.compaction import compact
    from nfs.morphable import load_model
    from nfs.morphable.clip_fit import FitWork
    from nfs.morphable.recon.predictor import ReconPredictor
    from nfs.runtime import run_units

    read_manifest(config.clips, kind="clips")
    clips, output = absolute(config.clips), job.output("fits", config.artifacts)
    settings = config.fit.tree()
    if config.fit.model != "open_head":
        settings["model"] = absolute(config.fit.model)
    model = load_model(settings["model"])  # built and checked here, before any worker needs it
    parents = [config.clips]
    if config.fit.recon is not None:
        settings["recon"] = absolute(config.fit.recon)
        ReconPredictor.load(settings["recon"], model)
        parents.append(config.fit.recon)
    items, unusable = list_items(clips)
    items = [{**item, "sheet": i < config.max_sheets} for i, item in enumerate(items)]
    work = partial(FitWork, clips, output, settings)
    with job.progress(len(items)) as bar:
        report = run_units(
            items, work, output, config.launch, lambda _: bar.update(1), primary=FitWork.primary
        )
    metrics, given_up = summarise(output)
    messages = {item["clip_id"]: report.failed.get(item["key"]) for item in items}
    # What an earlier session of this run gave up is known from its rows alone.
    reasons = {clip: messages.get(clip) or status for clip, status in given_up.items()}
    reasons |= {clip: f"skipped: {why}" for clip, why in unusable}
    quarantined = [{"item": clip, "reason": reasons[clip]} for clip in sorted(reasons)]
    metrics |= {"fit/skipped_clips": float(len(unusable))}
    check_failures(config, metrics)
    facts = {"model": model.model_id, "clips": config.clips}
    numbers = {name.removeprefix("fit/"): value for name, value in metrics.items()}
    write_fits_card(output, facts, numbers, quarantined, job.tracker)
    write_manifest(
        output,
        kind="fits",
        config=settings,
        parents=parents,
        counts={name.removeprefix("fit/"): int(v) for name, v in metrics.items() if "clips" in name}
        | {"frames": int(metrics["fit/frames"])},
        quarantined=quarantined,
        extra={"model": model.model_id, "model_checksum": model.checksum},
        known=report.written,
    )
    if config.shard_mb is not None:
        compact(output, shard_mb=config.shard_mb)
    job.tracker.log_metrics(metrics, step=int(metrics["fit/frames"]))
    log_sheets(job, output, items[: config.max_logged_sheets])
    return {"metrics": metrics, "artifacts": {"fits": output}}


def list_items(clips: str) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return the units to fit, and (clip_id, reason) of the clips that are not usable."""
    from collections import Counter

    from nfs.artifacts.tables import clip_places, iter_files

    status: dict[str, str] = {}
    for _, table in iter_files(clips, "clips", ["clip_id", "status"]):
        status |= {row["clip_id"]: row["status"] for row in table.to_pylist()}
    places = clip_places(clips, "frames")
    in_unit, seen = Counter(place.unit for place in places), Counter[str]()
    items = []
    for place in places:
        number = seen[place.unit]
        seen[place.unit] += 1
        if status.get(place.clip_id) == "ok":
            key = place.unit if in_unit[place.unit] == 1 else f"{place.unit}-{number:03d}"
            items.append({**vars(place), "key": key})
    return items, [(clip_id, why) for clip_id, why in status.items() if why != "ok"]


def summarise(output: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return numbers over all fitted clips, and clip_id -> status of those given up."""
    import numpy as np

    from nfs.artifacts.unit_tables import UnitTables
    from nfs.morphable.clip_fit import FAILED_FRAME, POOR_FIT

    medians, worst, frames, poor = [], [], 0, 0
    given_up: dict[str, str] = {}
    columns = ["frame_index", "nme_percent", "status"]
    for clip_id, table in UnitTables(output).clips("fits", columns):
        if table["frame_index"].to_pylist() == [FAILED_FRAME]:
            given_up[clip_id] = table["status"][0].as_py()
            continue
        errors = table["nme_percent"].to_numpy()
        medians.append(float(np.nanmedian(errors)))
        worst.append(float(np.nanpercentile(errors, 95)))
        frames += len(table)
        poor += POOR_FIT in table["status"].to_pylist()
    metrics = {
        "fit/frames": float(frames),
        "fit/clips": float(len(medians)),
        "fit/poor_clips": float(poor),
        "fit/failed_clips": float(len(given_up)),
    }
    if medians:
        metrics["fit/nme_median_percent"] = float(np.median(medians))
        metrics["fit/nme_worst_clip_percent"] = max(medians)
        metrics["fit/nme_p95_percent"] = float(np.median(worst))
    return metrics, given_up


def check_failures(config: Fit3dmmConfig, metrics: dict[str, float]) -> None:
    """Stop before the manifest is written when too few clips could be fitted.

    Raises:
        InputError: Names the numbers and the setting.
    """
    from nfs.errors import InputError

    bad = metrics["fit/failed_clips"] + metrics["fit/poor_clips"]
    total = metrics["fit/failed_clips"] + metrics["fit/clips"]
    if total == 0:
        raise InputError(f"{config.clips}: no clip has status ok; nothing to fit")
    if bad > config.max_failed_fraction * total:
        raise InputError(
            f"{config.clips}: {bad:.0f} of {total:.0f} clips have no good fit, more than "
            f"max_failed_fraction={config.max_failed_fraction:g} allows; look at the "
            "contact sheets and at fit.max_median_nme_percent"
        )


def log_sheets(job: JobRun, output: str, items: list[dict[str, Any]]) -> None:
    """Send the contact sheets of some clips to the tracker."""
    import io

    import numpy as np
    from PIL import Image

    from nfs.artifacts import Store
    from nfs.morphable.clip_fit import sheet_path

    store = Store(output)
    for item in items:
        path = sheet_path(item["key"])
        if store.exists(path):
            picture = np.asarray(Image.open(io.BytesIO(store.read_bytes(path))).convert("RGB"))
            job.tracker.log_image(f"fit/{item['clip_id']}", picture)


if __name__ == "__main__":
    job_main("fit_3dmm", "nfs.config.fit_3dmm:Fit3dmmConfig")
