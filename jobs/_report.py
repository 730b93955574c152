"""Collecting what the stages left behind into one HTML page."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import JobRun, browser_command
from nfs.artifacts import read_manifest
from nfs.artifacts.store import Store
from nfs.report import Quarantine, ReportData, StageReport, build_report
from nfs.tracking.jsonl import JsonlTracker

if TYPE_CHECKING:
    from nfs.config.pipeline import PipelineConfig

MAX_PICTURES = 6
SUMMARIES = {
    "preprocess": "Videos and photos are decoded, faces found and followed, 68 landmarks placed, "
    "and each frame cut out in one aligned frame; sound becomes 16 kHz and a mel spectrogram.",
    "fit_3dmm": "A morphable head is fitted to the landmarks of every frame, with one identity "
    "per clip. The mesh should sit on the face and its mouth should follow.",
    "train_stylenerf": "A 3D-aware generator is trained from scratch on the aligned faces. "
    "In minutes on a CPU it learns blurry heads, not portraits.",
    "train_audio2exp": "A network learns expression coefficients from sound; the last part of "
    "the clip is held out.",
    "tune_audio2exp": "A small search over the expression network's settings.",
    "invert": "The person's frames are projected into the generator and the generator is tuned "
    "around that code: target, projection, tuned result, other views.",
    "tune_pti": "A small search over the inversion's settings.",
    "render": "The voice moves the head: expression per frame, moved vertices, bent rays. "
    "The inside of the mouth is painted until the lip network exists.",
}
PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "av", "face-alignment", "easypytorch3d")


def write_report(
    config: PipelineConfig, job: JobRun, results: Mapping[str, Mapping[str, Any]], person: str
) -> Path:
    """Write `report.html` into the run directory and return its path.

    Args:
        config: The pipeline.
        job: Its run.
        results: Stage -> result.
        person: Clip id whose pictures come first.
    """
    inputs = ", ".join(config.inputs())
    data = ReportData(
        title="From a talking clip to a talking head",
        subtitle=f"{job.name}, {datetime.now():%Y-%m-%d %H:%M}\ninput: {inputs}",
        stages=[_stage(stage, result, person) for stage, result in results.items()],
        quarantined=list(_quarantined(results)),
        environment=_environment(),
        how_to_open=_how_to_open(results),
    )
    file = job.directory / "report.html"
    Store(job.directory).write_bytes(file.name, build_report(data).encode())
    return file


def _stage(stage: str, result: Mapping[str, Any], person: str) -> StageReport:
    directory = Path(result["directory"])
    tracking = directory / "tracking"
    return StageReport(
        name=stage,
        seconds=result["seconds"],
        summary=SUMMARIES[stage],
        metrics={k: v for k, v in result["metrics"].items() if isinstance(v, int | float)},
        images=[(_caption(p), p.read_bytes()) for p in _pictures(tracking / "images", person)],
        videos=[(p.name, p.read_bytes()) for p in sorted(directory.glob("render/*.mp4"))],
        curves=_curves(tracking),
        notes=[f"{kind}: {path}" for kind, path in result["artifacts"].items()],
        reused=result["reused"],
    )


def _pictures(folder: Path, person: str) -> list[Path]:
    """Return the newest picture of each name, the person's first, at most a handful."""
    newest: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        newest[_caption(path)] = path
    return sorted(newest.values(), key=lambda p: person not in p.name)[:MAX_PICTURES]


def _caption(path: Path) -> str:
    name, dash, step = path.stem.rpartition("-")
    return name if dash and step.isdigit() else path.stem


def _curves(tracking: Path) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    if not tracking.is_dir():
        return series
    for row in JsonlTracker(tracking, "report").read():
        for key, value in row["metrics"].items():
            series.setdefault(key, []).append((row["step"], value))
    wanted = ("loss/", "val/", "perceptual", "nme")
    return {
        key: sorted(points)
        for key, points in sorted(series.items())
        if key.startswith(wanted) and len({value for _, value in points}) > 1
    }


def _quarantined(results: Mapping[str, Mapping[str, Any]]) -> Iterable[Quarantine]:
    for stage, result in results.items():
        for uri in result["artifacts"].values():
            if Store(uri).exists("manifest.json"):
                for entry in read_manifest(uri).quarantined:
                    yield Quarantine(stage, entry.item, entry.reason)


def _environment() -> dict[str, str]:
    facts = {"python": sys.version.split()[0], "machine": platform.platform()}
    return facts | {package: version(package) for package in PACKAGES}


def _how_to_open(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    uris = {r["tracking_uri"] for r in results.values() if r["tracking_uri"]}
    return [browser_command(uri) for uri in sorted(uris)]
