"""Margins: what happens to the cosine of an image with its own class centre (spec/arcface.md 2.5).

B images, C columns (local or sampled classes). A label of -1 means that the class is in no column;
such a row passes unchanged. Outputs are multiplied by `scale`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nfs.errors import ConfigError

Gradient = Literal["exact", "straight_through"]
Fold = Literal["none", "linear"]
FilterMode = Literal["zero", "exclude"]
# Bound of sin(theta) from below: the slope of the exact margin is infinite at theta = 0.
_MIN_SINE = 1e-6


class Margin(Protocol):
    """Turns cosines into logits."""

    def __call__(self, cosines: Tensor, labels: Tensor, norms: Tensor | None = None, /) -> Tensor:
        """Return logits `[B, C]`.

        Args:
            cosines: `[B, C]` in [-1, 1].
            labels: `[B]` columns, or -1.
            norms: `[B]` lengths of the embeddings (AdaFace).
        """
        ...


class CombinedMargin(nn.Module):
    """`scale * (cos(m1 theta + m2) - m3)` on the target (Deng et al. 2019, eq. 4).

    Args:
        m1: Factor of the angle (SphereFace).
        m2: Added to the angle, radians (ArcFace).
        m3: Taken from the cosine (CosFace).
        scale: Factor of the logits.
        gradient: `exact`, or `straight_through`: slope 1 as in the 2023 original.
        fold: `linear` continues `cos(theta + m2)` as `cos(theta) - m2 sin(m2)` where theta + m2
            passes pi (2022 original; needs m1 = 1); `none` lets it rise again.
        interclass_filter: Non-target cosines above this are dropped; 0 keeps all.
        filter_mode: A dropped logit becomes `zero` (counts exp(0), as the original) or is excluded.
    """

    def __init__(
        self,
        m1: float = 1.0,
        m2: float = 0.0,
        m3: float = 0.0,
        *,
        scale: float = 64.0,
        gradient: Gradient = "exact",
        fold: Fold = "none",
        interclass_filter: float = 0.0,
        filter_mode: FilterMode = "zero",
    ) -> None:
        super().__init__()
        if fold == "linear" and m1 != 1:
            raise ConfigError(f"margin: fold=linear needs m1=1, got m1={m1}")
        if m1 <= 0 or m2 < 0 or scale <= 0:
            raise ConfigError(f"margin: need m1 > 0, m2 >= 0, scale > 0; got {(m1, m2, scale)}")
        self.m1, self.m2, self.m3, self.scale = m1, m2, m3, scale
        self.gradient, self.fold = gradient, fold
        self.interclass_filter, self.filter_mode = interclass_filter, filter_mode

    def forward(self, cosines: Tensor, labels: Tensor, _norms: Tensor | None = None) -> Tensor:
        """Return logits `[B, C]`; lengths are not used."""
        rows, columns = _targets(labels)
        target = cosines[rows, columns]
        change = self._target(target) - target
        if self.gradient == "straight_through":
            change = change.detach()
        kept = filter_interclass(
            cosines, (rows, columns), threshold=self.interclass_filter, mode=self.filter_mode
        )
        return kept.index_put((rows, columns), change, accumulate=True) * self.scale

    def _target(self, target: Tensor) -> Tensor:
        if self.m1 == 1 and self.m2 == 0:
            return target - self.m3
        moved = torch.cos(self.m1 * arccos(target) + self.m2)
        if self.fold == "linear":
            line = target - self.m2 * math.sin(self.m2)
            moved = torch.where(target > math.cos(math.pi - self.m2), moved, line)
        return moved - self.m3

    def extra_repr(self) -> str:
        """Describe the margin."""
        return f"m1={self.m1}, m2={self.m2}, m3={self.m3}, scale={self.scale}, {self.gradient}"


class AdaFace(nn.Module):
    """Margin that depends on image quality, read from the embedding's length (Kim et al. 2022).

    Args:
        margin: m of the paper.
        concentration: h of the paper.
        decay: Weight of the current batch in the running statistics of the lengths.
        scale: Factor of the logits.
        interclass_filter: Non-target cosines above this are dropped; 0 keeps all.
        filter_mode: As in `CombinedMargin`.
    """

    def __init__(
        self,
        margin: float = 0.4,
        *,
        concentration: float = 0.333,
        decay: float = 0.01,
        scale: float = 64.0,
        interclass_filter: float = 0.0,
        filter_mode: FilterMode = "zero",
    ) -> None:
        super().__init__()
        self.margin, self.concentration, self.decay, self.scale = (
            margin,
            concentration,
            decay,
            scale,
        )
        self.interclass_filter, self.filter_mode = interclass_filter, filter_mode
        self.norm_mean: Tensor
        self.norm_std: Tensor
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))

    def forward(self, cosines: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        """Return logits `[B, C]`; in training mode the statistics follow `norms`."""
        if norms is None:
            raise ValueError("AdaFace needs the lengths of the embeddings")
        lengths = norms.detach().clamp(0.001, 100)
        if self.training and len(lengths) > 1:
            self.norm_mean.lerp_(lengths.mean(), self.decay)
            self.norm_std.lerp_(lengths.std(), self.decay)
        quality = (lengths - self.norm_mean) / (self.norm_std + 1e-3) * self.concentration
        quality = quality.clamp(-1, 1).to(cosines.dtype)
        rows, columns = _targets(labels)
        target, quality = cosines[rows, columns], quality[rows]
        theta = (arccos(target) - self.margin * quality).clamp(1e-3, math.pi - 1e-3)
        moved = torch.cos(theta) - (self.margin + self.margin * quality)
        kept = filter_interclass(
            cosines, (rows, columns), threshold=self.interclass_filter, mode=self.filter_mode
        )
        return kept.index_put((rows, columns), moved - target, accumulate=True) * self.scale


def arcface(margin: float = 0.5, *, scale: float = 64.0, **options: Any) -> CombinedMargin:
    """Return the additive angular margin; `margin` in radians."""
    return CombinedMargin(m2=margin, scale=scale, **options)


def cosface(margin: float = 0.35, *, scale: float = 64.0, **options: Any) -> CombinedMargin:
    """Return the additive cosine margin."""
    return CombinedMargin(m3=margin, scale=scale, **options)


def upstream(
    margins: tuple[float, float, float], *, scale: float = 64.0, interclass_filter: float = 0.0
) -> CombinedMargin:
    """Return what the 2023 original makes of `margin_list`: quirks Q1 and Q2 on purpose.

    m1 = 1 and m3 = 0: ArcFace with slope 1. m3 > 0: CosFace, m1 and m2 ignored.

    Raises:
        ConfigError: For the settings on which the original stops without a message.
    """
    m1, m2, m3 = margins
    if m1 == 1 and m3 == 0:
        return CombinedMargin(
            m2=m2, scale=scale, gradient="straight_through", interclass_filter=interclass_filter
        )
    if m3 > 0:
        return CombinedMargin(m3=m3, scale=scale, interclass_filter=interclass_filter)
    raise ConfigError(
        f"margin: the original has no margin for (m1, m2, m3) = {margins}; use kind=combined"
    )


class _Arccos(torch.autograd.Function):
    """`arccos` whose slope stays finite at the ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.acos(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -grads[0] / ((1 - x) * (1 + x)).clamp_min(_MIN_SINE**2).sqrt()


def arccos(x: Tensor) -> Tensor:
    """Return the angle of cosines in [-1, 1]; the slope uses `max(sin(theta), 1e-6)`."""
    return _Arccos.apply(x)  # type: ignore[no-untyped-call] # torch


def filter_interclass(
    cosines: Tensor, targets: tuple[Tensor, Tensor], *, threshold: float, mode: FilterMode
) -> Tensor:
    """Drop non-target cosines above `threshold`, with gradient 0; 0 keeps all."""
    if threshold <= 0:
        return cosines
    drop = cosines.detach() > threshold
    drop[targets] = False
    return cosines.masked_fill(drop, 0.0 if mode == "zero" else -math.inf)


def _targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    labels = labels.reshape(-1)
    rows = torch.nonzero(labels >= 0)[:, 0]
    return rows, labels[rows]
