"""Foreground inputs made from styles: planes or volumes in place of a positional encoding.

A field's inputs are prepared once per rendering and then asked for each set of points:
`prepare(ws) -> (points [B, P, 3] -> numbers [B, P, dim])`. `PointEncoding` needs no preparation.

Legend: B batch, P points, C channels, R resolution. Formulas: spec/stylenerf.md 2.5.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nfs.stylenerf.encodings import PointEncoding, positional_encoding
from nfs.stylenerf.field_options import FieldOptions, InputSpec
from nfs.stylenerf.input_stack import InputStack
from nfs.stylenerf.planes import multiscale_features, tri_plane_features, volume_features
from nfs.stylenerf.spec import GeneratorSpec, channels_at
from nfs.stylenerf.synthesis import LayerOptions, Noise


class PlaneInput(nn.Module):
    """A synthesis stack that makes planes or volumes, and the look-up in them.

    Args:
        spec: Kind and sizes.
        w_dim: Size of a style.
        clamp: Clamp of activations, or None.
        magnitude_beta: Decay of the running mean square of activations, or None.
        bound: Half the side of the covered region, scene units.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        w_dim: int,
        clamp: float | None,
        magnitude_beta: float | None,
        bound: float,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.bound = spec.bound or bound
        solid = spec.kind in ("volume", "multiscale_volume")
        per_point = {"tri_plane": 3, "multi_plane": spec.num_planes}.get(spec.kind, 1)
        self.stack = InputStack(
            spec.channels * per_point,
            LayerOptions(
                w_dim=w_dim,
                kernel_size=3,
                upsample_mode="default",
                use_noise=True,
                clamp=clamp,
                magnitude_beta=magnitude_beta,
            ),
            in_resolution=spec.start_resolution,
            out_resolution=spec.resolution,
            channels=lambda r: channels_at(r, spec.channel_base, spec.channel_max),
            architecture="skip" if spec.kind in ("tri_plane", "tri_plane_concat") else "orig",
            dims=3 if solid else 2,
            const_planes=3 if spec.kind == "tri_plane_concat" else 0,
        )
        self.num_ws = self.stack.num_ws
        octaves = spec.append_octaves
        self.dim = spec.channels + (0 if octaves is None else 3 * (2 * octaves + 1))

    def prepare(self, ws: Tensor, *, noise: Noise = None) -> Callable[[Tensor], Tensor]:
        """Make the planes of `ws [B, num_ws, w_dim]`; return `points [B, P, 3] -> [B, P, dim]`."""
        made = self.stack(ws, noise=noise)
        look_up = self._look_up(made, len(ws))
        octaves = self.spec.append_octaves

        def features(points: Tensor) -> Tensor:
            inside = points / self.bound
            found = [look_up(inside)]
            if octaves:
                found.append(positional_encoding(inside, octaves))
            if octaves is not None:
                found.append(inside)
            return torch.cat(found, dim=-1) if len(found) > 1 else found[0]

        return features

    def _look_up(self, made: Tensor, batch: int) -> Callable[[Tensor], Tensor]:
        spec = self.spec
        if spec.kind in ("tri_plane", "tri_plane_concat"):
            size = made.shape[-1]
            planes = made.reshape(batch, 3, spec.channels, size, size)
            return lambda points: tri_plane_features(planes, points)
        if spec.kind == "multi_plane":
            volume = made.unflatten(1, (spec.channels, spec.num_planes))
            return lambda points: volume_features(volume, points)
        if spec.kind == "volume":
            return lambda points: volume_features(made, points)
        return lambda points: multiscale_features(
            made, points, spec.level_frequencies, num_levels=spec.num_levels
        )


def point_encoding(options: FieldOptions, point_dim: int, num_frequencies: int) -> PointEncoding:
    """Return the positional encoding of a field's points `[B, P, point_dim]`."""
    return PointEncoding(
        point_dim,
        kind=options.encoding,
        num_frequencies=num_frequencies,
        append_position=options.append_position,
        position_scale=options.position_scale,
    )


def foreground_inputs(spec: GeneratorSpec) -> PointEncoding | PlaneInput:
    """Return what turns points `[B, P, 3]` into the foreground's inputs."""
    if spec.inputs is None:
        return point_encoding(spec.foreground, 3, spec.num_frequencies)
    near, far = spec.depth_range
    return PlaneInput(
        spec.inputs,
        w_dim=spec.w_dim,
        clamp=spec.conv_clamp,
        magnitude_beta=spec.magnitude_ema_beta,
        bound=2.0 if spec.depth_warp == "inverse" else far - near,
    )
