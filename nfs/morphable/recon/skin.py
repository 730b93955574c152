"""How likely a colour is skin: two Gaussian mixtures in YCbCr (spec/face_and_media.md 2.6).

The numbers are those of the skin model that Deep3DFaceRecon publishes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Per component: weight, determinant of the covariance, mean (Y, Cb, Cr) and the upper triangle of
# the inverse covariance, row by row.
_SKIN = (
    (
        0.24063933,
        5692842.5,
        (113.71862, 103.39613, 164.08226),
        (0.0019472069, 0.0020450759, -0.00060243998, 0.017700525, 0.0051420014, 0.008130895),
    ),
    (
        0.16365987,
        5851930.5,
        (150.19858, 105.18467, 155.51428),
        (0.0027110141, 0.001103699, 0.0023122299, 0.010707724, 0.010742856, 0.017481629),
    ),
    (
        0.26034665,
        2329131.0,
        (183.92976, 107.62468, 152.7182),
        (0.0048026871, 0.00022935172, 0.0077668377, 0.011729696, 0.0081661865, 0.025374353),
    ),
    (
        0.33535415,
        1585971.0,
        (114.90524, 113.59782, 151.38217),
        (0.0011989699, 0.0022453172, -0.0010748957, 0.047758564, 0.020332102, 0.024502251),
    ),
)
_OTHER = (
    (
        0.1279107,
        458703648.0,
        (99.200851, 112.07533, 140.20602),
        (0.00085371657, 0.00071197288, 0.00023958916, 0.002593562, 0.00076557708, 0.0015042332),
    ),
    (
        0.31130761,
        6466488.0,
        (110.91392, 125.52969, 130.19237),
        (0.0002465015, 0.00045542428, 0.00015019422, 0.026412144, 0.018419769, 0.037497383),
    ),
    (
        0.34245777,
        90611376.0,
        (129.75864, 129.96107, 126.96808),
        (0.00037054974, 0.0003814676, 0.00040408765, 0.0085505722, 0.0079136286, 0.010982352),
    ),
    (
        0.21832393,
        133097.63,
        (112.29587, 128.85121, 129.05431),
        (0.00013709733, 0.00051228428, 0.0001277743, 0.28237113, 0.1052837, 0.23468947),
    ),
)
_PRIOR = 0.8
_YCBCR = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
_OFFSET = (16.0, 128.0, 128.0)
Mixture = tuple[tuple[float, float, tuple[float, ...], tuple[float, ...]], ...]


def skin_probability(images: Tensor) -> Tensor:
    """Return the probability of skin `[B, H, W]` from colour alone, in steps of 1/255.

    Args:
        images: `[B, 3, H, W]` RGB in 0..255, any number type.
    """
    rgb = images.movedim(1, -1).double()
    matrix = rgb.new_tensor(_YCBCR) / 255
    colours = rgb @ matrix.T + rgb.new_tensor(_OFFSET)
    skin = _PRIOR * _density(colours, _SKIN)
    other = (1 - _PRIOR) * _density(colours, _OTHER)
    return ((255 * skin / (skin + other)).round() / 255).float()


def _density(colours: Tensor, mixture: Mixture) -> Tensor:
    total = torch.zeros_like(colours[..., 0])
    for weight, determinant, mean, (xx, xy, xz, yy, yz, zz) in mixture:
        x, y, z = (colours - colours.new_tensor(mean)).unbind(-1)
        distance = xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)
        scale = weight / math.sqrt((2 * math.pi) ** 3 * determinant)
        total += scale * torch.exp(-0.5 * distance)
    return total
