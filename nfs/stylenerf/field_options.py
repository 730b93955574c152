"""Kinds of radiance fields and of what they look points up in: plain frozen data.

Part of `spec.GeneratorSpec`, stored in `model.json` of a checkpoint.
"""

from dataclasses import dataclass
from typing import Literal

from nfs.stylenerf.encodings import EncodingKind

ColourSource = Literal["features", "separate"]
Density = Literal["relu", "softplus", "truncated_exponential", "raw"]
Emptiness = Literal["opaque", "open", "white"]
Normalization = Literal["none", "channels", "rows"]
InputKind = Literal["tri_plane", "tri_plane_concat", "multi_plane", "volume", "multiscale_volume"]


@dataclass(frozen=True)
class EllipsoidPrior:
    """Density that a foreground field starts from: a solid ellipsoid around the origin.

    `strength * (1 - |p / radii|)` is added to the raw density. The original has none and lets the
    field find a head in millions of images; a short run would paint the face on the background
    instead.
    """

    radii: tuple[float, float, float]
    """Half axes along world x (towards the frontal camera), y (image right) and z (up)."""
    strength: float
    """Raw density at the centre, per scene unit."""


@dataclass(frozen=True)
class FieldOptions:
    """What a radiance field computes beyond its sizes; the defaults are the published foreground.

    Formulas: spec/stylenerf.md 2.3.
    """

    styled: bool = True
    """Layers modulated by rows of `ws`; otherwise plain ones."""
    encoding: EncodingKind = "fourier"
    """Positional encoding of the points; fields with an `InputSpec` have none."""
    append_position: bool = False
    """The point itself joins its encoding."""
    position_scale: float = 1.0
    """Points are divided by it before they are encoded."""
    skip: bool = False
    """The encoding joins the hidden state again at half of the depth."""
    colour: ColourSource = "features"
    """Colour as a linear map of the features, or as separate outputs beside them."""
    merged_density: bool = False
    """Density and features from one head."""
    sigmoid_colour: bool = False
    """Colours pass a sigmoid. Costs the heads once per sample instead of once per ray."""
    normalization: Normalization = "none"
    """Features of a sample are scaled to unit length over its `channels`, or over the `rows` of
    the image as the original does. Costs as `sigmoid_colour`."""


@dataclass(frozen=True)
class InputSpec:
    """Planes or volumes that a small synthesis stack makes and the foreground looks points up in.

    Formulas: spec/stylenerf.md 2.5.
    """

    kind: InputKind = "tri_plane"
    """Three planes (from one image or as three), parallel planes, a volume, or volumes of several
    frequencies."""
    resolution: int = 256
    """Pixels per side of a plane, voxels per side of a volume."""
    start_resolution: int = 4
    """Resolution that the stack doubles from."""
    channels: int = 32
    """Numbers that a point gets."""
    num_planes: int = 64
    """Parallel planes of `multi_plane`."""
    append_octaves: int | None = None
    """Encode the point in so many octaves and append it; 0 appends the point alone."""
    channel_base: float = 1.0
    """Width of a block: `channel_base * 32768 / resolution`."""
    channel_max: int = 512
    """Largest width of a block."""
    bound: float | None = None
    """Half the side of the region that the planes cover, scene units; None: the depth range."""
    num_levels: int = 16
    """Volumes of `multiscale_volume`; each gives `channels / num_levels` numbers."""
    level_frequencies: tuple[int, int] = (16, 512)
    """Cells per side of the coarsest and the finest level."""


PLAIN_FIELD = FieldOptions(styled=False)
