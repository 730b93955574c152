"""The embedding networks by name: the sixteen names of the original and what they mean."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfs.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_IRESNET_BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
    "r2060": (3, 128, 896, 3),
}
_R2060_SEGMENTS = (0, 20, 100, 0)


@dataclass(frozen=True)
class _Vit:
    dim: int
    depth: int
    drop_path: float
    mask_ratio: float
    recompute: bool = False


_VITS = {
    "vit_t": _Vit(256, 12, 0.1, 0.1),
    "vit_t_dp005_mask0": _Vit(256, 12, 0.05, 0.0),
    "vit_s": _Vit(512, 12, 0.1, 0.1),
    "vit_s_dp005_mask_0": _Vit(512, 12, 0.05, 0.0),
    "vit_b": _Vit(512, 24, 0.1, 0.1, recompute=True),
    "vit_b_dp005_mask_005": _Vit(512, 24, 0.05, 0.05, recompute=True),
    "vit_l_dp005_mask_005": _Vit(768, 24, 0.05, 0.05, recompute=True),
    "vit_h": _Vit(1024, 48, 0.1, 0.0, recompute=True),
}
_ALIASES = {"vit_l": "vit_l_dp005_mask_005"}
_MOBILE = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}

NAMES = (*_IRESNET_BLOCKS, *_MOBILE, *_VITS, *_ALIASES)


@dataclass(frozen=True)
class BackboneOptions:
    """What can be changed about a backbone; None keeps what its name means.

    Attributes:
        image_size_px: Pixels per side of the input; published weights need 112.
        dropout: Probability before the last linear layer (IResNet only).
        drop_path: Drop rate of the last block (ViT only).
        mask_ratio: Share of tokens hidden in training (ViT only). The original trains with 0.1 for
            every name whose ratio is above 0 (quirk Q12); set 0.1 to do the same.
        recompute: Recompute activations in the backward pass (IResNet, ViT).
    """

    image_size_px: int = 112
    dropout: float = 0.0
    drop_path: float | None = None
    mask_ratio: float | None = None
    recompute: bool | None = None


def build_backbone(
    name: str, embedding_size: int = 512, options: BackboneOptions | None = None
) -> nn.Module:
    """Return an untrained embedding network `[B, 3, 112, 112]` in [-1, 1] -> `[B, D]`.

    Args:
        name: One of `NAMES`, e.g. `r50`, `mbf`, `vit_b`.
        embedding_size: D.
        options: Changes to what the name means.

    Raises:
        InputError: If the name is unknown or an option does not apply to it.
    """
    chosen = options or BackboneOptions()
    name = _ALIASES.get(name, name)
    if name in _IRESNET_BLOCKS:
        return _build_iresnet(name, embedding_size, chosen)
    if name in _MOBILE:
        return _build_mobile(name, embedding_size, chosen)
    if name in _VITS:
        return _build_vit(name, embedding_size, chosen)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"unknown backbone {name!r}{hint} (known: {', '.join(NAMES)})")


def _build_iresnet(name: str, embedding_size: int, options: BackboneOptions) -> nn.Module:
    from nfs.arcface.iresnet import IResNet

    _refuse(name, {"drop_path": options.drop_path, "mask_ratio": options.mask_ratio})
    segments = _R2060_SEGMENTS if name == "r2060" else (0, 0, 0, 0)
    if options.recompute is not None:
        segments = (-1, -1, -1, -1) if options.recompute else (0, 0, 0, 0)
    return IResNet(
        _IRESNET_BLOCKS[name],
        embedding_size=embedding_size,
        image_size_px=options.image_size_px,
        dropout=options.dropout,
        checkpoint_segments=segments,
    )


def _build_mobile(name: str, embedding_size: int, options: BackboneOptions) -> nn.Module:
    from nfs.arcface.mobilefacenet import MobileFaceNet

    _refuse(
        name,
        {
            "drop_path": options.drop_path,
            "mask_ratio": options.mask_ratio,
            "dropout": options.dropout or None,
            "recompute": options.recompute or None,
        },
    )
    blocks, width = _MOBILE[name]
    return MobileFaceNet(
        blocks, width=width, embedding_size=embedding_size, image_size_px=options.image_size_px
    )


def _build_vit(name: str, embedding_size: int, options: BackboneOptions) -> nn.Module:
    from nfs.arcface.vit import VisionTransformer

    _refuse(name, {"dropout": options.dropout or None})
    shape = _VITS[name]

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    return VisionTransformer(
        shape.dim,
        shape.depth,
        embedding_size=embedding_size,
        image_size_px=options.image_size_px,
        drop_path=chosen(options.drop_path, shape.drop_path),
        mask_ratio=chosen(options.mask_ratio, shape.mask_ratio),
        recompute=shape.recompute if options.recompute is None else options.recompute,
    )


def _refuse(name: str, given: Mapping[str, object]) -> None:
    wrong = [key for key, value in given.items() if value is not None]
    if wrong:
        raise InputError(f"backbone {name!r} has no {', '.join(wrong)}; leave it out")
