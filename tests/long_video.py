"""Preprocesses a video of any length with synthetic faces and prints its peak memory.

python -m tests.long_video MINUTES FOLDER
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

SIZE, FPS, RATE_HZ = (120, 160), 25, 16000
PIECE_S, PERIOD_S = 8, 8.2


def write_long_video(path: Path, minutes: float) -> None:
    """Write a bright square that moves, with sound; the packets of a short piece are repeated."""
    piece = path.with_name("piece.mp4")
    tone = 0.1 * np.sin(np.arange(PIECE_S * RATE_HZ) * 0.05)
    with VideoWriter(piece, FPS, SIZE, (tone, RATE_HZ)) as writer:
        for index in range(PIECE_S * FPS):
            writer.write(picture(SIZE, [(45 + 10 * np.sin(index / 9), 60, 40)]))
    with av.open(str(piece)) as source, av.open(str(path), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for turn in range(round(minutes * 60 / PERIOD_S)):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is None:
                    continue
                later = round(turn * PERIOD_S / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in 10^6 bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def main(minutes: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clip_module.build_detector = lambda *_: SquareDetector()
    clip_module.build_landmarks = lambda *_: SquareLandmarks()
    write_long_video(folder / "long.mp4", minutes)
    config = folder / "c.yaml"
    config.write_text("launch: {kind: local}\ntracking: {kind: jsonl}\nclip: {crop_size_px: 64}\n")
    arguments = [
        str(config), f"inputs=[{folder}/long.mp4]", f"storage={folder}/runs", "--run-name", "r",
        "shard_mb=64",
    ]  # fmt: skip
    code = run_command("preprocess", "nfs.config.preprocess:PreprocessConfig", arguments)
    result = json.loads((folder / "runs" / "r" / "result.json").read_text())
    facts = {"code": code, "peak_mb": peak_mb(), "frames": result["metrics"]["preprocess/frames"]}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
