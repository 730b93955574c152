"""The mapping network: latents to styles, with a running mean for truncation."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from nfs.stylenerf.layers import EqualLinear, normalize_second_moment


class MappingNetwork(nn.Module):
    """Map `z [B, z_dim]` to per-layer styles `[B, num_ws, w_dim]` (StyleGAN2, section 2.1 of spec).

    Args:
        z_dim: Size of the latent.
        w_dim: Size of a style, also of the hidden layers.
        num_ws: Rows the style is broadcast to.
        num_layers: Fully connected layers.
        w_avg_beta: Decay of the running mean `w_avg`.
        c_dim: Size of the label that joins the latent; 0: none.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        num_ws: int,
        *,
        num_layers: int = 8,
        w_avg_beta: float = 0.995,
        c_dim: int = 0,
    ) -> None:
        super().__init__()
        self.z_dim, self.w_dim, self.num_ws, self.c_dim = z_dim, w_dim, num_ws, c_dim
        self.w_avg_beta = w_avg_beta
        self.embed = EqualLinear(c_dim, w_dim) if c_dim else None
        sizes = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            EqualLinear(a, b, activation="lrelu", lr_multiplier=0.01) for a, b in pairwise(sizes)
        )
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """Return `ws [B, num_ws, w_dim]`.

        Args:
            z: Latents `[B, z_dim]`.
            c: Labels `[B, c_dim]`, where the network has them.
            truncation_psi: Interpolation to `w_avg`: 0 is the mean style, 1 is no truncation.
            truncation_cutoff: Only the first rows are truncated; None truncates all.
            update_average: Move `w_avg` towards the mean of this batch (training).
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must be [B, {self.z_dim}], got {list(z.shape)}")
        w = normalize_second_moment(z)
        if self.embed is not None:
            if c is None or tuple(c.shape) != (len(z), self.c_dim):
                shape = None if c is None else list(c.shape)
                raise ValueError(f"c must be [{len(z)}, {self.c_dim}], got {shape}")
            w = torch.cat([w, normalize_second_moment(self.embed(c))], dim=1)
        for layer in self.layers:
            w = layer(w)
        if update_average:
            with torch.no_grad():
                self.w_avg.copy_(w.mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1.0:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        truncated = self.w_avg.lerp(ws[:, :cutoff], truncation_psi)
        return torch.cat([truncated, ws[:, cutoff:]], dim=1)
