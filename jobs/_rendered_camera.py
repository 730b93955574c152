"""What a camera and a scene do to rendered heads: backgrounds, occlusion, colour, blur, JPEG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs._rendered_looks import Look

    Floats = NDArray[np.float64]

_DARK, _BRIGHT = 0.28, 0.62


def background(size_px: int, rng: np.random.Generator) -> Floats:
    """Draw a scene `[H, W, 3]` in [0, 1]: noise with the spectrum of photographs, and shapes."""
    base = rng.uniform(0.05, 0.95) + rng.normal(0, 0.1, 3)
    if rng.random() < 0.25:
        picture = np.broadcast_to(base, (size_px, size_px, 3)).copy()
    else:
        picture = base + rng.uniform(0.05, 0.3) * _natural_noise(size_px, rng)
    image = _to_image(picture)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        corners = rng.integers(-size_px // 4, size_px * 5 // 4, 4)
        box = [*np.minimum(corners[:2], corners[2:]), *np.maximum(corners[:2], corners[2:])]
        shade = _colour(rng)
        if rng.random() < 0.5:
            draw.rectangle([int(v) for v in box], fill=shade)
        else:
            draw.line([int(v) for v in corners], fill=shade, width=int(rng.integers(1, 8)))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0, 1, 2, 5]))))
    return np.asarray(image, np.float64) / 255


def draw_long_hair(
    picture: Floats, look: Look, landmarks: Floats, rng: np.random.Generator
) -> Floats:
    """Draw hair that falls behind and beside the face; landmarks `[68, 2]` in pixels."""
    image = _to_image(picture)
    draw = ImageDraw.Draw(image)
    centre = landmarks[[0, 16]].mean(0)
    half = np.abs(landmarks[16, 0] - landmarks[0, 0]) / 2 * look.long_hair
    chin = landmarks[8, 1] - centre[1]
    top, low = centre[1] - 1.35 * chin, centre[1] + rng.uniform(0.6, 2.2) * chin
    for strand in range(-24, 25):
        x = centre[0] + half * strand / 24
        shade = look.hair * rng.uniform(0.6, 1.3)
        start = centre[1] - (centre[1] - top) * np.sqrt(max(0.0, 1 - (strand / 24) ** 2))
        end = low + rng.normal(0, 0.1) * chin
        draw.line(
            [x, start, x + rng.normal(0, 2), end], fill=_rgb(shade), width=int(half / 24 * 2) + 2
        )
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(image, np.float64) / 255


def draw_glasses(picture: Floats, landmarks: Floats, width: float) -> Floats:
    """Draw frames around the eyes; landmarks `[68, 2]` in pixels."""
    image = _to_image(picture)
    draw = ImageDraw.Draw(image)
    eyes = [landmarks[36:42].mean(0), landmarks[42:48].mean(0)]
    reach = np.linalg.norm(eyes[1] - eyes[0])
    line, ink = max(1, round(width * reach)), (25, 22, 20)
    inner = []
    for side, eye in zip((-1, 1), eyes, strict=True):
        half = np.array([0.36, 0.27]) * reach
        across = np.array([side * half[0], 0])
        draw.ellipse([*(eye - half), *(eye + half)], outline=ink, width=line)
        inner.append(eye - across)
        outer = eye + across
        draw.line([*outer, *landmarks[0 if side < 0 else 16]], fill=ink, width=line)
    draw.line([*inner[0], *inner[1]], fill=ink, width=line)
    return np.asarray(image, np.float64) / 255


def expose(picture: Floats, mask: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Return `[H, W, 3]` in [0, 1] as a camera shows it: exposure, white balance, contrast."""
    luminance = picture[mask].mean() if mask.any() else 0.5
    wanted = rng.uniform(_DARK, _BRIGHT)
    picture = picture * (wanted / max(luminance, 0.02)) ** rng.uniform(0.3, 0.8)
    cast = 0.2 if rng.random() < 0.08 else 0.05
    picture = picture * np.exp(rng.normal(0, cast, 3))
    if rng.random() < 0.1:
        picture = np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
    saturation = rng.uniform(0.5, 1.15)
    grey = picture.mean(2, keepdims=True)
    picture = np.clip(grey + saturation * (picture - grey), 0, 1)
    powered: Floats = picture ** rng.uniform(0.7, 1.4)
    return powered


def occlude(picture: Floats, rng: np.random.Generator) -> Floats:
    """Cover a part of the picture with a coloured shape."""
    size = picture.shape[0]
    image = _to_image(picture)
    draw = ImageDraw.Draw(image)
    centre, half = rng.uniform(0, size, 2), rng.uniform(0.06, 0.22, 2) * size
    box = [*(centre - half), *(centre + half)]
    (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=_colour(rng))
    return np.asarray(image, np.float64) / 255


def develop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    """Return JPEG of an aligned picture with blur, lost resolution and noise drawn at random."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    if rng.random() < 0.3:
        small = int(image.width * rng.uniform(0.3, 0.8))
        image = image.resize((small, small), Image.Resampling.BOX)
        image = image.resize(pixels.shape[:2], Image.Resampling.BILINEAR)
    noisy = np.asarray(image, np.float64) + rng.normal(0, rng.uniform(0, 8), pixels.shape)
    stream = io.BytesIO()
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    image.save(stream, "JPEG", quality=int(rng.integers(45, 96)))
    return stream.getvalue()


def _natural_noise(size_px: int, rng: np.random.Generator) -> Floats:
    """Return noise `[H, W, 3]` of unit deviation whose amplitude falls as 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None])
    frequency[0, 0] = np.inf
    white = rng.normal(size=(size_px, size_px, 3))
    spectrum = np.fft.rfft2(white, axes=(0, 1)) / frequency[..., None] ** rng.uniform(0.8, 1.6)
    noise = np.fft.irfft2(spectrum, (size_px, size_px), axes=(0, 1))
    noise /= noise.std()
    grey = noise.mean(2, keepdims=True)
    return np.asarray(grey * 1.5 + rng.uniform(0.1, 0.5) * noise)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return _rgb(np.clip(rng.uniform(0, 1) + rng.normal(0, 0.15, 3), 0, 1))


def _rgb(colour: Floats) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in np.clip(colour, 0, 1) * 255)
    return red, green, blue


def _to_image(picture: Floats) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
