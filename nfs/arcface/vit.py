"""Vision transformer for faces (spec/arcface.md 2.3), without class token.

Module names are those of the published weights. Images `[B, 3, S, S]` in [-1, 1], RGB; N tokens of
9 x 9 pixels, row-major; d token size.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PATCH_PX = 9
NUM_HEADS = 8


class PatchEmbed(nn.Module):
    """Linear projection of patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH_PX, stride=PATCH_PX)

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens `[B, N, d]`."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with eight heads and no qkv bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, d]`."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, NUM_HEADS, dim // NUM_HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with ReLU6 between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, d]`."""
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each pre-normalised, residual and dropped per sample with `drop_path`."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.mlp = Mlp(dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, d]`."""
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        """Drop whole samples (stochastic depth, Huang et al. 2016) and rescale the others."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        mask = torch.rand(len(x), 1, 1, device=x.device, dtype=torch.float32) < keep
        return x * (mask.to(x.dtype) / keep)


class VisionTransformer(nn.Module):
    """Embedding network.

    Args:
        dim: d.
        depth: Blocks.
        embedding_size: D.
        image_size_px: S; the published weights need 112.
        drop_path: Drop rate of the last block; rises linearly from 0.
        mask_ratio: Share of tokens hidden in training.
        recompute: Recompute each block's activations in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        embedding_size: int = 512,
        image_size_px: int = 112,
        drop_path: float = 0.0,
        mask_ratio: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.mask_ratio, self.recompute = mask_ratio, recompute
        tokens = (image_size_px // PATCH_PX) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(dim)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(tokens * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings `[B, D]`, float32, not normalised."""
        x = self.patch_embed(images) + self.pos_embed
        restore = None
        if self.training and self.mask_ratio > 0:
            x, restore = self._hide(x)
        for block in self.blocks:
            if self.training and self.recompute:
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
        with torch.autocast(images.device.type, enabled=False):
            x = self.norm(x.float())
            if restore is not None:
                x = self._fill(x, restore)
            embeddings: Tensor = self.feature(x.flatten(1))
        return embeddings

    def _hide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a random subset of tokens; return them and where every token's output is."""
        batch, tokens, dim = x.shape
        keep = int(tokens * (1 - self.mask_ratio))
        order = torch.rand(batch, tokens, device=x.device).argsort(dim=1)
        kept = order[:, :keep, None].expand(-1, -1, dim)
        return x.gather(1, kept), order.argsort(dim=1)

    def _fill(self, x: Tensor, restore: Tensor) -> Tensor:
        batch, keep, dim = x.shape
        hidden = self.mask_token.expand(batch, restore.shape[1] - keep, dim)
        x = torch.cat([x, hidden.to(x.dtype)], dim=1)
        return x.gather(1, restore[:, :, None].expand(-1, -1, dim))
