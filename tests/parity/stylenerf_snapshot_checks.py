"""Snapshots of the original, read without executing them, and state dicts written back.

`network-snapshot-NAME.pkl` is compared with `NAME_{G,D}` and `NAME_reference` of its folder, or
with `{G,D}` and `pkl_reference` where there is no file of its name.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nfs.pretrained import load_original
from nfs.stylenerf import Discriminator, Generator
from nfs.stylenerf.cameras import uniform_cameras
from nfs.stylenerf.export import load_generator
from nfs.stylenerf.original_export import (
    original_discriminator_state,
    original_generator_state,
)
from nfs.stylenerf.snapshot import import_snapshot, read_snapshot
from tests.parity.stylenerf_recording import Recording, Report

IMAGE = 2e-3
_PREFIX = "network-snapshot-"


def snapshots(report: Report, folder: Path) -> None:
    """Compare every snapshot of the folder: state dicts exactly, an image of G_ema loosely.

    Where there is a `config.json`, also write our networks back under the original's names.

    Args:
        report: Receives `snapshot/NAME/...`.
        folder: May hold snapshots.
    """
    if (folder / "config.json").is_file():
        _exports(report, folder)
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


def _exports(report: Report, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, family in (("G", "stylenerf/generator"), ("D", "stylenerf/discriminator")):
        file = folder / f"{name}.safetensors"
        if file.is_file():
            options = {**config[name], "img_resolution": config["res"]}
            network = load_original(family, file, options)
            if isinstance(network, Generator):
                written = original_generator_state(network)
            else:
                assert isinstance(network, Discriminator)
                written = original_discriminator_state(network)
            wrong = _differences(written, load_file(file))
            report.add(f"export/{name}", float(wrong), 0.0)


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
