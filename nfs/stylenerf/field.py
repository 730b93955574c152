"""Radiance fields: style-modulated foreground, plain background; heads applied after compositing.

Legend: B batch, P points, N rays, C channels, H hidden size. Formulas: spec/stylenerf.md 2.3.

The feature and colour heads are linear, so a ray's features are the heads of its composited hidden
state with the bias weighted by the ray's total weight: the heads run once per ray instead of once
per sample, with the same value. `hidden_and_sigma` therefore gives the hidden state, and `features`
turns composited hidden states into `[rgb | features]`.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.layers import SQRT2, demodulated, style_affine
from nfs.stylenerf.spec import EllipsoidPrior

RGB_CHANNELS = 3


def positional_encoding(points: Tensor, num_frequencies: int) -> Tensor:
    """Encode `[..., D]` as `[..., 2 * num_frequencies * D]`: sin and cos of `2^i pi p`, i outer."""
    scales = [2.0**i * math.pi for i in range(num_frequencies)]
    frequencies = torch.tensor(scales, dtype=points.dtype, device=points.device)
    angles = points[..., None, :] * frequencies[:, None]
    return torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)


class StyleLinear(nn.Module):
    """Modulated, demodulated layer on points with leaky ReLU (gain sqrt 2).

    Args:
        in_features: Inputs.
        out_features: Outputs.
        w_dim: Size of the style.
    """

    def __init__(self, in_features: int, out_features: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.affine = style_affine(w_dim, in_features)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map `[B, P, in]` with styles `w [B, w_dim]` to `[B, P, out]`.

        The style, the demodulation and the gain of the activation go into one weight per sample,
        so a layer is one batched product and one activation.
        """
        weight = demodulated(self.weight, self.affine(w)) * SQRT2
        x = torch.baddbmm((self.bias * SQRT2)[None, None], x, weight.transpose(1, 2))
        return F.leaky_relu(x, 0.2)


class StyleHead(nn.Module):
    """Modulated linear head without demodulation or activation.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        w_dim: Size of the style.
    """

    def __init__(self, in_features: int, out_features: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.affine = style_affine(w_dim, in_features)
        self.weight_gain = 1 / math.sqrt(in_features)

    def forward(self, x: Tensor, w: Tensor, total: Tensor | None = None) -> Tensor:
        """Map `[B, P, in]` to `[B, P, out]`.

        Args:
            x: Inputs, or weighted sums of inputs.
            w: Styles `[B, w_dim]`.
            total: Sum of the weights behind each row of `x`, `[B, P]`; None means 1.
        """
        styles = self.affine(w) * self.weight_gain
        weight = self.weight[None] * styles[:, None]
        if total is None:
            return torch.baddbmm(self.bias[None, None], x, weight.transpose(1, 2))
        return x @ weight.transpose(1, 2) + total[..., None] * self.bias


class PlainLinear(nn.Module):
    """Layer of the background field: plain weights, optionally ReLU.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        relu: Apply ReLU.
    """

    def __init__(self, in_features: int, out_features: int, *, relu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.bias, -bound, bound)
        self.relu = relu

    def forward(self, x: Tensor, total: Tensor | None = None) -> Tensor:
        """Map `[..., in]` to `[..., out]`; `total [...]` weighs the bias of composited inputs."""
        if total is None:
            x = F.linear(x, self.weight, self.bias)
        else:
            x = F.linear(x, self.weight) + total[..., None] * self.bias
        return F.relu(x) if self.relu else x


class ColourHead(nn.Module):
    """Equalised linear map from features to the low-resolution colour.

    Args:
        in_features: Feature channels.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(RGB_CHANNELS, in_features))
        self.bias = nn.Parameter(torch.zeros(RGB_CHANNELS))
        self.weight_gain = 1 / math.sqrt(in_features)

    def forward(self, features: Tensor, total: Tensor | None = None) -> Tensor:
        """Return `[..., 3 + C]`: colour, then the features themselves."""
        rgb = F.linear(features, self.weight * self.weight_gain)
        rgb = rgb + (self.bias if total is None else total[..., None] * self.bias)
        return torch.cat([rgb, features], dim=-1)


class ForegroundField(nn.Module):
    """Style-modulated field of the head.

    Args:
        w_dim: Size of a style.
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers, including the first.
        feature_dim: Channels of the feature map.
        num_frequencies: Octaves of the positional encoding.
        prior: Shape that the density starts from, or None.
    """

    def __init__(
        self,
        w_dim: int,
        *,
        hidden_dim: int,
        num_layers: int,
        feature_dim: int,
        num_frequencies: int,
        prior: EllipsoidPrior | None = None,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.num_ws = num_layers + 2
        self.prior = prior
        sizes = [6 * num_frequencies] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(StyleLinear(a, b, w_dim) for a, b in pairwise(sizes))
        self.sigma_head = StyleHead(hidden_dim, 1, w_dim)
        self.feature_head = StyleHead(hidden_dim, feature_dim, w_dim)
        self.colour_head = ColourHead(feature_dim)

    def hidden_and_sigma(self, points: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Query `points [B, P, 3]` with `ws [B, num_ws, w_dim]`.

        Returns:
            Hidden state `[B, P, H]` and raw density `[B, P]`.
        """
        x = positional_encoding(points, self.num_frequencies)
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i])
        sigma = self.sigma_head(x, ws[:, len(self.layers)])[..., 0]
        if self.prior is not None:
            radii = points.new_tensor(self.prior.radii)
            sigma = sigma + self.prior.strength * (1 - (points / radii).norm(dim=-1))
        return x, sigma

    def features(self, hidden: Tensor, ws: Tensor, total: Tensor | None = None) -> Tensor:
        """Turn hidden states `[B, N, H]` of total weight `[B, N]` into `[B, N, 3 + C]`."""
        return self.colour_head(self.feature_head(hidden, ws[:, -1], total), total)


class BackgroundField(nn.Module):
    """Plain field of everything outside the unit sphere, driven by its own latent code.

    Args:
        latent_dim: Size of the background code.
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers, including the first.
        feature_dim: Channels of the feature map.
        num_frequencies: Octaves of the positional encoding of the four coordinates.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden_dim: int,
        num_layers: int,
        feature_dim: int,
        num_frequencies: int,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        sizes = [8 * num_frequencies + latent_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(PlainLinear(a, b, relu=True) for a, b in pairwise(sizes))
        self.sigma_head = PlainLinear(hidden_dim, 1, relu=False)
        self.feature_head = PlainLinear(hidden_dim, feature_dim, relu=False)
        self.colour_head = ColourHead(feature_dim)

    def hidden_and_sigma(self, points: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Query `points [B, P, 4]` with `code [B, latent_dim]`; as the foreground's method."""
        encoded = positional_encoding(points, self.num_frequencies)
        x = torch.cat([encoded, code[:, None].expand(-1, points.shape[1], -1)], dim=-1)
        for layer in self.layers:
            x = layer(x)
        return x, self.sigma_head(x)[..., 0]

    def features(self, hidden: Tensor, total: Tensor | None = None) -> Tensor:
        """Turn hidden states `[B, N, H]` of total weight `[B, N]` into `[B, N, 3 + C]`."""
        return self.colour_head(self.feature_head(hidden, total), total)
