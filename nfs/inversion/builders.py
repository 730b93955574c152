"""From settings to an inversion: the only file of this room that reads configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nfs.arcface import ArcfaceDistance
from nfs.artifacts import Store
from nfs.artifacts.manifest import MANIFEST
from nfs.config.invert import InvertConfig
from nfs.errors import InputError
from nfs.inversion.calibration import Calibration, calibrate
from nfs.inversion.case import Case
from nfs.inversion.evaluation import Latent
from nfs.inversion.frames import Frames, load_frames
from nfs.inversion.identity import Extras, Identity, save_identity
from nfs.inversion.locality import Locality
from nfs.inversion.portrait import portrait_frames
from nfs.inversion.projector import Projection, Start, project
from nfs.inversion.report import Views, measure, previews, render_views
from nfs.inversion.settings import ProjectSettings, TuneSettings
from nfs.inversion.targets import tile_mask
from nfs.inversion.tuning import TuneOptions, Tuning, tune
from nfs.optim import LoopResult
from nfs.perceptual import ImageDistance, build_distance, find_identity
from nfs.runtime.context import WorkerContext
from nfs.runtime.progress import report_progress
from nfs.stylenerf.builders import load_generator
from nfs.stylenerf.generator import Generator
from nfs.tracking.protocol import Tracker
from nfs.training.checkpoint import read_model

Inspect = Callable[[int, Generator], None]


@dataclass(frozen=True)
class Inversion:
    """A finished inversion before it is written.

    Attributes:
        projection: The latent.
        tuning: The tuned generator.
        views: Renderings of the fitted frames and novel views.
        metrics: Numbers by metric key.
    """

    projection: Projection
    tuning: Tuning
    views: Views
    metrics: dict[str, float]


def build_case(config: InvertConfig, device: torch.device) -> Case:
    """Load the generator, the frames and the backends of a configuration."""
    generator = load_generator(config.checkpoint).to(device).eval().requires_grad_(False)
    grown_px = generator.stage(generator.alpha).image_resolution
    if grown_px < generator.img_resolution:
        raise InputError(
            f"checkpoint={config.checkpoint}: saved at growth stage {generator.alpha:g}, "
            f"its images have {grown_px} of {generator.img_resolution} px; finish its growth"
        )
    frames, held_out = _load(config, generator)
    distance = build_distance(config.perceptual, _arcface(config))
    distance.to(device)
    images = frames.images.to(device)
    mask = None
    if config.held_out_tiles:
        mask = tile_mask(
            generator.img_resolution, seed=config.seed, held_out=config.held_out_tiles
        ).to(device)
    return Case(
        generator,
        frames,
        held_out,
        images,
        frames.cam2world.to(device),
        mask,
        distance,
        find_identity(distance),
        calibrate(distance, images),
    )


def run_inversion(
    config: InvertConfig,
    case: Case,
    directory: Path,
    *,
    tracker: Tracker,
    on_step: Callable[[int], None] = lambda _: None,
    inspect: Callable[[Latent], Inspect] | None = None,
) -> Inversion:
    """Project, tune and measure; continues from the states in `directory`.

    Args:
        config: Settings.
        case: What `build_case` loaded.
        directory: Folder of the saved states.
        tracker: Records losses.
        on_step: Called after every optimiser step with the number of steps done.
        inspect: Makes a hook that sees the generator during tuning, given the latent.
    """
    record = _Recorder(tracker, case.distance.name, config.log_every, on_step)
    projection = project(
        case.generator,
        case.images,
        cam2world=case.cam2world,
        distance=case.distance,
        settings=project_settings(config),
        start=Start(mask=case.mask),
        on_step=record.hook("project", 0),
        state=directory / "projection.pt",
    )
    latent = Latent(projection.ws, projection.background_code)
    tuning = tune(
        case.generator,
        case.images,
        latent.ws,
        background_code=latent.background_code,
        cam2world=case.cam2world,
        distance=case.distance,
        settings=tune_settings(config, case.calibration),
        options=TuneOptions(
            mask=case.mask,
            regulariser=_locality(config, case, latent),
            on_step=record.hook("tune", config.project.num_steps),
            inspect=None if inspect is None else inspect(latent),
            state=directory / "tuning.pt",
        ),
    )
    views = render_views(case, tuning.generator, latent, config.novel_yaw_deg)
    metrics = measure(case, tuning.generator, latent, views)
    metrics |= _time_metrics(projection.result, tuning.result)
    return Inversion(projection, tuning, views, metrics)


def invert_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Invert one person and write the identity artifact; the worker function of `jobs.invert`.

    Args:
        tree: `InvertConfig` as plain JSON values.
        context: Device, run directory, tracker.

    Returns:
        `{"metrics": ..., "artifacts": {"identity": path}}`.
    """
    config = InvertConfig.from_tree(tree)
    last = config.project.num_steps + config.tune.num_steps

    def on_step(done: int) -> None:
        report_progress(context.directory, done, last, "steps")

    case = build_case(config, context.device)
    inversion = run_inversion(
        config, case, context.directory / "state", tracker=context.tracker, on_step=on_step
    )
    pictures = previews(case, inversion.views)
    for name, picture in pictures.items():
        context.tracker.log_image(name, picture)
    report_progress(context.directory, last, last, "steps")
    context.tracker.log_metrics(
        {f"invert/{name}": value for name, value in inversion.metrics.items()}, step=last
    )
    uri = str(context.directory / "identity")
    save_identity(uri, _identity(case, inversion), _extras(config, case, inversion, pictures))
    return {"metrics": inversion.metrics, "artifacts": {"identity": uri}}


