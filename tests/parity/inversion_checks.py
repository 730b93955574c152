"""Inversion against recorded outputs of PTI: schedule, noise, both projectors, locality."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from nfs.inversion.locality import Locality, near_pivot
from nfs.inversion.noise import noise_regulariser
from nfs.inversion.projector import Start, project, w_statistics
from nfs.inversion.settings import ProjectSettings
from nfs.optim import fading_noise, ramp
from tests.parity.replay import Check, check

LEARNING_RATE, NOISE_SCALE = 0.01, 0.05


class RecordedGenerator(nn.Module):
    """The recordings' generator behind our interface: linear maps instead of networks."""

    background_dim = 1

    def __init__(self, weights: dict[str, Tensor], prefix: str, num_ws: int, *, noise: bool):
        super().__init__()
        self.num_ws = num_ws
        self.f = _linear(weights, f"{prefix}.mapping.f")
        self.l = _linear(weights, f"{prefix}.synthesis.l")
        self.st = weights[f"{prefix}.synthesis.st"].item()
        self.register_buffer("w_avg", weights[f"{prefix}.mapping.w_avg"].clone())
        if noise:
            self.register_buffer("noise_const", weights[f"{prefix}.synthesis.noise_const"].clone())
        self.z_dim, self.w_dim = self.f.in_features, self.f.out_features
        self.img_resolution = int((self.l.out_features // 3) ** 0.5)

    def mapping(self, z: Tensor, *, truncation_psi: float = 1.0) -> Tensor:
        w = self.w_avg.lerp(2 * torch.tanh(self.f(z)), truncation_psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(self, ws: Tensor, *_: object, **__: object) -> SimpleNamespace:
        size = self.img_resolution
        image = torch.tanh(self.l(ws.flatten(1))).view(-1, 3, size, size)
        if hasattr(self, "noise_const"):
            image = image + self.st * self.noise_const
        return SimpleNamespace(image=image)

    def frozen_background_camera(self, batch: int) -> Tensor:
        return torch.eye(4).expand(batch, 4, 4)


class RecordedDistance(nn.Module):
    """Squared difference of one convolution of 0..255 images."""

    name, checksum, num_features = "recorded", "none", 1

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def features(self, images: Tensor) -> list[Tensor]:
        return [functional.conv2d((images + 1) * 127.5, self.weight, stride=2)]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        return (first[0] - second[0]).square().sum((1, 2, 3))


class MeanAbsolute(nn.Module):
    """Per-image mean absolute difference."""

    name, checksum, num_features = "mean_absolute", "none", 1

    def features(self, images: Tensor) -> list[Tensor]:
        return [images]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        return (first[0] - second[0]).abs().mean((1, 2, 3))


def checks(folder: Path) -> dict[str, Check]:
    """Run every check whose recording is in the folder."""
    sections: list[tuple[str, Callable[[Path], Iterator[tuple[str, Check]]]]] = [
        ("pti_schedule_*.npz", _schedule),
        ("pti_noise_reg*.safetensors", _noise),
        ("pti_projector_*.safetensors", _projector),
        ("pti_space_regulariser*.safetensors", _locality),
    ]
    results: dict[str, Check] = {}
    for pattern, section in sections:
        for file in sorted(folder.glob(pattern)):
            results |= {f"{file.stem}/{name}": value for name, value in section(file)}
    return results


def _schedule(file: Path) -> Iterator[tuple[str, Check]]:
    recorded = np.load(file)
    num_steps = len(recorded["lr"])
    for name, schedule, scale in (
        ("lr", ramp(num_steps), LEARNING_RATE),
        ("noise_over_wstd", fading_noise(num_steps), NOISE_SCALE),
    ):
        values = np.array([scale * schedule(step) for step in range(num_steps)])
        yield name, check(np.abs(values - recorded[name]).max(), 1e-12)


def _noise(file: Path) -> Iterator[tuple[str, Check]]:
    recorded = load_file(file)
    value = noise_regulariser([recorded["noise"]])
    yield "value", check(_relative(value, recorded["reg"]), 1e-6)


def _projector(file: Path) -> Iterator[tuple[str, Check]]:
    recorded, facts = load_file(file), json.loads(file.with_suffix(".json").read_text())
    generator = RecordedGenerator(recorded, "generator", facts["num_ws"], noise=True)
    statistics = w_statistics(generator, facts["w_avg_samples"])
    yield "w_avg", check(_relative(statistics.mean, recorded["w_avg"]), 1e-5)
    yield "w_std", check(abs(statistics.std / facts["w_std"] - 1), 1e-5)
    for space in ("w", "w_plus"):
        draws = recorded[f"{space}.w_noise"]
        found = project(
            generator,
            recorded["target"][None] / 127.5 - 1,
            cam2world=torch.eye(4)[None],
            distance=RecordedDistance(recorded["feature_conv_weight"]),
            settings=ProjectSettings(
                num_steps=facts["num_steps"],
                space=space,
                learning_rate=LEARNING_RATE,
                noise_scale=NOISE_SCALE,
                num_w_samples=2,
            ),
            start=Start(
                ws=recorded["w_avg"],
                w_std=facts["w_std"],
                noise={"noise_const": recorded[f"{space}.noise_init"]},
                draw_w_noise=lambda step, _, draws=draws: draws[step],
            ),
        )
        expected = recorded[f"{space}.w_out"]
        # The original repeats a W result 18 times whatever the generator; ours has num_ws rows.
        ours = found.ws[:, :1].expand_as(expected) if space == "w" else found.ws
        yield space, check(_relative(ours, expected), 1e-3)


def _locality(file: Path) -> Iterator[tuple[str, Check]]:
    recorded, facts = load_file(file), json.loads(file.with_suffix(".json").read_text())
    pivot = recorded["w_pivot"]
    old, new = (
        RecordedGenerator(recorded, name, pivot.shape[1], noise=False)
        for name in ("generator_old", "generator_new")
    )
    morphed = near_pivot(pivot, recorded["new_w"], facts["alpha"])
    yield "morphed_w", check(_relative(morphed, recorded["morphed_w"]), 1e-6)
    locality = Locality(
        old, pivot, torch.zeros(1, 1), torch.eye(4)[None], MeanAbsolute(), alpha=facts["alpha"]
    )
    locality.l2_weight, locality.perceptual_weight = facts["l2_lambda"], facts["perceptual_lambda"]
    sampled = old.mapping(recorded["z"].float(), truncation_psi=facts["truncation_psi"])
    ws = near_pivot(pivot, sampled, facts["alpha"])
    loss = locality.difference(new, ws, torch.eye(4)[None])
    yield "loss", check(_relative(loss, recorded["loss"]), 1e-6)
    (gradient,) = torch.autograd.grad(loss, [new.l.weight])
    expected = recorded["grad_generator_new_synthesis_l_weight"]
    yield "gradient", check(_relative(gradient, expected), 1e-6)


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight = weights[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
    return layer


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest recorded magnitude."""
    return float((found - expected).detach().abs().max() / expected.abs().max())
