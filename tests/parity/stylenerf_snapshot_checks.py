"""Snapshots of the original, read without executing them, against what they must hold.

`network-snapshot-NAME.pkl` is compared with `NAME_{G,D}` and `NAME_reference` of its folder, or
with `{G,D}` and `pkl_reference` where there is no file of its name.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nfs.stylenerf.cameras import uniform_cameras
from nfs.stylenerf.export import load_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.snapshot import import_snapshot, read_snapshot
from tests.parity.stylenerf_recording import Recording, Report

IMAGE = 2e-3
_PREFIX = "network-snapshot-"


def snapshots(report: Report, folder: Path) -> None:
    """Compare every snapshot of the folder: state dicts exactly, an image of G_ema loosely.

    Args:
        report: Receives `snapshot/NAME/...`.
        folder: May hold snapshots.
    """
    for file in sorted(folder.glob(f"{_PREFIX}*.pkl")):
        label = file.stem.removeprefix(_PREFIX)
        own = (folder / f"{label}_reference.json").is_file()
        prefix, reference = (f"{label}_", f"{label}_reference") if own else ("", "pkl_reference")
        held = read_snapshot(file).networks
        for name in ("G", "D"):
            expected = folder / f"{prefix}{name}.safetensors"
            if expected.is_file():
                wrong = _differences(held[name].state_dict, load_file(expected))
                report.add(f"snapshot/{label}/{name}", float(wrong), 0.0)
        if (folder / f"{reference}.json").is_file():
            with tempfile.TemporaryDirectory() as directory:
                import_snapshot(file, directory)
                generator = load_generator(directory, ema=True)
            _image(report, f"snapshot/{label}", generator, Recording(folder / reference))


def _differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> int:
    """Count names and tensors that differ; the growth stage at saving time is not compared."""
    names = {name for name in ours.keys() | theirs.keys() if name.rpartition(".")[2] != "alpha"}
    return sum(
        name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
        for name in names
    )


def _image(report: Report, name: str, generator: Generator, recording: Recording) -> None:
    z = recording["z"]
    u, v, radius = (
        torch.full((len(z),), float(recording.values[f"camera_mode/{i}"])) for i in range(3)
    )
    cameras = uniform_cameras(generator.spec.cameras, u, v, radius)
    with torch.no_grad():
        ws = generator.mapping(z, truncation_psi=float(recording.values["truncation_psi"]))
        code = recording["latent_codes/2"]
        rendering = generator.synthesis(ws, cameras, background_code=code)
    report.compare(f"{name}/img", rendering.image, recording["img"], IMAGE)
