"""The coefficient regressor of Deep3DFaceRecon (Deng et al. 2019; spec/morphable.md 2.10).

A residual network without its classifier and one 1x1 convolution per group of coefficients. All
heads start at zero, so an untrained network predicts the mean face. Legend: B pictures, S side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from nfs.face.align import deep3d_standard_pixels, five_points
from nfs.morphable.coefficients import NUM_COEFFICIENTS, PACKED_SIZES, Coefficients
from nfs.morphable.loading import check_same_model
from nfs.morphable.model import MorphableModel
from nfs.morphable.projection import CAMERA_DISTANCE, focal_px

Output = Literal["heads", "linear"]
TRUNK_WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
BFM = "bfm"
# The translation is predicted by two heads: x and y, then z.
HEAD_SIZES = (*list(PACKED_SIZES.values())[:-1], 2, 1)


@dataclass(frozen=True)
class ReconSpec:
    """Everything but the weights.

    Attributes:
        backbone: A key of `TRUNK_WIDTHS`.
        output: See `ReconNet`.
        image_size_px: Side of the aligned picture.
        base_translation: Added to the predicted translation, dm.
        fixed_expressions: Expression axes kept at zero.
        model_id: Morphable model of the coefficients; empty when not known.
        model_checksum: Its checksum.
    """

    backbone: str = "resnet50"
    output: Output = "heads"
    image_size_px: int = 224
    base_translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fixed_expressions: tuple[int, ...] = ()
    model_id: str = ""
    model_checksum: str = ""

    def tree(self) -> dict[str, Any]:
        """Return plain JSON values; `ReconSpec.from_tree` of the result is equal."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> ReconSpec:
        """Return the spec that `tree` came from."""
        lists = {name: tuple(tree[name]) for name in ("base_translation", "fixed_expressions")}
        return cls(**{**tree, **lists})


class ReconNet(nn.Module):
    """Aligned picture to 257 coefficients; parameters carry the original's names.

    Args:
        spec: `output` `heads` has a zero-initialised 1x1 convolution per group, `linear` one
            normally initialised layer (the original's `use_last_fc`).
    """

    base_translation: Tensor
    expression_mask: Tensor

    def __init__(self, spec: ReconSpec):
        super().__init__()
        self.spec = spec
        width = TRUNK_WIDTHS[spec.backbone]
        self.backbone: nn.Module = getattr(torchvision.models, spec.backbone)()
        if spec.output == "linear":
            self.backbone.fc = nn.Linear(width, NUM_COEFFICIENTS)
        else:
            self.backbone.fc = nn.Identity()
            self.final_layers = nn.ModuleList(nn.Conv2d(width, size, 1) for size in HEAD_SIZES)
            for parameter in self.final_layers.parameters():
                nn.init.zeros_(parameter)
        mask = torch.ones(PACKED_SIZES["expression"])
        mask[list(spec.fixed_expressions)] = 0
        base = torch.tensor(spec.base_translation)
        self.register_buffer("base_translation", base, persistent=False)
        self.register_buffer("expression_mask", mask, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return raw outputs `[B, 257]`, translation without its base.

        Args:
            images: `[B, 3, S, S]` RGB in [0, 1], not normalised further, as the original.
        """
        features: Tensor = self.backbone(images)
        if self.spec.output == "linear":
            return features
        features = features[..., None, None]
        return torch.cat([head(features) for head in self.final_layers], dim=1).flatten(1)

    def unpack(self, raw: Tensor) -> Coefficients:
        """Turn raw outputs `[B, 257]` into coefficients; the camera is that of the picture."""
        parts = dict(zip(PACKED_SIZES, raw.split(list(PACKED_SIZES.values()), 1), strict=True))
        parts["translation"] = parts["translation"] + self.base_translation
        parts["expression"] = parts["expression"] * self.expression_mask
        return Coefficients(**parts)


def spec_for(
    model: MorphableModel,
    *,
    backbone: str = "resnet50",
    output: Output = "heads",
    image_size_px: int = 224,
    aligned: bool = True,
) -> ReconSpec:
    """Return the spec of a network for a morphable model.

    Args:
        model: The model whose coefficients are predicted.
        backbone: Trunk.
        output: Kind of last layer.
        image_size_px: Side of the aligned picture.
        aligned: Zero output stands on the alignment's standard points; else at the origin.
    """
    fixed = torch.isinf(model.expression_prior).nonzero()[:, 0].tolist()
    return ReconSpec(
        backbone=backbone,
        output=output,
        image_size_px=image_size_px,
        base_translation=aligned_translation(model) if aligned else (0.0, 0.0, 0.0),
        fixed_expressions=tuple(fixed),
        model_id=model.model_id,
        model_checksum=model.checksum,
    )


def aligned_translation(model: MorphableModel) -> tuple[float, float, float]:
    """Return the translation (dm) that puts the mean face on the alignment's standard points.

    The perspective equations are linear in the translation; their least-squares solution.
    """
    zeros = Coefficients.zeros(1, device=model.mean_shape.device)
    points = model.landmarks(zeros.identity, zeros.expression)[0].double().cpu().numpy()
    five = five_points(points)
    size = 224
    target = deep3d_standard_pixels(size) - size / 2
    target[:, 1] *= -1
    focal, depth = focal_px(size), CAMERA_DISTANCE - five[:, 2]
    rows, values = [], []
    for axis in range(2):
        row = np.zeros((5, 3))
        row[:, axis], row[:, 2] = focal, target[:, axis]
        rows.append(row)
        values.append(target[:, axis] * depth - focal * five[:, axis])
    solution, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)
    x, y, z = (float(value) for value in solution)
    return x, y, z


def folded_state(network: ReconNet) -> dict[str, Tensor]:
    """Return weights whose raw outputs are the coefficients: what the original's format can say.

    The base translation goes into the last layer's bias, fixed expressions become zero rows.
    """
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    base, mask = network.base_translation, network.expression_mask
    if network.spec.output == "linear":
        weight, bias = state["backbone.fc.weight"], state["backbone.fc.bias"]
        start = PACKED_SIZES["identity"]
        rows = slice(start, start + PACKED_SIZES["expression"])
        weight[rows] *= mask[:, None]
        bias[rows] *= mask
        bias[-3:] += base
        return state
    state["final_layers.1.weight"] *= mask[:, None, None, None]
    state["final_layers.1.bias"] *= mask
    state["final_layers.5.bias"] += base[:2]
    state["final_layers.6.bias"] += base[2:]
    return state


def check_network_model(spec: ReconSpec, model: MorphableModel, where: str) -> None:
    """Refuse a network whose coefficients belong to another morphable model.

    An imported original does not name its model; it can only be BFM.

    Raises:
        InputError: If they do not belong together.
    """
    model_id = spec.model_id or BFM
    checksum = spec.model_checksum
    if not spec.model_id and model.model_id == BFM:
        checksum = model.checksum
    check_same_model(model, model_id=model_id, checksum=checksum, where=where)


def clamp_expressions(model: MorphableModel, coefficients: Coefficients) -> Coefficients:
    """Return coefficients with expressions inside the model's bounds."""
    packed = {name: getattr(coefficients, name) for name in PACKED_SIZES}
    low, high = model.expression_lower, model.expression_upper
    packed["expression"] = torch.minimum(torch.maximum(packed["expression"], low), high)
    return Coefficients(**packed)