def project_settings(config: InvertConfig) -> ProjectSettings:
    """Return the settings of the projection."""
    chosen = config.project
    return ProjectSettings(**chosen.model_dump(), seed=config.seed, save_every=config.save_every)


def tune_settings(config: InvertConfig, calibration: Calibration) -> TuneSettings:
    """Return the settings of the tuning, with the stop threshold of this target."""
    chosen = config.tune
    values = chosen.model_dump(exclude={"stop_factor", "locality"})
    threshold = None
    if chosen.stop_factor is not None:
        threshold = chosen.stop_factor * calibration.unit
    if chosen.locality is not None:
        values |= {
            "locality_weight": chosen.locality.weight,
            "locality_interval": chosen.locality.interval,
        }
    return TuneSettings(
        **values, stop_threshold=threshold, seed=config.seed, save_every=config.save_every
    )


def _identity(case: Case, inversion: Inversion) -> Identity:
    return Identity(
        inversion.tuning.generator,
        inversion.projection.ws,
        inversion.projection.background_code,
        case.cam2world,
        case.frames.coefficients,
        reference=0,
        model_id=case.frames.model_id,
        model_checksum=case.frames.model_checksum,
        clip_id=case.frames.clip_id,
        frame_indices=case.frames.frame_indices,
    )


def _extras(
    config: InvertConfig, case: Case, inversion: Inversion, pictures: dict[str, NDArray[np.uint8]]
) -> Extras:
    return Extras(
        previews=pictures,
        losses=_losses(case, inversion),
        metrics=inversion.metrics,
        model=read_model(config.checkpoint),
        config=config.tree(),
        parents=_parents(config),
        perceptual={"name": case.distance.name, "checksum": case.distance.checksum},
    )


def _parents(config: InvertConfig) -> list[str]:
    inputs = [uri for uri in (config.clips, config.fits) if uri is not None]
    networks = [uri for uri in (config.checkpoint, config.arcface) if uri is not None]
    return inputs + [uri for uri in networks if Store(uri).exists(MANIFEST)]


def _load(config: InvertConfig, generator: Generator) -> tuple[Frames, Frames | None]:
    if config.portrait is not None:
        frames = portrait_frames(
            config.portrait,
            model_spec=config.model,
            size_px=generator.img_resolution,
            fov_deg=generator.spec.fov_deg,
        )
        return frames, None
    assert config.clips is not None
    assert config.fits is not None
    return load_frames(
        config.clips,
        config.fits,
        clip_id=config.clip_id,
        size_px=generator.img_resolution,
        fov_deg=generator.spec.fov_deg,
        num_frames=config.num_frames,
        num_held_out=config.num_held_out,
    )


def _arcface(config: InvertConfig) -> dict[str, Callable[[], ImageDistance]]:
    if config.arcface is None:
        return {}
    return {"arcface": partial(ArcfaceDistance.from_checkpoint, config.arcface)}


def _locality(config: InvertConfig, case: Case, latent: Latent) -> Locality | None:
    if config.tune.locality is None:
        return None
    return Locality(
        case.generator,
        latent.ws,
        latent.background_code,
        case.cam2world,
        case.distance,
        alpha=config.tune.locality.alpha,
        seed=config.seed,
    )


def _time_metrics(projection: LoopResult, tuning: LoopResult) -> dict[str, float]:
    return {
        "project_steps": float(projection.num_updates),
        "project_s": projection.seconds,
        "tune_steps": float(tuning.num_updates),
        "tune_s": tuning.seconds,
    }


def _losses(case: Case, inversion: Inversion) -> dict[str, Any]:
    return {
        "perceptual": case.distance.name,
        "calibration": asdict(case.calibration),
        "projection": inversion.projection.losses,
        "tuning": inversion.tuning.losses,
        "projection_stopped": inversion.projection.result.stopped,
        "tuning_stopped": inversion.tuning.result.stopped,
    }


class _Recorder:
    """Turns the losses of steps into tracked metrics `<stage>/<loss>`."""

    def __init__(self, tracker: Tracker, backend: str, every: int, on_step: Callable[[int], None]):
        self.tracker, self.backend, self.every, self.on_step = tracker, backend, every, on_step

    def hook(self, stage: str, offset: int) -> Callable[[int, Mapping[str, float]], None]:
        """Return the hook of a stage whose first step is number `offset`."""

        def record(step: int, losses: Mapping[str, float]) -> None:
            self.on_step(offset + step + 1)
            if step % self.every == 0:
                renamed = {"perceptual": f"perceptual_{self.backend}"}
                rows = {f"{stage}/{renamed.get(k, k)}": v for k, v in losses.items()}
                self.tracker.log_metrics(rows, step=offset + step)

        return record
