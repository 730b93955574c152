"""Preprocessing: one clip end to end against a loop that detects in every frame.

`python benchmarks/bench_preprocess.py [--clip talk.mp4] [--ray | --scaling]`. Without a clip a
720p video of a moving portrait is made from a sample photograph. Every loop decodes, finds the
face and its 68 points, cuts the smoothed crop, encodes it and computes the mel; they differ in how
the face is found: in ours landmarks lead and MTCNN looks every 25 frames; the loops run MTCNN on
every frame, at its package's settings on the full picture (as the original tools do) or reduced as
in ours. `--ray` measures 20 clips through Ray Data against the plain loop instead, start-up apart;
`--scaling` one worker against two by the clock, beside one and two processes without Ray, which is
what the machine has to give: virtual cores may share a real one.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _harness import Report, arguments, interleave, say

from nfs.artifacts.units import UnitWork
from nfs.audio.mel import melspectrogram
from nfs.config.base import LaunchConfig
from nfs.config.preprocess import ClipConfig
from nfs.face.clip import ClipWork, Item
from nfs.face.detectors import DlibDetector, MtcnnDetector
from nfs.face.keypoints import Keypoints
from nfs.face.protocols import Array, FaceDetector
from nfs.face.selection import one_face, scenes_of
from nfs.face.tracking import FaceTracker, Track
from nfs.media.images import read_photo, warp_affine
from nfs.media.video import probe, read_frames
from nfs.media.writer import VideoWriter
from nfs.runtime import run_units
from nfs.samples import SAMPLES, fetch_samples

FPS, WIDTH, HEIGHT, SYNTHETIC_S = 25.0, 1280, 720, 3.0
TRACKED_S, FULL_S, REDUCED_S = 4.0, 0.32, 1.2
"""Seconds of the clip that each loop runs over; the ratios are per frame."""
REFERENCE_EVERY = 3
RAY_CLIPS, RAY_CLIP_S = 20, 0.6


class EveryFrameWork(ClipWork):
    """The detect-every-frame loop: frames in a list, a detection for each, the largest face.

    Args:
        config: Tree of `ClipConfig`.
        detector: Runs on every frame.
    """

    def __init__(self, config: Mapping[str, Any], detector: FaceDetector) -> None:
        super().__init__(config, melspectrogram)
        self.detector = detector
        self.found: Keypoints | None = None

    def find(self, item: Item) -> FaceTracker:
        frames = [image for _, image in self._read(item)]
        tracker = FaceTracker(self.detector, self.points)
        track = Track(scene=0)
        for index, image in enumerate(frames):
            faces = self.detector.detect([image])[0]
            if len(faces) > 0:
                found, score = self.points.landmarks(image, faces.boxes[:1])
                track.add(index, found[0], float(score[0]))
        tracker.num_frames, tracker.scene_starts, tracker.tracks = len(frames), [0], [track]
        self.found = keypoints_of(tracker)
        return tracker


class TrackedWork(ClipWork):
    """The product, with its keypoints kept for the comparison."""

    found: Keypoints | None = None

    def find(self, item: Item) -> FaceTracker:
        tracker = super().find(item)
        self.found = keypoints_of(tracker)
        return tracker


def keypoints_of(tracker: FaceTracker) -> Keypoints:
    """Return the landmarks of a video with one face in view all the time."""
    (scene,) = scenes_of(tracker)
    (span,) = one_face(scene, tracker.tracks, 1)
    return span.keypoints


def main() -> None:
    options = arguments(
        __doc__,
        ("--clip", {"type": Path, "help": "video with one clear face"}),
        ("--ray", {"action": "store_true", "help": "20 clips through Ray Data, nothing else"}),
        ("--scaling", {"action": "store_true", "help": "one worker against two, nothing else"}),
        ("--repeats", {"type": int, "default": 3}),
    )
    kind = "-ray" if options.ray else "-scaling" if options.scaling else ""
    with tempfile.TemporaryDirectory() as folder:
        clip = options.clip or synthetic_clip(Path(folder))
        info = probe(clip)
        report = Report(
            f"preprocess{kind}",
            {
                "clip": clip.name if options.clip else "synthetic",
                "size": [info.width_px, info.height_px],
                "seconds": {"nfs": TRACKED_S, "full": FULL_S, "reduced": REDUCED_S},
            },
        )
        if options.ray:
            time_ray(report, clip, Path(folder))
        elif options.scaling:
            time_scaling(report, clip, Path(folder), options.repeats)
        else:
            time_loops(report, clip, options.repeats)
    report.write(options.out)


def synthetic_clip(folder: Path) -> Path:
    """Write a video of a photograph that turns, shifts and scales in front of the camera."""
    (photo,) = fetch_samples(folder, samples=[s for s in SAMPLES if s.name == "astronaut.png"])
    image, path = read_photo(photo), folder / "moving.mp4"
    face = np.array([222.0, 130.0])
    with VideoWriter(path, FPS, (HEIGHT, WIDTH)) as writer:
        for index in range(round((SYNTHETIC_S + 1) * FPS)):
            phase = 2 * np.pi * index / FPS
            angle, scale = 0.12 * np.sin(0.5 * phase), 2.6 + 0.2 * np.sin(0.3 * phase)
            cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
            linear = np.array([[cosine, -sine], [sine, cosine]])
            middle = np.array([WIDTH / 2 + 60 * np.sin(0.4 * phase), HEIGHT / 2])
            matrix = np.column_stack([linear, middle - linear @ face])
            square = warp_affine(image, matrix, WIDTH)
            writer.write(np.ascontiguousarray(square[:HEIGHT]))
    return path


def item_of(clip: Path, seconds: float, *, start_s: float = 0.0, key: str = "clip") -> Item:
    names = ("clip_id", "source_uri", "source_sha256", "identity_id")
    item = {"key": key, "path": str(clip), **dict.fromkeys(names, key), "split": "train"}
    return {**item, "start_s": start_s, "end_s": start_s + seconds}


def time_loops(report: Report, clip: Path, repeats: int) -> None:
    tree = ClipConfig(device="cpu").tree()
    tracked = TrackedWork(tree, melspectrogram)
    full = EveryFrameWork(tree, MtcnnDetector(max_side_px=1 << 20, min_face_fraction=0.0))
    reduced = EveryFrameWork(tree, MtcnnDetector())
    ours, whole, small = "nfs", "every frame, full size", "every frame, reduced"
    works: dict[str, tuple[ClipWork, float]] = {
        whole: (full, FULL_S),
        small: (reduced, REDUCED_S),
        ours: (tracked, TRACKED_S),
    }
    frames = {n: work(item_of(clip, s))["frames"].num_rows for n, (work, s) in works.items()}
    cases: dict[str, Callable[[], object]] = {
        name: partial(work, item_of(clip, seconds)) for name, (work, seconds) in works.items()
    }
    report.timings |= interleave(cases, repeats=repeats, warmup=0)
    for name, timing in report.timings.items():
        report.checks[f"frames/CPU-s, {name}"] = round(frames[name] / timing.cpu_median_s, 2)
    for name, base in (("full size", whole), ("reduced", small)):
        report.ratio(
            f"frames/s over every frame, {name}",
            base,
            ours,
            target=6.0,
            work=(frames[base], frames[ours]),
        )
    compare_landmarks(report, clip, tracked, reduced, full)


def compare_landmarks(
    report: Report, clip: Path, tracked: TrackedWork, reduced: EveryFrameWork, full: EveryFrameWork
) -> None:
    """Compare with landmarks in boxes of an independent detector (dlib's HOG) on some frames."""
    loops = {"reduced": reduced.detector, "full size": full.detector}
    reference, points = DlibDetector(), tracked.points
    errors: dict[str, list[float]] = {name: [] for name in ("nfs", *loops)}
    assert tracked.found is not None
    for index, (_, image) in enumerate(read_frames(clip, fps=FPS, end_s=TRACKED_S)):
        if index % REFERENCE_EVERY or not tracked.found.valid[index]:
            continue
        boxes = {name: one.detect([image])[0].boxes[:1] for name, one in loops.items()}
        wanted_in = reference.detect([image])[0].boxes[:1]
        if min(len(wanted_in), *(len(box) for box in boxes.values())) == 0:
            continue
        wanted = points.landmarks(image, wanted_in)[0][0]
        errors["nfs"].append(nme_percent(tracked.found.landmarks[index], wanted))
        for name, box in boxes.items():
            errors[name].append(nme_percent(points.landmarks(image, box)[0][0], wanted))
    report.checks["frames compared with dlib's boxes"] = len(errors["nfs"])
    for name, values in errors.items():
        report.checks[f"NME % to dlib's boxes, {name}"] = round(float(np.mean(values)), 3)
    found = {"nfs": tracked.found, "reduced": reduced.found, "full size": full.found}
    followed = {name: keypoints for name, keypoints in found.items() if keypoints is not None}
    shortest = min(len(keypoints.valid) for keypoints in followed.values())
    for name, keypoints in followed.items():
        places = keypoints.landmarks[:shortest]
        shake = np.linalg.norm(np.diff(places, n=2, axis=0), axis=-1).mean()
        report.checks[f"jitter px, {name}"] = round(float(shake), 3)
        report.checks[f"frames with a face, {name}"] = float(keypoints.valid.mean())


def nme_percent(points: Array, wanted: Array) -> float:
    """Return the mean distance of landmarks `[68, 2]` by the distance of the eyes' centres."""
    eyes = np.linalg.norm(wanted[42:48].mean(axis=0) - wanted[36:42].mean(axis=0))
    return float(100 * np.linalg.norm(points - wanted, axis=-1).mean() / eyes)


def time_scaling(report: Report, clip: Path, folder: Path, repeats: int) -> None:
    """Clips per second of one and two Ray Data workers, and of plain processes."""
    starts = np.linspace(0, max(0.0, TRACKED_S - RAY_CLIP_S), RAY_CLIPS)
    make: Callable[[], UnitWork] = partial(
        ClipWork, ClipConfig(device="cpu").tree(), melspectrogram
    )
    rates: dict[str, list[float]] = {}
    for turn in range(repeats):
        for count in (1, 2):
            plain = plain_rates(clip, count)
            rates.setdefault(f"processes, {count}", []).append(sum(plain))
            name = f"scaling{turn}-{count}"
            items = [
                item_of(clip, RAY_CLIP_S, start_s=float(start), key=f"{name}-{index:02d}")
                for index, start in enumerate(starts)
            ]
            times: list[float] = []
            run_units(
                items,
                make,
                str(folder / name),
                LaunchConfig(num_workers=count),
                lambda _, times=times: times.append(time.monotonic()),
                primary=ClipWork.primary,
            )
            warm = 2 * count  # by then every worker has begun
            rate = (len(times) - warm) / (times[-1] - times[warm - 1])
            rates.setdefault(f"Ray workers, {count}", []).append(rate)
            say(f"{count}: Ray {rate:.3f} clips/s, processes {sum(plain):.3f}")
    report.checks["clips/s"] = {name: [round(r, 3) for r in found] for name, found in rates.items()}
    middle = {name: float(np.median(found)) for name, found in rates.items()}
    for who in ("Ray workers", "processes"):
        ratio = middle[f"{who}, 2"] / middle[f"{who}, 1"]
        report.checks[f"two {who} over one, wall"] = round(ratio, 2)


def plain_rates(clip: Path, count: int) -> list[float]:
    """Return the clips per second of each of `count` processes that work at the same time."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        begin = time.time() + 20.0  # all have loaded their models by then
        return list(pool.map(_plain_rate, [clip] * count, [begin] * count))


def _plain_rate(clip: Path, begin: float) -> float:
    torch.set_num_threads(1)
    work = ClipWork(ClipConfig(device="cpu").tree(), melspectrogram)
    work(item_of(clip, RAY_CLIP_S))
    time.sleep(max(0.0, begin - time.time()))
    start = time.monotonic()
    for second in np.linspace(0, max(0.0, TRACKED_S - RAY_CLIP_S), RAY_CLIPS):
        work(item_of(clip, RAY_CLIP_S, start_s=float(second)))
    return RAY_CLIPS / (time.monotonic() - start)


def time_ray(report: Report, clip: Path, folder: Path) -> None:
    """CPU-seconds of all processes between the first and the last of 20 clips, one worker."""
    starts = np.linspace(0, max(0.0, TRACKED_S - RAY_CLIP_S), RAY_CLIPS)
    make: Callable[[], UnitWork] = partial(
        ClipWork, ClipConfig(device="cpu").tree(), melspectrogram
    )
    cpu: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for turn in range(2):
        for kind in cpu:
            items = [
                item_of(clip, RAY_CLIP_S, start_s=float(start), key=f"{kind}{turn}-{index:02d}")
                for index, start in enumerate(starts)
            ]
            ledger = CpuLedger(RAY_CLIPS)
            run_units(
                items,
                make,
                str(folder / f"{kind}{turn}"),
                LaunchConfig(kind=kind, num_workers=1),
                ledger.count,
                primary=ClipWork.primary,
            )
            cpu[kind].append(ledger.used())
            say(f"{RAY_CLIPS} clips, {kind}, between first and last: {cpu[kind][-1]}")
    report.checks["CPU-s between first and last of 20 clips"] = cpu
    least = min(turn["driver"] for turn in cpu["local"])  # Ray idles beside the later ones
    overhead = min(turn["all"] for turn in cpu["ray"]) / least - 1
    report.checks["Ray's overhead with its daemons (wanted < 0.10)"] = round(overhead, 3)
    own = min(turn["driver"] + turn["workers"] for turn in cpu["ray"]) / least - 1
    report.checks["the same without daemons, which work by the clock"] = round(own, 3)


class CpuLedger:
    """CPU-seconds of this process and its descendants between the first and the last clip.

    Processes are read twice only: reading them all takes as long as a frame.
    """

    def __init__(self, num_clips: int) -> None:
        self.num_clips, self.num_done = num_clips, 0
        self.reads: list[dict[int, tuple[str, float]]] = []
        self.walls: list[float] = []

    def count(self, _: object) -> None:
        """Take a reading after the first and the last clip."""
        self.num_done += 1
        if self.num_done in (1, self.num_clips):
            self.reads.append(self._read())
            self.walls.append(time.monotonic())

    def used(self) -> dict[str, float]:
        """Return CPU-seconds by kind of process, of all, and the wall time."""
        first, last = self.reads
        parts = {"driver": 0.0, "workers": 0.0, "daemons": 0.0}
        for pid, (kind, seconds) in last.items():
            parts[kind] += seconds - first.get(pid, ("", 0.0))[1]
        parts |= {"all": sum(parts.values()), "wall": self.walls[1] - self.walls[0]}
        return {name: round(value, 2) for name, value in parts.items()}

    @staticmethod
    def _read() -> dict[int, tuple[str, float]]:
        found: dict[int, tuple[str, float]] = {}
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                kind = "workers" if "MapWorker" in " ".join(process.cmdline()) else "daemons"
                found[process.pid] = (
                    "driver" if process.pid == own.pid else kind,
                    used.user + used.system,
                )
        return found


if __name__ == "__main__":
    main()
