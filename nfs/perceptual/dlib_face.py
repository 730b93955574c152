"""dlib's face-recognition network as a frozen, differentiable distance (backend `dlib`).

The weights come with the PyPI package face_recognition_models 0.3.0 (CC0); they are converted once
to safetensors in the cache folder (`NFS_CACHE`, default `~/.cache/nfs`). dlib itself is not needed.

Legend: B batch, H and W pixels, images float [-1, 1] `[B, 3, H, W]` RGB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from nfs.errors import InputError
from nfs.perceptual.dlib_file import IMAGE_SIZE_PX, RGB_MEAN, read_layers

SOURCE_PACKAGE = "face_recognition_models"
SOURCE_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
SOURCE_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
# Where dlib's aligned face chip lies in an FFHQ-style crop, as fractions of the crop: measured
# with dlib's 5-point alignment on aligned portraits (side 0.677-0.722, centre x 0.504-0.508,
# centre y 0.600-0.616).
CHIP_SIDE = 0.70
CHIP_CENTRE = (0.505, 0.605)
# (channels, halves the resolution) of each residual block.
BLOCKS = (
    [(32, False)] * 3
    + [(64, True)]
    + [(64, False)] * 3
    + [(128, True)]
    + [(128, False)] * 2
    + [(256, True)]
    + [(256, False)] * 2
    + [(256, True)]
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut; `down` halves the resolution.

    A down block uses stride 2 without padding and a 2x2 mean on the shortcut; where the two sides
    differ in size or channels the smaller is padded with zeros (bottom, right, last channels).
    """

    def __init__(self, in_channels: int, channels: int, down: bool):
        super().__init__()
        self.down = down
        stride, padding = (2, 0) if down else (1, 1)
        self.first = nn.Conv2d(in_channels, channels, 3, stride, padding)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, h, w]` to `[B, channels, h', w']`."""
        y = self.second(functional.relu(self.first(x)))
        shortcut = functional.avg_pool2d(x, 2, 2) if self.down else x
        shape = [max(a, b) for a, b in zip(y.shape[1:], shortcut.shape[1:], strict=True)]
        return functional.relu(_pad_to(y, shape) + _pad_to(shortcut, shape))


class FaceNet(nn.Module):
    """128-d face embedding with 15 feature taps (5.6 M parameters, affine layers folded in)."""

    rgb_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        widths = [32] + [channels for channels, _ in BLOCKS]
        self.blocks = nn.ModuleList(
            ResidualBlock(width, channels, down)
            for width, (channels, down) in zip(widths[:-1], BLOCKS, strict=True)
        )
        self.fc = nn.Linear(256, 128, bias=False)
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN)[:, None, None], persistent=False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the embedding `[B, 128]` and 15 feature maps of RGB 0..255 `[B, 3, 150, 150]`."""
        x = functional.relu(self.stem((rgb - self.rgb_mean) / 256.0))
        x = functional.max_pool2d(x, 3, 2)
        taps = [x]
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return self.fc(x.mean((2, 3))), taps


class DlibDistance(nn.Module):
    """Perceptual distance and identity embedding of the face region of FFHQ-style crops.

    The distance is the mean over 15 taps of the squared difference of channel-normalised features,
    averaged over positions. It sees the face at 150 px and hardly the hair or the background:
    combine it with `pixel`. LPIPS thresholds mean nothing here; calibrate.
    """

    name = "dlib"
    num_features = len(BLOCKS) + 1

    def __init__(self, net: FaceNet, checksum: str):
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.checksum = checksum

    @classmethod
    def load(cls) -> Self:
        """Load the converted weights, converting them on first use."""
        weights, checksum = load_weights()
        net = FaceNet()
        net.load_state_dict(weights)
        return cls(net, checksum)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return 15 channel-normalised taps `[B, C, h, w]` of the face region."""
        return [_normalise(tap) for tap in self.net(face_chip(images))[1]]

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the tap distance `[B]`, 0 for equal features."""
        terms = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(first, second, strict=True)]
        return torch.stack(terms).mean(0)

    def embed(self, images: Tensor) -> Tensor:
        """Return `[B, 128]` identity embeddings."""
        embedding: Tensor = self.net(face_chip(images))[0]
        return embedding


def face_chip(images: Tensor) -> Tensor:
    """Cut dlib's face region out of FFHQ-style crops; RGB 0..255 `[B, 3, 150, 150]`.

    Args:
        images: `[B, 3, H, W]` in [-1, 1], H = W.
    """
    size = images.shape[-1]
    side = round(CHIP_SIDE * size)
    left = round(CHIP_CENTRE[0] * size - side / 2)
    top = round(CHIP_CENTRE[1] * size - side / 2)
    region = images[:, :, top : top + side, left : left + side]
    if side != IMAGE_SIZE_PX:
        region = functional.interpolate(
            region, size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bilinear", antialias=True
        )
    return (region + 1) * 127.5


def load_weights() -> tuple[dict[str, Tensor], str]:
    """Return the network's state dict and the sha256 of the file it was read from.

    Raises:
        InputError: If the package is missing or its file is not the expected one.
    """
    cached = _cache_folder() / f"dlib_face_{SOURCE_SHA256[:12]}.safetensors"
    if cached.is_file():
        return load_file(cached), SOURCE_SHA256
    source = find_source()
    data = source.read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != SOURCE_SHA256:
        raise InputError(
            f"{source}: sha256 is {checksum[:12]}..., expected {SOURCE_SHA256[:12]}...; "
            f"reinstall {SOURCE_PACKAGE}==0.3.0"
        )
    weights = convert(data, str(source))
    _write_atomic(cached, save(weights, metadata={"source_sha256": checksum}))
    return weights, checksum


def find_source() -> Path:
    """Return the path of dlib's file inside face_recognition_models, without importing it."""
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {SOURCE_PACKAGE} is not installed; pip install {SOURCE_PACKAGE}")
    path = Path(next(iter(spec.submodule_search_locations))) / SOURCE_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; reinstall {SOURCE_PACKAGE}==0.3.0")
    return path


def convert(data: bytes, source: str = "<bytes>") -> dict[str, Tensor]:
    """Turn the content of dlib's file into a state dict of `FaceNet`.

    Every convolution is followed by a per-channel scale and shift, which are folded into it.

    Raises:
        InputError: If the layers are not those of the published network.
    """
    layers = read_layers(data, source)
    net = FaceNet()
    modules: list[tuple[str, nn.Conv2d]] = [("stem", net.stem)]
    for index, block in enumerate(net.blocks):
        modules += [
            (f"blocks.{index}.{half}", getattr(block, half)) for half in ("first", "second")
        ]
    if [layer.kind for layer in layers] != ["conv", "affine"] * len(modules) + ["fc"]:
        raise InputError(f"{source}: unexpected order of layers for dlib's face network")
    state: dict[str, Tensor] = {}
    for (name, module), conv, affine in zip(modules, layers[:-1:2], layers[1:-1:2], strict=True):
        filters, stride = module.out_channels, module.stride[0]
        kernel, padding = module.kernel_size[0], int(module.padding[0])
        expected = (filters, kernel, kernel, stride, stride, padding, padding)
        count = module.weight.numel()
        if conv.geometry != expected or conv.values.size != count + filters:
            raise InputError(f"{source}: {name} has geometry {conv.geometry}, expected {expected}")
        scale, shift = torch.from_numpy(affine.values).view(2, filters)
        weight = torch.from_numpy(conv.values[:count]).view_as(module.weight)
        bias = torch.from_numpy(conv.values[count:])
        state[f"{name}.weight"] = weight * scale[:, None, None, None]
        state[f"{name}.bias"] = bias * scale + shift
    state["fc.weight"] = torch.from_numpy(layers[-1].values).view(256, 128).T.contiguous()
    return state


def _normalise(tap: Tensor) -> Tensor:
    return tap / (tap.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _pad_to(x: Tensor, shape: list[int]) -> Tensor:
    channels, height, width = shape
    if list(x.shape[1:]) == shape:
        return x
    return functional.pad(
        x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1])
    )


def _cache_folder() -> Path:
    return Path(os.environ.get("NFS_CACHE") or Path.home() / ".cache" / "nfs")


def _write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).replace(path)
