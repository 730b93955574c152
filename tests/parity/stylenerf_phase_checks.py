"""The four training phases against recordings of the original loss, draw by draw.

The recorded random numbers are looked up by meaning and handed to the functions that the training
task calls (`nfs.stylenerf.phases`). Losses: 1e-4 relative, path length 3e-4. Gradient norms: 2e-3
of the norm plus 1e-3 of the total. Path lengths and norms that are further off have to be within
1e-3 and 1e-2, and the recorded value within the same 3e-4 and 2e-3 of what our program gives for
cameras moved by one rounding of float32: the encoding multiplies a rounding of a point by 512 pi,
which alone moves such norms by 3e-3 to 1e-1 (the recording is as far from our float64 result as
from our float32 one).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nfs.stylenerf import Discriminator, Generator
from nfs.stylenerf.generator import Rendering
from nfs.stylenerf.latents import FakeInputs
from nfs.stylenerf.original import generator_name
from nfs.stylenerf.original_discriminator import discriminator_name
from nfs.stylenerf.phases import (
    Critic,
    PhaseLoss,
    discriminator_main,
    discriminator_r1,
    generator_main,
    generator_path_length,
    plain_options,
)
from nfs.stylenerf.rendering import RenderDraws
from nfs.stylenerf.settings import GanSettings
from tests.parity.stylenerf_recording import Recording, Report, recorded_cameras

LOSS, PATH_LENGTH_LOSS, GRADIENT, BUFFER = 1e-4, 3e-4, 2e-3, 1e-5
GRADIENT_CONDITIONED, PATH_LENGTH_CONDITIONED = 1e-2, 1e-3
_NUM_ROUNDINGS, _ROUNDING = 8, 6e-8
_MIXING_PROBABILITY = 0.9
_NOISE = "plane_layer_noise_"


@dataclass(frozen=True)
class _Case:
    """One recorded phase at one alpha."""

    name: str
    alpha: float
    recording: Recording
    rounding: int = 0
    """Seed of roundings that cameras are moved by; 0: none."""

    @property
    def phase(self) -> str:
        return self.name.split("/")[1]

    def tensor(self, name: str) -> Tensor:
        return self.recording[f"{self.name}/{name}"]

    def under(self, name: str) -> dict[str, Tensor]:
        return self.recording.under(f"{self.name}/{name}/")


def train_phases(
    report: Report,
    generator: Generator,
    discriminator: Discriminator,
    recording: Recording,
    config: dict[str, Any],
) -> None:
    """Replay every recorded phase.

    Args:
        report: Gets the checks.
        generator: With the recorded weights.
        discriminator: With the recorded weights.
        recording: `train_phases`.
        config: The folder's `config.json`.
    """
    settings = GanSettings(
        batch_size=config["batch"],
        r1_gamma=0.5,
        pl_weight=2.0,
        path_pixels=config["G"]["synthesis_kwargs"].get("n_reg_samples", 0),
        path_in_all_phases=True,
    )
    names = [k.removesuffix("/alpha") for k in recording.values if k.endswith("/alpha")]
    for name in names:
        case = _Case(name, float(recording.values[f"{name}/alpha"]), recording)
        ours = _run(case, generator, discriminator, settings)

        @cache
        def moved(seed: int, case: _Case = case) -> _Outcome:
            return _run(replace(case, rounding=seed), generator, discriminator, settings)

        _compare_losses(report, case, ours, moved)
        _compare_norms(report, case, ours, moved)
        for key, theirs in case.under("buffers_after").items():
            report.compare(
                f"phases/{name}/{key}", ours.buffers[generator_name(key)], theirs, BUFFER
            )


@dataclass(frozen=True)
class _Outcome:
    """What a phase left: losses and gradient norms by our names, buffers of the generator."""

    losses: dict[str, Tensor]
    norms: dict[str, float]
    buffers: dict[str, Tensor]


def _run(
    case: _Case, generator: Generator, discriminator: Discriminator, settings: GanSettings
) -> _Outcome:
    G, D = copy.deepcopy(generator).train(), copy.deepcopy(discriminator).train()
    # The original sums gradients only where the phase's network is trained.
    G.requires_grad_(case.phase.startswith("G"))
    D.requires_grad_(case.phase.startswith("D"))
    loss = _losses(case, G, D, settings)
    torch.autograd.backward(loss.total)
    trained = G if case.phase.startswith("G") else D
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in trained.named_parameters()
    }
    losses = {name: value.detach() for name, value in _named(case.phase, loss).items()}
    return _Outcome(losses, norms, dict(G.named_buffers()))


def _losses(case: _Case, G: Generator, D: Discriminator, settings: GanSettings) -> PhaseLoss:
    critic = Critic(D, case.alpha)
    if case.phase == "Dreg":
        return discriminator_r1(case.tensor("real"), critic, settings)
    tape = case.recording.draws(f"{case.name}/tape")
    inputs, rendering = _render(case, G, settings, tape)
    if case.phase == "Gmain":
        return generator_main(rendering, inputs.fakes(rendering), critic, settings)
    if case.phase == "Greg":
        noise, start = tape["pl_noise_standard_normal"], torch.zeros(())
        loss, mean = generator_path_length(rendering, noise, start, settings)
        return replace(loss, observed={"pl_mean": mean})
    fakes = inputs.fakes(rendering)
    loss = discriminator_main(fakes, case.tensor("real"), critic, settings)
    # The original adds the path regulariser to this loss too, where it moves nothing.
    path = 0 if rendering.path_loss is None else rendering.path_loss.mean()
    return replace(loss, observed={"recorded": loss.terms["loss/d_fake"] + path})


def _named(phase: str, loss: PhaseLoss) -> dict[str, Tensor]:
    """Return our losses under the names of the recording."""
    if phase == "Dmain":
        return {"Dgen": loss.observed["recorded"], "Dr1": loss.terms["loss/d_real"]}
    if phase == "Greg":
        return {"Gpl": loss.total, "pl_mean": loss.observed["pl_mean"]}
    return {{"Gmain": "Gmain", "Dreg": "Dr1"}[phase]: loss.total}


def _render(
    case: _Case, G: Generator, settings: GanSettings, tape: dict[str, Tensor]
) -> tuple[FakeInputs, Rendering]:
    count = len(tape["camera_radius_uniform"])
    drawn = recorded_cameras(G.spec.cameras, tape)
    mixed = float(tape["mixing_uniform"]) < _MIXING_PROBABILITY
    coarse, importance = tape["sigma_noise_coarse"], tape.get("importance_uniform")
    noises = sorted((k for k in tape if k.startswith(_NOISE)), key=lambda k: int(k[len(_NOISE) :]))
    inputs = FakeInputs(
        z=case.tensor("gen_z")[:count],
        cam2world=_moved(drawn.cam2world.float(), case.rounding),
        background_code=tape["z_shape_bg"] if G.background_dim else torch.zeros(count, 0),
        position=drawn.position.float(),
        mixing=(tape["mixing_z"], int(tape["mixing_cutoff"])) if mixed else None,
        draws=RenderDraws(
            depth_jitter=tape["depth_jitter_fg_uniform"],
            sigma_noise_coarse=coarse,
            importance=None if importance is None else importance.reshape(coarse.shape),
            sigma_noise_fine=tape.get("sigma_noise_fine"),
            background_jitter=tape.get("depth_jitter_bg_uniform"),
            sigma_noise_background=tape.get("sigma_noise_bg"),
            layer_noise=tuple(tape[name] for name in noises) or None,
            roll=tape.get("roll_standard_normal"),
            path_offsets=tape.get("reg_pixel_offset_uniform"),
        ),
    )
    with torch.set_grad_enabled(case.phase.startswith("G")):
        return inputs, inputs.render(G, plain_options(settings, case.alpha))


def _moved(values: Tensor, seed: int) -> Tensor:
    """Return float32 values, each moved up, down or not by one rounding; seed 0 moves none."""
    if seed == 0:
        return values
    rng = torch.Generator().manual_seed(seed)
    return values * (1 + _ROUNDING * (torch.randint(0, 3, values.shape, generator=rng) - 1))


def _compare_losses(
    report: Report, case: _Case, ours: _Outcome, moved: Callable[[int], _Outcome]
) -> None:
    recorded = case.under("losses")
    for key, value in ours.losses.items():
        name = f"phases/{case.name}/{key}"
        if case.phase != "Greg":
            report.compare(name, value, recorded[key], LOSS)
            continue
        theirs = float(case.tensor("pl_mean") if key == "pl_mean" else recorded[key])
        _compare(
            report,
            name,
            {key: float(value)},
            {key: theirs},
            {key: abs(theirs)},
            (PATH_LENGTH_LOSS, PATH_LENGTH_CONDITIONED),
            lambda seed, key=key: {key: float(moved(seed).losses[key])},
        )


def _compare_norms(
    report: Report, case: _Case, ours: _Outcome, moved: Callable[[int], _Outcome]
) -> None:
    rename = generator_name if case.phase.startswith("G") else discriminator_name
    prefix = f"{case.name}/grad_norms/"
    recorded = {
        rename(k[len(prefix) :]): v
        for k, v in case.recording.values.items()
        if k.startswith(prefix)
    }
    assert recorded, f"{case.name}: no recorded gradient norms"
    unknown = sorted(recorded.keys() - ours.norms.keys())
    assert not unknown, f"{case.name}: no such parameters: {unknown}"
    # What the recording leaves out had no gradient.
    theirs = {n: recorded.get(n, 0.0) for n in ours.norms}
    total = sum(v**2 for v in theirs.values()) ** 0.5
    scale = {n: value + 1e-3 * total for n, value in theirs.items()}
    _compare(
        report,
        f"phases/{case.name}/grad_norms",
        ours.norms,
        theirs,
        scale,
        (GRADIENT, GRADIENT_CONDITIONED),
        lambda seed: moved(seed).norms,
    )


def _compare(
    report: Report,
    name: str,
    ours: dict[str, float],
    theirs: dict[str, float],
    scale: dict[str, float],
    bounds: tuple[float, float],
    moved: Callable[[int], dict[str, float]],
) -> None:
    """Compare numbers, those beyond the tight bound with what roundings make of ours.

    Args:
        report: Gets the checks.
        name: Of the check.
        ours: By key.
        theirs: Recorded, by key.
        scale: What errors are relative to, by key.
        bounds: Tight, and the wide one for ill-conditioned numbers.
        moved: Returns ours for cameras moved by roundings of a seed.
    """
    tight, wide = bounds
    worst = max(abs(ours[n] - theirs[n]) / scale[n] for n in ours)
    if worst <= tight:
        report.add(name, worst, tight)
        return
    report.add(name, worst, wide)
    found = [ours, *(moved(seed) for seed in range(1, _NUM_ROUNDINGS + 1))]
    outside = 0.0
    for n in ours:
        low, high = min(values[n] for values in found), max(values[n] for values in found)
        outside = max(outside, (low - theirs[n]) / scale[n], (theirs[n] - high) / scale[n])
    report.add(f"{name}_within_rounding", outside, tight)
