"""Videos and photos to clips: aligned faces, 68 landmarks, audio and mel.

python -m jobs.preprocess jobs/configs/preprocess/base.yaml 'inputs=[videos/]'
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs._launch import JobRun, job_main

if TYPE_CHECKING:
    import numpy as np

    from jobs._bars import Bar
    from nfs.config.preprocess import PreprocessConfig

logger = logging.getLogger("nfs.jobs")

INCREMENTAL = True
"""The inputs may have grown: the same command looks again and does what is new."""

CONTACT_SHEET_CLIPS = 16
TABLES = ("clips", "frames", "audio", "faces")


def run(config: PreprocessConfig, job: JobRun) -> dict[str, Any]:
    """Process every input and return counts, timings and the clips artifact."""
    from jobs._cards import write_clips_card
    from nfs.artifacts import write_manifest
    from nfs.artifacts.compaction import compact
    from nfs.audio.mel import melspectrogram
    from nfs.face.clip import ClipWork
    from nfs.runtime import run_units

    items, copies = _list_items(config)
    uri, started = job.output("clips", config.artifacts), time.monotonic()
    make_work = partial(ClipWork, config.clip.tree(), melspectrogram)
    with job.progress(len(items), "clips") as bar:
        report = run_units(
            items, make_work, uri, config.launch, partial(_show, bar), primary=ClipWork.primary
        )
    _delete_stale(uri, {item["key"] for item in items})
    clustered = _cluster(uri, config) if config.identity_from == "clusters" else {}
    units = _clip_rows(uri, items)
    rows = [row for unit in units for row in unit]
    bad = [row for row in rows if row["status"] != "ok"]
    counts = {"files": len(items), **_counts(rows, copies), **clustered}
    quarantined = [
        {"item": row["source_uri"], "reason": f"{row['status']}: {row['error']}"} for row in bad
    ]
    write_clips_card(uri, rows, counts, quarantined, job.tracker)
    write_manifest(
        uri,
        kind="clips",
        config=config.tree(),
        counts=counts,
        quarantined=quarantined,
        extra={"duplicates": copies},
        # clustering has written identities into the rows
        known={} if clustered else report.written,
    )
    if config.shard_mb is not None:
        compact(uri, shard_mb=config.shard_mb)
    metrics = {f"preprocess/{name}": float(value) for name, value in counts.items()}
    metrics["time/preprocess_s"] = time.monotonic() - started
    job.tracker.log_metrics(metrics, step=len(items))
    good = [
        (item["key"], row["clip_id"])
        for item, unit in zip(items, units, strict=True)
        for row in unit
        if row["status"] == "ok"
    ]
    if good:
        sheet = _contact_sheet(uri, good[:CONTACT_SHEET_CLIPS])
        job.tracker.log_image("preprocess/contact_sheet", sheet, step=len(items))
    useless = [unit[0] for unit in units if all(row["status"] != "ok" for row in unit)]
    _check_bad(useless, len(items), config.max_bad_fraction)
    return {"metrics": metrics, "artifacts": {"clips": uri}}


def _list_items(config: PreprocessConfig) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the units of work, and what was left out as a copy of another file."""
    from nfs.face.remote import list_objects
    from nfs.face.sources import class_labels, distinct, list_files, make_items, vector_labels

    files, objects = list_files(config.inputs), list_objects(config.inputs)
    if config.identity_from == "label":
        labels = class_labels(config.inputs)
    else:
        labels = vector_labels([*map(str, files), *(obj.uri for obj in objects)])
    sources, copies = distinct(files, labels, objects)
    for copy in copies:
        logger.warning("%(item)s: same content as %(same_as)s, left out", copy)
    return make_items(sources, config), copies


def _show(bar: Bar, result: Mapping[str, Any]) -> None:
    if result["status"] not in ("ok", "skipped"):
        logger.warning("left out: %s", result["error"])
    bar.update(1)


def _delete_stale(uri: str, keys: set[str]) -> None:
    """Delete the units of files that are no longer among the inputs."""
    from nfs.artifacts.unit_tables import UnitTables, drop_units

    found = UnitTables(uri)
    stale = set().union(*(found.keys(table) for table in TABLES)) - keys
    for key in sorted(stale):
        logger.warning("%s: its source is no longer among the inputs, deleted", key)
    if stale:
        drop_units(uri, stale, TABLES)


def _cluster(uri: str, config: PreprocessConfig) -> dict[str, int]:
    from jobs._identities import assign_identities
    from nfs.perceptual.dlib_face import DlibDistance

    return assign_identities(
        uri,
        DlibDistance.load,
        threshold=config.identity_threshold,
        val_fraction=config.val_fraction,
        launch=config.launch,
    )


def _clip_rows(uri: str, items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the committed clips rows of each item, in order."""
    from nfs.artifacts.unit_tables import UnitTables

    found = UnitTables(uri)
    return [found.read("clips", item["key"]).to_pylist() for item in items]


def _counts(rows: list[dict[str, Any]], copies: list[dict[str, str]]) -> dict[str, int]:
    good = [row for row in rows if row["status"] == "ok"]
    counts = {
        "clips": len(rows),
        "clips_ok": len(good),
        "clips_bad": len(rows) - len(good),
        "duplicates": len(copies),
        "frames": sum(row["num_frames"] for row in good),
        "clips_with_audio": sum(row["has_audio"] for row in good),
        "identities": len({row["identity_id"] for row in good}),
    }
    for status in sorted({row["status"] for row in rows} - {"ok"}):
        counts[f"clips_{status}"] = sum(row["status"] == status for row in rows)
    frames: Counter[str] = Counter()
    for row in good:
        frames.update(dict(row["frame_statuses"]))
    return counts | {f"frames_{status}": frames[status] for status in sorted(frames)}


def _contact_sheet(uri: str, clips: list[tuple[str, str]]) -> np.ndarray:
    """Return the first, middle and last frame of some clips (key, clip id) with their landmarks."""
    import numpy as np

    from nfs.artifacts.tables import read_rows
    from nfs.artifacts.unit_tables import UnitTables
    from nfs.face.drawing import draw_landmarks
    from nfs.media.images import decode_jpeg, image_grid

    units, tiles = UnitTables(uri), []
    for key, clip_id in clips:
        place = next(run for run in units.runs("frames", key) if run.clip_id == clip_id)
        last = place.num_rows - 1
        for index in sorted({0, place.num_rows // 2, last}):
            at = replace(place, first_row=place.first_row + index, num_rows=1)
            columns = ["image_jpeg", "landmarks_px", "status"]
            row = read_rows(units.store, at, columns).to_pylist()[0]
            points = np.array(row["landmarks_px"]).reshape(68, 2)
            status = "" if row["status"] == "ok" else f" {row['status']}"
            caption = f"{clip_id} {index}{status}"
            tiles.append(draw_landmarks(decode_jpeg(row["image_jpeg"]), points, caption))
    return image_grid(tiles, columns=6)


def _check_bad(bad: list[dict[str, Any]], count: int, max_bad_fraction: float) -> None:
    """Stop when too many clips are bad; the artifact and its reasons stay."""
    from nfs.errors import InputError

    if not bad or len(bad) < max_bad_fraction * count:
        return
    reasons = "\n".join(f"  {row['status']}: {row['error']}" for row in bad[:5])
    more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise InputError(
        f"inputs: {len(bad)} of {count} files are unusable "
        f"(max_bad_fraction={max_bad_fraction:g}):\n{reasons}{more}"
    )


if __name__ == "__main__":
    job_main("preprocess", "nfs.config.preprocess:PreprocessConfig")
