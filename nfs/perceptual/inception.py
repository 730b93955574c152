"""Inception features for FID and KID, from a file that the user has and names by its sha256.

Two kinds of file are read: the TorchScript detector that StyleGAN's metrics use (a TorchScript file
is a program; it runs only if its sha256 is the configured one), and a state dict of the TensorFlow
weights in torchvision's names (`.pth` or `.safetensors`), which runs nothing.

Legend: B images, H and W pixels.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfs.errors import InputError
from nfs.perceptual.extractors import INCEPTION_NAMES

INPUT_SIZE_PX = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
_TO_RETURN_FEATURES = "return_features"


class InceptionFeatures:
    """Pooled features `[B, 2048]` under the names `fid` and `kid`.

    Args:
        net: Maps uint8 images `[B, 3, H, W]` to `[B, 2048]`.
        checksum: sha256 of its file.
    """

    names = INCEPTION_NAMES

    def __init__(self, net: nn.Module, checksum: str):
        self.net = net.eval().requires_grad_(False)
        self.checksum = checksum

    @classmethod
    def load(cls, path: str, sha256: str) -> Self:
        """Load a file after its checksum has been compared.

        Raises:
            InputError: If the file is missing, is another one, or is no Inception network.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"features.path={path}: no such file")
        found = _sha256(file)
        if found != sha256:
            raise InputError(
                f"features.path={path}: sha256 is {found}, configured is {sha256}; it is not "
                "loaded, because a TorchScript file is a program"
            )
        net: nn.Module = _load_script(path) if _is_script(file) else _load_weights(path)
        extractor = cls(net, found)
        extractor.check(path)
        return extractor

    def to(self, device: torch.device) -> Self:
        """Move the weights."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return features `[B, 2048]` of uint8 images `[B, 3, H, W]`."""
        features: Tensor = self.net(images)
        return features

    def check(self, path: str) -> None:
        """Try one image.

        Raises:
            InputError: If the network does not return `[1, 2048]` finite numbers.
        """
        try:
            features = self.extract(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
            shape = list(features.shape)
        except (RuntimeError, AttributeError) as error:
            raise InputError(f"features.path={path}: fails on an image: {error}") from error
        if shape != [1, NUM_FEATURES] or not features.isfinite().all():
            raise InputError(
                f"features.path={path}: returns {shape} for one image, Inception's pooled features "
                f"are [1, {NUM_FEATURES}]; without it use features.kind=face"
            )


class ScriptedInception(nn.Module):
    """A TorchScript detector; ours to call like any module."""

    def __init__(self, script: Any):
        super().__init__()
        self.script = script
        names = [argument.name for argument in script.forward.schema.arguments]
        self.options = {_TO_RETURN_FEATURES: True} if _TO_RETURN_FEATURES in names else {}

    def forward(self, images: Tensor) -> Tensor:
        """Return what the detector returns for uint8 images `[B, 3, H, W]`."""
        features: Tensor = self.script(images, **self.options)
        return features


class InceptionNet(nn.Module):
    """Inception v3 as TensorFlow's 2015 release computes it, on torchvision's layers.

    Differences from torchvision's forward: averages do not count the padding, the last block pools
    with a maximum, images are resized without antialiasing and scaled to [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        self.layers = inception_v3(
            weights=None,
            num_classes=NUM_CLASSES,
            aux_logits=False,
            transform_input=False,
            init_weights=False,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features `[B, 2048]` of uint8 images `[B, 3, H, W]`."""
        net = self.layers
        size = (INPUT_SIZE_PX, INPUT_SIZE_PX)
        x = F.interpolate(images.float() / 255, size=size, mode="bilinear", align_corners=False)
        x = net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(2 * x - 1)))
        x = net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for block in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d):
            x = _block_a(block, x)
        x = net.Mixed_6a(x)
        for block in (net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e):
            x = _block_c(block, x)
        x = net.Mixed_7a(x)
        x = _block_e(net.Mixed_7b, x, _average(x))
        x = _block_e(net.Mixed_7c, x, F.max_pool2d(x, 3, 1, 1))
        return x.mean((2, 3))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _block_a(block: Any, x: Tensor) -> Tensor:
    narrow = block.branch5x5_2(block.branch5x5_1(x))
    wide = block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x)))
    return torch.cat([block.branch1x1(x), narrow, wide, block.branch_pool(_average(x))], 1)


def _block_c(block: Any, x: Tensor) -> Tensor:
    once = block.branch7x7_3(block.branch7x7_2(block.branch7x7_1(x)))
    twice = block.branch7x7dbl_3(block.branch7x7dbl_2(block.branch7x7dbl_1(x)))
    twice = block.branch7x7dbl_5(block.branch7x7dbl_4(twice))
    return torch.cat([block.branch1x1(x), once, twice, block.branch_pool(_average(x))], 1)


def _block_e(block: Any, x: Tensor, pooled: Tensor) -> Tensor:
    once = block.branch3x3_1(x)
    twice = block.branch3x3dbl_2(block.branch3x3dbl_1(x))
    parts = [
        block.branch1x1(x),
        block.branch3x3_2a(once),
        block.branch3x3_2b(once),
        block.branch3x3dbl_3a(twice),
        block.branch3x3dbl_3b(twice),
        block.branch_pool(pooled),
    ]
    return torch.cat(parts, 1)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_script(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in f"/{name}" for name in archive.namelist())


def _load_script(path: str) -> ScriptedInception:
    try:
        return ScriptedInception(torch.jit.load(path, map_location="cpu"))
    except RuntimeError as error:
        raise InputError(f"features.path={path}: not readable as TorchScript: {error}") from error


def _load_weights(path: str) -> InceptionNet:
    net = InceptionNet()
    try:
        state = _read_state(path)
        missing, unknown = net.layers.load_state_dict(state, strict=False)
    except (RuntimeError, OSError, pickle.UnpicklingError, ValueError) as error:
        raise InputError(f"features.path={path}: not a state dict: {error}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise InputError(
            f"features.path={path}: not the Inception weights with {NUM_CLASSES} classes: "
            f"missing {missing[:3]}, unknown {unknown[:3]}"
        )
    return net


def _read_state(path: str) -> Mapping[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ValueError(f"holds a {type(state).__name__}")
    return state
