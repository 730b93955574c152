"""A folder of short talking clips with some odd and broken files among them, made with PyAV.

`ODD` names each kind and what must become of it: `ok`, or the status it is refused with.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from nfs.media.audio import read_audio
from nfs.media.video import read_frames
from nfs.media.writer import VideoWriter

FPS, RATE_HZ, SIZE_PX = 25, 16000, 224
VARIABLE_TIMES = (0, 1, 3, 4, 7, 8)
ODD = {
    "fuzzed.mp4": "decode_error",
    "zero_length.mp4": "decode_error",
    "no_audio.mp4": "ok",
    "rotated.mp4": "ok",
    "variable_rate.mkv": "ok",
    "grey.mp4": "ok",
    "sixteen_bit.png": "ok",
    "huge.png": "decode_error",
    "ünï cödé 名前 🙂.mp4": "ok",
    "loop.mp4": "decode_error",
}
"""Files by name."""


class OddMedia:
    """Makes the files from a real clip.

    Args:
        source: Video of one face, at least ten seconds.
        num_frames: Frames of a clip.
    """

    def __init__(self, source: Path, num_frames: int = 6):
        self.num_frames = num_frames
        self.frames = [self._small(image) for _, image in read_frames(source, fps=FPS)]
        self.sound = read_audio(source, RATE_HZ)

    def write(self, folder: Path, count: int) -> dict[str, str]:
        """Write `count` files, one of each odd kind among them; return name -> wanted status."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ODD:
            self._odd(folder / kind)
        good = [f"clip_{index:03d}.mp4" for index in range(count - len(ODD))]
        for index, name in enumerate(good):
            self._plain(folder / name, self._piece(index))
        return {**ODD, **dict.fromkeys(good, "ok")}

    def _piece(self, index: int) -> int:
        """Return the first frame of a piece; pieces overlap but no two are equal."""
        if index > len(self.frames) - self.num_frames:
            raise ValueError(f"{len(self.frames)} frames are too few for {index} clips")
        return index

    @staticmethod
    def _small(image: np.ndarray) -> np.ndarray:
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        return np.asarray(square.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))

    def _cut(self, start: int) -> list[np.ndarray]:
        return self.frames[start : start + self.num_frames]

    def _plain(
        self, path: Path, start: int, *, audio: bool = True, comment: str | None = None
    ) -> None:
        samples = self.sound.cut(start / FPS, RATE_HZ * self.num_frames // FPS)
        sound = (samples, RATE_HZ) if audio else None
        with VideoWriter(path, FPS, (SIZE_PX, SIZE_PX), sound, comment) as writer:
            for frame in self._cut(start):
                writer.write(frame)

    def _odd(self, path: Path) -> None:
        start = 3 + 7 * list(ODD).index(path.name)
        match path.name:
            case "fuzzed.mp4":
                self._plain(path, start)
                data = np.frombuffer(path.read_bytes(), np.uint8).copy()
                data[:256] ^= np.random.default_rng(0).integers(1, 256, 256, np.uint8)
                path.write_bytes(data.tobytes())
            case "zero_length.mp4":
                path.touch()
            case "no_audio.mp4":
                self._plain(path, start, audio=False)
            case "rotated.mp4":
                self._rotated(path, start)
            case "variable_rate.mkv":
                self._variable(path, start)
            case "grey.mp4":
                write_raw(path, [f.mean(axis=2).astype(np.uint8) for f in self._cut(start)], "gray")
            case "sixteen_bit.png":
                grey = self.frames[start].mean(axis=2).astype(np.uint16) * 257
                Image.fromarray(grey).save(path)
            case "huge.png":
                Image.new("1", (30_000, 30_000)).save(path)
            case "loop.mp4":
                path.symlink_to(path.name)
            case _:  # the comment makes it differ from the clip of the same frames
                self._plain(path, start, comment=path.stem)

    def _rotated(self, path: Path, start: int) -> None:
        """Frames on their side, with the flag that turns them upright."""
        plain = path.with_name(".plain.mp4")
        with VideoWriter(plain, FPS, (SIZE_PX, SIZE_PX)) as writer:
            for frame in self._cut(start):
                writer.write(np.ascontiguousarray(np.rot90(frame, k=-1)))
        data = plain.read_bytes()
        plain.unlink()
        # the display matrix in the track header: identity to a quarter turn
        one = (1 << 16).to_bytes(4, "big")
        minus, zero, unit = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4), b"\x40\0\0\0"
        identity = one + zero * 3 + one + zero * 3 + unit
        turned = zero + minus + zero + one + zero * 4 + unit
        header = data.index(identity, data.index(b"tkhd"))
        path.write_bytes(data[:header] + turned + data[header + len(turned) :])

    def _variable(self, path: Path, start: int) -> None:
        """Frames that are shown for one to three twenty-fifths of a second."""
        times = VARIABLE_TIMES[: self.num_frames]
        pieces = [self.frames[start + time] for time in times]
        write_raw(path, pieces, "rgb24", times=times)


def write_raw(
    path: Path, frames: list[np.ndarray], pixels: str, *, times: Sequence[int] | None = None
) -> None:
    """Write frames of a PyAV pixel format, shown at `times` twenty-fifths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "gray" if pixels == "gray" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format=pixels)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
