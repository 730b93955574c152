"""What a discriminator does beside judging the plain image: cameras and labels.

Legend: B batch, C channels. Formulas: spec/stylenerf.md 2.7.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import EqualLinear, normalize_second_moment

CAMERA_SIZES = {"matrix": 16, "pose9": 9, "uvr": 3}
"""Numbers that a camera head predicts: a camera-to-world matrix, two rows of a rotation with a
translation, or the normalised yaw, pitch and radius."""


class CameraHead(nn.Module):
    """Predict a camera from the last 4x4 features.

    Args:
        channels: Channels of the features.
        kind: Key of `CAMERA_SIZES`.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CAMERA_SIZES[kind], channels, 4, 4))
        self.weight_gain = 1 / math.sqrt(16 * channels)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, 16]` (`matrix` and `pose9`: rows of the matrix) or `[B, 3]` (`uvr`)."""
        found = F.conv2d(x, self.weight * self.weight_gain).flatten(1)
        return pose9_to_matrix(found).flatten(1) if self.kind == "pose9" else found


class LabelMapping(nn.Module):
    """Map a condition to the weights of the logits' channels.

    Args:
        c_dim: Size of the condition.
        features: Size of the result.
        num_layers: Layers after the embedding.
    """

    def __init__(self, c_dim: int, features: int, *, num_layers: int = 8) -> None:
        super().__init__()
        self.embed = EqualLinear(c_dim, features)
        self.layers = nn.ModuleList(
            EqualLinear(a, b, activation="lrelu", lr_multiplier=0.01)
            for a, b in pairwise([features] * (num_layers + 1))
        )

    def forward(self, c: Tensor) -> Tensor:
        """Map `[B, c_dim]` to `[B, features]`."""
        x = normalize_second_moment(self.embed(c))
        for layer in self.layers:
            x = layer(x)
        return x


def pose9_to_matrix(pose: Tensor) -> Tensor:
    """Return matrices `[B, 4, 4]` from two rows of a rotation and a translation `[B, 9]`.

    The rows need not be orthogonal or of unit length (Zhou et al. 2019).
    """
    first = F.normalize(pose[:, :3], dim=1)
    second = pose[:, 3:6]
    second = F.normalize(second - (first * second).sum(dim=1, keepdim=True) * first, dim=1)
    third = torch.linalg.cross(first, second)
    rotation = torch.stack([first, second, third], dim=1)
    top = torch.cat([rotation, pose[:, 6:, None]], dim=2)
    bottom = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(pose), 1, 4)
    return torch.cat([top, bottom], dim=1)


def camera_loss(predicted: Tensor, uvr: Tensor) -> Tensor:
    """Mean squared error of predicted cameras of generated images, both `[B, 3]`.

    Only the three-number camera has a loss in the original; the others just condition.

    Raises:
        ValueError: If the shapes differ, e.g. for a matrix camera.
    """
    if predicted.shape != uvr.shape:
        raise ValueError(
            f"predicted cameras {list(predicted.shape)} have no loss against {list(uvr.shape)}; "
            "the discriminator's camera must be 'uvr'"
        )
    return F.mse_loss(predicted, uvr)
