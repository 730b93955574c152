"""A picture that shows whether the mouth follows the voice."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nfs.talker.plan import FramePlan

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 960, 220, 28
VOICE, MOUTH = (170, 178, 190), (178, 40, 60)


def mouth_and_voice(plan: FramePlan) -> NDArray[np.uint8]:
    """Return a picture of planned mouth opening (line) over speech loudness (area) in time."""
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    voice = _place(plan.speech_energy.astype(np.float64))
    floor = HEIGHT_PX - MARGIN_PX
    draw.polygon([(MARGIN_PX, floor), *voice, (WIDTH_PX - MARGIN_PX, floor)], fill=VOICE)
    mouth = _place(plan.mouth_opening.double().numpy())
    draw.line(mouth, fill=MOUTH, width=2)
    font = ImageFont.load_default(size=13)
    text = "mouth opening (red) over loudness of the speech (grey), each from its least to its most"
    draw.text((MARGIN_PX, 6), text, fill=(60, 60, 60), font=font)
    seconds = len(plan.expression) / plan.fps
    draw.text((MARGIN_PX, floor + 5), "0 s", fill=(60, 60, 60), font=font)
    end = (WIDTH_PX - MARGIN_PX, floor + 5)
    draw.text(end, f"{seconds:.1f} s", fill=(60, 60, 60), font=font, anchor="ra")
    return np.array(image)


def _place(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return pixel positions of a series, scaled to the height of the picture."""
    low, span = values.min(), np.ptp(values) or 1.0
    x = np.linspace(MARGIN_PX, WIDTH_PX - MARGIN_PX, len(values))
    y = HEIGHT_PX - MARGIN_PX - (values - low) / span * (HEIGHT_PX - 3 * MARGIN_PX)
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
