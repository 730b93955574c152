"""What a rendering is asked for and what it returns.

Legend: B batch, N rays, S samples per ray and pass, C feature channels, h/w size of the feature
map, H/W size of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nfs.stylenerf.rendering import PointWarp
from nfs.stylenerf.synthesis import Noise

FeatureEdit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(features [B, C, h, w], image_low [B, 3, h, w]) -> (features, image_low)`."""


@dataclass(frozen=True)
class RenderOptions:
    """What a rendering changes from the plain image of a camera."""

    alpha: float | None = None
    """Growth stage in [0, 1], or -1: everything active, no curriculum; None: the generator's."""
    background_cam2world: Tensor | None = None
    """`[B, 4, 4]` camera of the background alone, e.g. `Generator.frozen_background_camera`."""
    point_warp: PointWarp | None = None
    """Moves foreground samples before the field is queried; gets coarse and fine points."""
    depths: tuple[Tensor, Tensor] | None = None
    """Normalised depths (coarse, fine), each `[B, N, S]`, instead of chosen ones."""
    edit_features: FeatureEdit | None = None
    """Changes the feature map and the low-resolution image just before the 2-D blocks."""
    num_samples: int | None = None
    """Foreground samples per ray and pass, instead of the generator's number."""
    roll_rad: Tensor | None = None
    """`[B]` roll of the image about its centre; None: none, in training random if so trained."""
    noise: Noise = None
    """Noise of the layers that have it; None: random in training, constant otherwise."""
    path_pixels: int = 0
    """Pixels per side of the path regulariser in training; 0: no regulariser."""
    fade: Tensor | None = None
    """Weight of the newest level, a scalar, in place of the one that `alpha` gives: a compiled
    generator then serves a whole growth stage."""
    path_fade: bool = False
    """Fade the regulariser's colours as the image fades; the original does not (Q13)."""


@dataclass(frozen=True)
class Rendering:
    """A batch of images and what they were made of."""

    image: Tensor
    """`[B, 3, H, W]`, nominally in [-1, 1], not clamped."""
    image_low: Tensor
    """`[B, 3, h, w]` volume-rendered image as the 2-D blocks saw it, after `edit_features`."""
    features: Tensor
    """`[B, C, h, w]` feature map as the 2-D blocks saw it, after `edit_features`."""
    depth: Tensor
    """`[B, 1, h, w]` expected depth in scene units; rays that hit nothing count as far."""
    opacity: Tensor
    """`[B, 1, h, w]` share of the foreground in [0, 1]."""
    weights: Tensor
    """`[B, N, 2 S]` foreground weights in the order of `depths`; `[B, N, S]` with one pass."""
    transmittance: Tensor
    """`[B, N]` factor of the background."""
    background_weights: Tensor
    """`[B, N, Sb]`."""
    depths: Tensor
    """`[B, N, 2 S]` normalised depths of both passes, ascending."""
    depths_coarse: Tensor
    """`[B, N, S]` normalised."""
    depths_fine: Tensor
    """`[B, N, S]` normalised; `[B, N, 0]` with one pass."""
    ws: Tensor
    """`[B, num_ws, w_dim]` the styles."""
    path_loss: Tensor | None = None
    """`[B]` path regulariser, where asked for and more than the first resolution is active."""
