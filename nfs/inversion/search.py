"""One trial of `tuning.pti`: project and tune a held configuration, report as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nfs.config.invert import InvertConfig
from nfs.errors import ConfigError
from nfs.inversion.builders import Inspect, build_case, run_inversion
from nfs.inversion.case import Case
from nfs.inversion.evaluation import Latent
from nfs.inversion.report import measure, render_views
from nfs.runtime.collectives import pick_device
from nfs.stylenerf.generator import Generator
from nfs.tracking.null import NullTracker

NUM_REPORTS = 5
NOVEL_WEIGHT = 1.0


def search_trial(
    tree: dict[str, Any], report: Callable[[dict[str, float]], object], directory: Path
) -> None:
    """Invert one person with sampled settings and report the objective during tuning.

    Each report has `inversion/steps` (projection and tuning steps done), `val/novel_view_score`
    (minimised: perceptual distance on held-out frames or tiles, plus 1 - identity similarity of the
    novel views), its parts and `time/trial_s`. A trial that is started again in the same directory
    continues.

    Args:
        tree: `InvertConfig` as plain JSON values; `num_held_out` or `held_out_tiles` must be set.
        report: Called about five times; may raise to end the trial.
        directory: Folder of this trial.

    Raises:
        ConfigError: If the settings are wrong or nothing is held out.
    """
    config = InvertConfig.from_tree(tree, source="trial")
    if not config.num_held_out and not config.held_out_tiles:
        raise ConfigError("a search needs num_held_out > 0 (clips) or held_out_tiles > 0 (photos)")
    case = build_case(config, pick_device())
    started = time.monotonic()
    every = max(1, config.tune.num_steps // NUM_REPORTS)

    def watch(latent: Latent) -> Inspect:
        def inspect(step: int, generator: Generator) -> None:
            done = step + 1
            if done % every == 0 and done < config.tune.num_steps:
                report(_row(config, case, generator, latent, done, started))

        return inspect

    inversion = run_inversion(config, case, directory, tracker=NullTracker(), inspect=watch)
    latent = Latent(inversion.projection.ws, inversion.projection.background_code)
    steps = config.tune.num_steps
    report(_row(config, case, inversion.tuning.generator, latent, steps, started))


@torch.no_grad()
def _row(
    config: InvertConfig,
    case: Case,
    generator: Generator,
    latent: Latent,
    step: int,
    started: float,
) -> dict[str, float]:
    views = render_views(case, generator, latent, config.novel_yaw_deg)
    metrics = measure(case, generator, latent, views)
    perceptual = metrics[f"held_out_perceptual_{case.distance.name}"]
    identity = metrics.get("novel_view_identity", 1.0)
    return {
        "inversion/steps": float(config.project.num_steps + step),
        "val/novel_view_score": perceptual + NOVEL_WEIGHT * (1 - identity),
        f"val/held_out_perceptual_{case.distance.name}": perceptual,
        "val/novel_view_identity": identity,
        f"val/tuned_perceptual_{case.distance.name}": metrics[
            f"tuned_perceptual_{case.distance.name}"
        ],
        "time/trial_s": time.monotonic() - started,
    }
