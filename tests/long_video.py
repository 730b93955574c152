"""Preprocesses a video of any length and prints its peak memory.

python -m tests.long_video MINUTES FOLDER [CLIP]

Repeats the packets of a talking clip; without one, those of a small synthetic video in which
synthetic detectors find the face.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np

import nfs.face.clip as clip_module
from jobs._launch import run_command
from nfs.media import VideoWriter
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE, FPS, RATE_HZ, PIECE_S = (120, 160), 25, 16000, 8
_GAP_S = 0.2


def write_synthetic_piece(path: Path) -> None:
    """Write a bright square that moves, with sound."""
    tone = 0.1 * np.sin(np.arange(PIECE_S * RATE_HZ) * 0.05)
    with VideoWriter(path, FPS, SIZE, (tone, RATE_HZ)) as writer:
        for index in range(PIECE_S * FPS):
            writer.write(picture(SIZE, [(45 + 10 * np.sin(index / 9), 60, 40)]))


def repeat_packets(piece: Path, path: Path, minutes: float) -> None:
    """Write the packets of a video again and again, without decoding them."""
    with av.open(str(piece)) as source, av.open(str(path), "w") as target:
        streams = {
            s.index: target.add_stream_from_template(s)
            for s in (*source.streams.video, *source.streams.audio)
        }
        period_s = float(source.duration / av.time_base) + _GAP_S
        for turn in range(round(minutes * 60 / period_s)):
            source.seek(0)
            for packet in source.demux(*source.streams.video, *source.streams.audio):
                if packet.dts is None:
                    continue
                later = round(turn * period_s / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in 10^6 bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def main(minutes: float, folder: Path, piece: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["launch: {kind: local}", "tracking: {kind: jsonl}"]
    if piece is None:
        clip_module.build_detector = lambda *_: SquareDetector()
        clip_module.build_landmarks = lambda *_: SquareLandmarks()
        lines.append("clip: {crop_size_px: 64}")
        piece = folder / "piece.mp4"
        write_synthetic_piece(piece)
    repeat_packets(piece, folder / "long.mp4", minutes)
    config = folder / "c.yaml"
    config.write_text("\n".join(lines) + "\n")
    arguments = [
        str(config), f"inputs=[{folder}/long.mp4]", f"storage={folder}/runs", "--run-name", "r",
        "shard_mb=64",
    ]  # fmt: skip
    code = run_command("preprocess", "nfs.config.preprocess:PreprocessConfig", arguments)
    result = json.loads((folder / "runs" / "r" / "result.json").read_text())
    facts = {"code": code, "peak_mb": peak_mb(), "frames": result["metrics"]["preprocess/frames"]}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(Path, sys.argv[2:]))
