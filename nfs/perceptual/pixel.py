"""Pixel distance without weights (backend `pixel`): L1 + MS-SSIM + gradients.

Legend: B batch, H and W pixels, images float [-1, 1] `[B, 3, H, W]` RGB.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW_SIGMA_PX = 1.5
WINDOW_RADIUS_PX = 5
# SSIM stabilisers for values in [0, 1] (Wang et al. 2004, section III.B).
C1, C2 = 0.01**2, 0.03**2


class PixelDistance(nn.Module):
    """Sum of mean |difference|, 1 - mean SSIM over a pyramid, and mean |gradient difference|.

    Values are in [0, 1]-image units. Levels are 2x2 means. SSIM (Wang et al. 2004)
    uses an 11 px Gaussian window of sigma 1.5 on each level; the levels weigh the same, which is
    simpler than the published exponents and just as useful as a training signal.

    Args:
        num_levels: Pyramid levels; images need at least `2^num_levels` pixels per side.
        l1_weight: Weight of the pixel term.
        ssim_weight: Weight of the structural term.
        gradient_weight: Weight of the gradient term.
    """

    name = "pixel"
    checksum = "none"
    window: Tensor

    def __init__(
        self,
        num_levels: int = 3,
        l1_weight: float = 1.0,
        ssim_weight: float = 0.5,
        gradient_weight: float = 1.0,
    ):
        super().__init__()
        self.num_features = num_levels
        self.weights = (l1_weight, ssim_weight, gradient_weight)
        offsets = torch.arange(-WINDOW_RADIUS_PX, WINDOW_RADIUS_PX + 1, dtype=torch.float32)
        window = torch.exp(-0.5 * (offsets / WINDOW_SIGMA_PX).square())
        self.register_buffer("window", window / window.sum(), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid of images in [0, 1], largest first."""
        level = (images + 1) / 2
        pyramid = [level]
        while len(pyramid) < self.num_features:
            level = functional.avg_pool2d(level, 2)
            pyramid.append(level)
        return pyramid

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the distance `[B]` between two pyramids."""
        l1_weight, ssim_weight, gradient_weight = self.weights
        pairs = list(zip(first, second, strict=True))
        finest, other = pairs[0]
        l1 = (finest - other).abs().mean((1, 2, 3))
        structural = torch.stack([1 - self._ssim(a, b) for a, b in pairs]).mean(0)
        gradient = sum(
            ((a - b).diff(dim=dim)).abs().mean((1, 2, 3)) for a, b in pairs for dim in (2, 3)
        )
        return l1_weight * l1 + ssim_weight * structural + gradient_weight * gradient / len(pairs)

    def _ssim(self, a: Tensor, b: Tensor) -> Tensor:
        channels = a.shape[1]
        a, b = a + torch.zeros_like(b), b + torch.zeros_like(a)  # broadcast
        moments = self._blur(torch.cat([a, b, a * a, b * b, a * b], dim=1))
        mean_a, mean_b, square_a, square_b, product = torch.split(moments, channels, dim=1)
        covariance = product - mean_a * mean_b
        variances = (square_a - mean_a**2) + (square_b - mean_b**2)
        means = mean_a**2 + mean_b**2
        ssim = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
        ssim = ssim / ((means + C1) * (variances + C2))
        return ssim.mean((1, 2, 3))

    def _blur(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        radius = min(WINDOW_RADIUS_PX, (min(x.shape[-2:]) - 1) // 2)
        window = self.window[WINDOW_RADIUS_PX - radius : WINDOW_RADIUS_PX + radius + 1]
        window = window / window.sum()
        rows = window[None, None, :, None].expand(channels, 1, -1, 1)
        columns = window[None, None, None, :].expand(channels, 1, 1, -1)
        x = functional.conv2d(x, rows, groups=channels)
        return functional.conv2d(x, columns, groups=channels)


def peak_signal_to_noise_db(first: Tensor, second: Tensor) -> Tensor:
    """Return PSNR `[B]` in dB of images in [-1, 1]."""
    error = (first - second).square().mean((1, 2, 3)).clamp_min(1e-12)
    return 10 * (math.log10(4.0) - error.log10())
