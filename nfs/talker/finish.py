"""From rendered images to pictures of the video: size and disclosure."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WATERMARK_TEXT = "synthetic"


def resize_frame(frame: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Return a frame of this height, resampled with Lanczos when it differs."""
    if frame.shape[0] == size_px:
        return frame
    size = (round(frame.shape[1] * size_px / frame.shape[0]), size_px)
    image = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def add_watermark(frame: NDArray[np.uint8], text: str = WATERMARK_TEXT) -> NDArray[np.uint8]:
    """Return a copy with small white text, dark-rimmed, in the lower left corner."""
    image = Image.fromarray(frame)
    height = max(10, round(image.height / 22))
    font = ImageFont.load_default(size=height)
    position = (height * 0.6, image.height - height * 0.6)
    rim = max(1, height // 12)
    ImageDraw.Draw(image).text(
        position,
        text,
        font=font,
        anchor="ls",
        fill=(255, 255, 255),
        stroke_width=rim,
        stroke_fill=(30, 30, 30),
    )
    return np.array(image)
