"""ARKit blend shapes as CSV, in the columns of Live Link Face, for Blender and Unreal.

The open head's first 52 expression axes are ARKit's, so their weights are written as they are. Ten
of them are zero in every fit, because 68 landmarks do not show them (gaze, cheek puff, tongue); the
twelve axes beyond ARKit have no column and are left out (they are orthogonal to the 52).
"""

from __future__ import annotations

import csv
from pathlib import Path

from nfs.errors import InputError
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.model import MorphableModel

SHAPES = (
    *(
        f"eye{name}{side}"
        for side in ("Left", "Right")
        for name in ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")
    ),
    *("jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker"),
    *("mouthLeft", "mouthRight"),
    *(
        f"mouth{name}{side}"
        for name in ("Smile", "Frown", "Dimple", "Stretch")
        for side in ("Left", "Right")
    ),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *(
        f"mouth{name}{side}"
        for name in ("Press", "LowerDown", "UpperUp")
        for side in ("Left", "Right")
    ),
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight"),
    "tongueOut",
)
"""The 52 names in the order of Live Link Face; columns have a capital first letter."""
POSE = ("HeadYaw", "HeadPitch", "HeadRoll")
EYES = tuple(f"{side}Eye{axis}" for side in ("Left", "Right") for axis in ("Yaw", "Pitch", "Roll"))


def write_arkit_csv(
    model: MorphableModel,
    coefficients: Coefficients,
    frame_index: list[int],
    path: Path,
    *,
    fps: float,
) -> list[str]:
    """Write one row per frame and return the shapes that are zero because nothing shows them.

    Head angles are radians of the fit's rotation (`R = Rz Ry Rx`): yaw is positive towards the
    subject's left, pitch positive downwards, roll positive against the clock as the viewer sees
    it. Eye angles are zero.

    Args:
        model: Model of the coefficients.
        coefficients: T rows.
        frame_index: T frame numbers; the timecode counts from the first.
        path: File to write.
        fps: Frames per second of the clip.

    Raises:
        InputError: If the model's expressions are not named after ARKit's, as those of BFM.
    """
    places = {name: i for i, name in enumerate(model.expression_names)}
    missing = [name for name in SHAPES if name not in places]
    if missing:
        raise InputError(
            f"model {model.model_id} has no ARKit expressions ({missing[0]} is missing); "
            "only fits of open_head can be written as ARKit CSV"
        )
    if not fps > 0:
        raise InputError(f"fps={fps:g} must be positive")
    weights = coefficients.expression[:, [places[name] for name in SHAPES]].tolist()
    angles = coefficients.rotation[:, [1, 0, 2]].tolist()
    columns = [name[0].upper() + name[1:] for name in SHAPES]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Timecode", "BlendShapeCount", *columns, *POSE, *EYES])
        for frame, row, angle in zip(frame_index, weights, angles, strict=True):
            values = [f"{value:.6f}" for value in (*row, *angle, *(0.0 for _ in EYES))]
            writer.writerow([timecode(frame - frame_index[0], fps), len(values), *values])
    prior = model.expression_prior
    return [name for name in SHAPES if bool(prior[places[name]].isinf())]


def timecode(frame: int, fps: float) -> str:
    """Return `HH:MM:SS:FF.mmm` of a frame; the fraction is what `fps` leaves of the frame."""
    rate = max(1, round(fps))
    seconds, part = divmod(frame / fps, 1)
    whole = min(int(part * rate + 1e-6), rate - 1)
    rest = max(0, min(999, int((part * rate - whole) * 1000 + 1e-3)))
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02d}:{minute:02d}:{second:02d}:{whole:02d}.{rest:03d}"
