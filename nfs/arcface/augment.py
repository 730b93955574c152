"""Changes to training images: the original's and the usual ones. uint8 RGB `[H, W, 3]`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from nfs.config.train_arcface import AugmentConfig

Pixels = NDArray[np.uint8]

_LOW_RESOLUTION = (0.5, 0.795)  # 56 to 89 of 112 pixels
_HUE_RAD = math.radians(20)
_SATURATION = 1.2
_KEPT_AREA = (0.6, 1.0)
_CONTRAST = 0.3


def augment(pixels: Pixels, rng: np.random.Generator, settings: AugmentConfig) -> Pixels:
    """Return a changed copy; every choice is drawn from `rng`."""
    if rng.random() < settings.flip:
        pixels = pixels[:, ::-1]
    if not any(value for name, value in settings if name != "flip"):
        return np.ascontiguousarray(pixels)
    if rng.random() < settings.low_resolution:
        pixels = _shrink_and_back(pixels, rng.uniform(*_LOW_RESOLUTION))
    if rng.random() < settings.blur:
        pixels = _blur(pixels, 3 if rng.random() < 0.5 else 5)
    if rng.random() < settings.colour:
        pixels = turn_hue(pixels, rng.uniform(0, _HUE_RAD), rng.uniform(1, _SATURATION))
    if rng.random() < settings.brightness:
        pixels = _brightness(pixels, *rng.uniform(1 - _CONTRAST, 1 + _CONTRAST, 2))
    if rng.random() < settings.grey:
        grey = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    if rng.random() < settings.crop:
        pixels = _keep_part(pixels, rng)
    return np.ascontiguousarray(pixels)


def turn_hue(pixels: Pixels, angle_rad: float, saturation: float) -> Pixels:
    """Turn the colours about the grey axis in YIQ and stretch them."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cosine, sine = saturation * math.cos(angle_rad), saturation * math.sin(angle_rad)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix = np.linalg.inv(to_yiq) @ turn @ to_yiq
    changed = pixels.astype(np.float32) @ matrix.T.astype(np.float32)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _shrink_and_back(pixels: Pixels, factor: float) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    back = image.resize(small, Image.Resampling.BILINEAR)
    return np.asarray(back.resize(image.size, Image.Resampling.BILINEAR))


def _blur(pixels: Pixels, window_px: int) -> Pixels:
    # The usual deviation for a window, as OpenCV derives it.
    sigma = 0.3 * ((window_px - 1) * 0.5 - 1) + 0.8
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))


def _brightness(pixels: Pixels, brightness: float, contrast: float) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = ImageEnhance.Brightness(image).enhance(brightness)
    return np.asarray(ImageEnhance.Contrast(image).enhance(contrast))


def _keep_part(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    side = math.sqrt(rng.uniform(*_KEPT_AREA))
    height, width = (round(side * n) for n in pixels.shape[:2])
    top = int(rng.integers(0, pixels.shape[0] - height + 1))
    left = int(rng.integers(0, pixels.shape[1] - width + 1))
    out = np.zeros_like(pixels)
    out[top : top + height, left : left + width] = pixels[top : top + height, left : left + width]
    return out
