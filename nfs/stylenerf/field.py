"""Radiance fields: style-modulated or plain; heads applied after compositing.

Legend: B batch, P points, N rays, C channels, H hidden size. Formulas: spec/stylenerf.md 2.3.

The feature and colour heads are linear, so a ray's features are the heads of its composited hidden
state with the bias weighted by the ray's total weight: the heads run once per ray instead of once
per sample, with the same value. `hidden_and_sigma` therefore gives the hidden state, and `features`
turns composited hidden states into `[rgb | features]`. Fields whose colours pass a sigmoid or whose
features are normalised have no such shortcut (`linear_heads` is False): their heads run on every
sample.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.stylenerf.field_options import EllipsoidPrior, FieldOptions
from nfs.stylenerf.layers import SQRT2, demodulated, style_affine

RGB_CHANNELS = 3


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
    """Layer of a field without styles: plain weights, optionally ReLU.

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


def ellipsoid_density(points: Tensor, prior: EllipsoidPrior) -> Tensor:
    """Return the raw density `[B, P]` of a solid ellipsoid at `points [B, P, 3]`, scene units."""
    radii = points.new_tensor(prior.radii)
    return prior.strength * (1 - (points / radii).norm(dim=-1))


class RadianceField(nn.Module):
    """Encoded points to densities, features and colours.

    Args:
        in_features: Numbers per encoded point, with its latent code if it has one.
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers; at least one is made (the original's `n_blocks` may be 0).
        feature_dim: Channels of the feature map.
        w_dim: Size of a style; used by styled fields alone.
        options: Kind of the field.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden_dim: int,
        num_layers: int,
        feature_dim: int,
        w_dim: int,
        options: FieldOptions,
    ) -> None:
        super().__init__()
        self.options = options
        self.sigma_row = num_layers
        self.rejoin = max(num_layers, 1) // 2 if options.skip else None
        self.layers = nn.ModuleList()
        for index in range(max(num_layers, 1)):
            width = in_features if index == 0 else hidden_dim
            if index and index == self.rejoin:
                width += in_features
            self.layers.append(
                StyleLinear(width, hidden_dim, w_dim)
                if options.styled
                else PlainLinear(width, hidden_dim, relu=True)
            )

        def head(out_features: int) -> nn.Module:
            if options.styled:
                return StyleHead(hidden_dim, out_features, w_dim)
            return PlainLinear(hidden_dim, out_features, relu=False)

        merged, separate = options.merged_density, options.colour == "separate"
        self.sigma_head = None if merged else head(1)
        self.feature_head = head(feature_dim + merged + (RGB_CHANNELS if separate else 0))
        self.colour_head = None if separate else ColourHead(feature_dim)
        rows = len(self.layers) + (1 if merged else 2)
        self.num_ws = rows if options.styled else 0

    @property
    def linear_heads(self) -> bool:
        """Whether features of a weighted sum are the weighted sum of features."""
        return not self.options.sigmoid_colour and self.options.normalization == "none"

    def hidden_and_sigma(self, encoded: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Query encoded points.

        Args:
            encoded: `[B, P, in_features]`.
            ws: Styles `[B, num_ws, w_dim]`.

        Returns:
            Hidden state `[B, P, H]` and raw density `[B, P]`.
        """
        x = encoded
        for index, layer in enumerate(self.layers):
            if index and index == self.rejoin:
                x = torch.cat([x, encoded], dim=-1)
            x = self._run(layer, x, ws, index)
        if self.sigma_head is not None:
            return x, self._run(self.sigma_head, x, ws, self.sigma_row)[..., 0]
        return x, self._run(self.feature_head, x, ws, -1)[..., 0]

    def features(self, hidden: Tensor, ws: Tensor, total: Tensor | None = None) -> Tensor:
        """Turn hidden states into `[B, N, 3 + C]`: colour, then features.

        Args:
            hidden: `[B, N, H]`; composited ones need `linear_heads`.
            ws: Styles `[B, num_ws, w_dim]`.
            total: Weight behind each composited state `[B, N]`; None means 1.
        """
        x = self._run(self.feature_head, hidden, ws, -1, total)
        if self.options.merged_density:
            x = x[..., 1:]
        if self.colour_head is not None:
            x = self.colour_head(x, total)
        if self.linear_heads:
            return x
        colour, features = x[..., :RGB_CHANNELS], x[..., RGB_CHANNELS:]
        if self.options.sigmoid_colour:
            colour = colour.sigmoid()
        if self.options.normalization == "channels":
            features = F.normalize(features, dim=-1)
        return torch.cat([colour, features], dim=-1)

    def _run(
        self, layer: nn.Module, x: Tensor, ws: Tensor, row: int, total: Tensor | None = None
    ) -> Tensor:
        weighted = () if total is None else (total,)
        result: Tensor = (
            layer(x, ws[:, row], *weighted) if self.options.styled else layer(x, *weighted)
        )
        return result
