"""Who is in a picture: the interface of the perceptual term and dlib's network behind it.

ArcFace belongs to another family and is passed in by the job (jobs.train_recon).
Legend: B pictures, E embedding size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfs.face.align import arcface_crop_transform, ffhq_square
from nfs.perceptual.dlib_face import CHIP_SIDE, DlibDistance
from nfs.perceptual.dlib_file import IMAGE_SIZE_PX
from nfs.perceptual.protocol import IdentityEmbedding

ARCFACE_SIZE_PX = 112


class FaceIdentity(Protocol):
    """A frozen, differentiable identity network with its own alignment.

    `name` and `checksum` belong to every number that it makes.
    """

    name: str
    checksum: str

    def __call__(self, images: Tensor, landmarks_px: Tensor) -> Tensor:
        """Return embeddings `[B, E]`, differentiable in the pictures only.

        Args:
            images: `[B, 3, H, W]` RGB in [0, 1].
            landmarks_px: `[B, 68, 2]` continuous pixels.
        """
        ...

    def to(self, device: torch.device) -> FaceIdentity:
        """Return the network on a device."""
        ...


class EmbeddingIdentity:
    """An embedding of aligned crops as a `FaceIdentity`.

    Args:
        network: Embeds crops in [-1, 1].
        size_px: Side of its crops.
        scheme: `ffhq`: the square that `nfs.perceptual` networks see; `arcface`: its template.
    """

    def __init__(self, network: IdentityEmbedding, *, size_px: int, scheme: str):
        self._network, self._size, self._scheme = network, size_px, scheme
        self.name, self.checksum = network.name, network.checksum

    def __call__(self, images: Tensor, landmarks_px: Tensor) -> Tensor:
        """Return embeddings `[B, E]`; see `FaceIdentity`."""
        points = landmarks_px.detach().double().cpu().numpy()
        if self._scheme == "ffhq":
            matrices = ffhq_square(points).crop_from_source(self._size)
        else:
            matrices = arcface_crop_transform(points, self._size)
        crops = warp(images, torch.from_numpy(matrices), self._size)
        return self._network.embed(crops * 2 - 1)

    def to(self, device: torch.device) -> EmbeddingIdentity:
        """Return the network on a device."""
        if isinstance(self._network, nn.Module):
            self._network.to(device)
        return self


def load_dlib() -> EmbeddingIdentity:
    """Return dlib's network; crops are as large as its chip needs, so nothing is resized twice."""
    network = DlibDistance.load()
    return EmbeddingIdentity(network, size_px=round(IMAGE_SIZE_PX / CHIP_SIDE), scheme="ffhq")


def warp(images: Tensor, matrices: Tensor, size_px: int) -> Tensor:
    """Resample pictures bilinearly, zero outside; differentiable in the pictures.

    Args:
        images: `[B, C, H, W]`.
        matrices: `[B, 2, 3]` from picture to output, continuous pixels.
        size_px: Side of the output.
    """
    height, width = images.shape[-2:]
    linear = torch.linalg.inv(matrices[:, :, :2].double())
    offset = -(linear @ matrices[:, :, 2:].double())
    # To the normalised coordinates of grid_sample, (-1, 1) over the picture.
    half = linear.new_tensor([width / 2, height / 2])[:, None]
    theta = torch.cat(
        [
            linear * (size_px / 2) / half,
            (offset + linear.sum(-1, keepdim=True) * (size_px / 2)) / half - 1,
        ],
        dim=-1,
    )
    shape = [len(images), images.shape[1], size_px, size_px]
    grid = functional.affine_grid(theta.to(images), shape, align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
