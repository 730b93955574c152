"""The `render` artifact: `video.mp4`, `sheet.png`, `coefficients.parquet`, manifest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfs.artifacts import Store, read_manifest, write_manifest
from nfs.artifacts.manifest import MANIFEST
from nfs.config.base import tree_hash
from nfs.config.render import FitsSource, RenderConfig
from nfs.talker.expressions import correlation
from nfs.talker.plan import PLAN_FILE, ROWS_PER_GROUP, FramePlan
from nfs.talker.video import VideoStyle, spread, stored_frames, write_sheet, write_video
from nfs.talker.work import RENDERED

VIDEO, SHEET = "video.mp4", "sheet.png"
FINGERPRINT = "fingerprint.txt"
# Settings that do not change a picture or the sound.
NOT_CONTENT = ("storage", "launch", "tracking", "batch_size", "frames_per_unit")


@dataclass(frozen=True)
class Finished:
    """What a finished render shows to the tracker."""

    metrics: dict[str, float]
    sheet: NDArray[np.uint8]


def fingerprint(config: RenderConfig, plan: FramePlan) -> str:
    """Identify everything that decides the video: plan, identity, settings."""
    settings = {key: value for key, value in config.tree().items() if key not in NOT_CONTENT}
    identity = read_manifest(config.identity, kind="identity").id
    return tree_hash({"plan": plan.fingerprint(), "identity": identity, "settings": settings})


def finished_metrics(uri: str, mark: str) -> dict[str, float] | None:
    """Return the metrics of a complete artifact with this fingerprint, else None."""
    if not Store(uri).exists(MANIFEST):
        return None
    extra = read_manifest(uri, kind="render").extra
    return dict(extra["metrics"]) if extra.get("fingerprint") == mark else None


def prepare_work(work: Store, plan: FramePlan, mark: str) -> bool:
    """Write the plan for the workers; units of another fingerprint are forgotten.

    Returns:
        Whether older units were dropped.
    """
    stale = work.exists(FINGERPRINT) and work.read_bytes(FINGERPRINT).decode() != mark
    if stale:
        clear(work)
    work.write_bytes(FINGERPRINT, mark.encode())
    work.write_table(PLAN_FILE, plan.table(), row_group_size=ROWS_PER_GROUP)
    return stale


def clear(work: Store) -> None:
    """Delete all files of a work directory."""
    for path in work.list(recursive=True):
        work.delete(path)


def parents(config: RenderConfig) -> list[str]:
    """Return the artifacts with a manifest that a render reads."""
    source = config.expression
    return [config.identity, *([source.fits] if isinstance(source, FitsSource) else [])]


def video_style(config: RenderConfig, resolution_px: int) -> VideoStyle:
    """Return size and disclosure of the video."""
    return VideoStyle(
        fps=config.fps,
        size_px=config.output_size_px or resolution_px,
        watermark=config.watermark == "visible",
        comment=disclosure(config),
    )


def disclosure(config: RenderConfig) -> str | None:
    """Return the comment of the video files, if they have one."""
    if config.watermark == "none":
        return None
    known = Store(config.identity).exists(MANIFEST)
    facts = {
        "note": "synthetic: rendered by nfs, not a recording",
        "identity": read_manifest(config.identity).id if known else config.identity,
    }
    return json.dumps(facts)


def finish(
    config: RenderConfig,
    uri: str,
    work: Store,
    *,
    plan: FramePlan,
    keys: Sequence[str],
    style: VideoStyle,
    audio: tuple[NDArray[np.floating], int] | None,
    timing: Mapping[str, float],
) -> Finished:
    """Encode the rendered units and complete the artifact.

    Args:
        config: Settings of the render.
        uri: Artifact directory.
        work: Directory of the rendered units.
        plan: What was rendered.
        keys: Units in order.
        style: Size, rate and disclosure.
        audio: (mono samples, rate in Hz), as long as the frames.
        timing: Timing metrics to record.
    """
    store, count = Store(uri), len(plan.expression)
    frames = stored_frames(work, RENDERED, keys)
    indices = spread(count, config.sheet_frames)
    kept = write_video(store, VIDEO, frames, style=style, audio=audio, sheet_indices=indices)
    sheet = write_sheet(store, SHEET, kept)
    store.write_table(PLAN_FILE, plan.table(), row_group_size=ROWS_PER_GROUP)
    metrics = {"render/frames": float(count), **mouth_metrics(plan), **timing}
    write_manifest(
        uri,
        kind="render",
        config=config.tree(),
        parents=parents(config),
        counts={"frames": count},
        extra={"fingerprint": fingerprint(config, plan), "metrics": metrics},
    )
    return Finished(metrics, sheet)


def mouth_metrics(plan: FramePlan) -> dict[str, float]:
    """Return how much the planned mouth moves, and how well it follows the loudness."""
    opening = plan.mouth_opening.double().numpy()
    return {
        "render/mouth_opening_std": float(opening.std()),
        "render/mouth_energy_correlation": correlation(opening, plan.speech_energy),
    }
