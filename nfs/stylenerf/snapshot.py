"""Snapshots of the original StyleNeRF (`network-snapshot-*.pkl`), read without executing them.

A snapshot holds G, D and G_ema, perhaps D_ema, and the augmentation pipe. Format:
spec/stylenerf.md 2.11.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfs.errors import InputError
from nfs.pretrained.pickle_reader import PersistentObject, read_pickle
from nfs.pretrained.pickled_modules import module_tensors, plain, state_of
from nfs.stylenerf.augment import OPERATIONS
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.original import load_generator
from nfs.stylenerf.original_discriminator import load_discriminator
from nfs.stylenerf.snapshot_options import discriminator_options, generator_options

NETWORKS = ("G", "D", "G_ema", "D_ema")
_KIMG = re.compile(r"network-snapshot-(\d+)")


@dataclass(frozen=True)
class OriginalNetwork:
    """One network of a snapshot."""

    class_name: str
    """Name of its class in the original."""
    options: dict[str, Any]
    """The original's keyword arguments."""
    state_dict: dict[str, Tensor]
    """Tensors under their original names, complete and exact."""

    @property
    def alpha(self) -> float:
        """Growth stage at which it was saved, 1 if it does not say."""
        named = [v for k, v in self.state_dict.items() if k.rpartition(".")[2] == "alpha"]
        return float(named[0]) if named else 1.0


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot file holds."""

    path: Path
    networks: dict[str, OriginalNetwork]
    """By the names in `NETWORKS`; at least one generator."""
    augment_p: float | None
    """Augmentation probability, or None without augmentation."""
    augmentations: tuple[str, ...]
    """Operations of `nfs.stylenerf.augment` that were in use."""
    data: dict[str, Any]
    """Keyword arguments of the training set."""

    @property
    def kimg(self) -> int | None:
        """Thousands of images seen, which only the file's name records."""
        found = _KIMG.match(self.path.name)
        return int(found[1]) if found else None

    @property
    def generator(self) -> OriginalNetwork:
        """The averaged generator, else G."""
        return self.networks.get("G_ema") or self.networks["G"]

    def summary(self) -> dict[str, Any]:
        """Return its content as plain values, without tensors."""
        return {
            "kimg": self.kimg,
            "augment_p": self.augment_p,
            "augmentations": list(self.augmentations),
            "training_set": self.data,
            "networks": {
                name: {
                    "class": network.class_name,
                    "alpha": network.alpha,
                    "tensors": len(network.state_dict),
                    "numbers": sum(t.numel() for t in network.state_dict.values()),
                    "not_finite": not_finite(network.state_dict),
                    "options": network.options,
                }
                for name, network in self.networks.items()
            },
        }


def read_snapshot(path: str | Path) -> Snapshot:
    """Read a snapshot; nothing in it is executed and source text in it is not looked at.

    Raises:
        InputError: If the file is missing or damaged, holds a foreign name (which is named), or
            is not a StyleNeRF snapshot.
    """
    content = read_pickle(path)
    present = content if isinstance(content, dict) else {}
    networks = {}
    for name in NETWORKS:
        module = present.get(name)
        if module is None:
            continue
        if not isinstance(module, PersistentObject):
            raise InputError(f"{path}: {name} is a {type(module).__name__}, not a network")
        read = discriminator_options if name.startswith("D") else generator_options
        try:
            networks[name] = OriginalNetwork(
                module.class_name, read(module), module_tensors(module, name)
            )
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}") from None
    if not networks.keys() & {"G", "G_ema"}:
        held = sorted(map(str, present)) or type(content).__name__
        raise InputError(f"{path}: not a StyleNeRF snapshot: no G or G_ema in {held}")
    p, operations = _augmentation(present.get("augment_pipe"))
    data = plain(present.get("training_set_kwargs"))
    return Snapshot(Path(path), networks, p, operations, data if isinstance(data, dict) else {})


def import_snapshot(path: str | Path, directory: str | Path) -> Snapshot:
    """Write a snapshot as a checkpoint directory with `weights`, `ema` and `discriminator`.

    Args:
        path: The `.pkl` file.
        directory: Made if absent.

    Returns:
        What was read.

    Raises:
        InputError: As `read_snapshot`; also if an option of the original is not supported, a
            tensor does not fit, or one holds NaN or infinity (spec/stylenerf.md Q1).
    """
    snapshot = read_snapshot(path)
    for name, network in snapshot.networks.items():
        damaged = not_finite(network.state_dict)
        if damaged:
            raise InputError(
                f"{path}: {name}: {', '.join(damaged[:5])} ({len(damaged)} in all) hold NaN or "
                "infinity: the training run that wrote it was damaged; an earlier snapshot may "
                "be intact"
            )
    built: dict[str, Any] = {}
    for name, network in snapshot.networks.items():
        load = load_discriminator if name.startswith("D") else load_generator
        built[name] = load(network.state_dict, network.options)
    averaged = built.get("G_ema")
    export_generator(
        directory,
        built["G"] if averaged is None else built.get("G", averaged),
        ema=averaged,
        discriminator=built.get("D"),
        card=_facts(snapshot),
        origin=_origin(snapshot),
        # -1 stands for no growth in the original.
        alpha=abs(snapshot.generator.alpha),
    )
    return snapshot


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a snapshot holds, as plain values."""
    return read_snapshot(path).summary()


def read_generator(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return state dict and options of a snapshot's averaged generator, else of its G."""
    network = read_snapshot(path).generator
    return network.state_dict, network.options


def read_discriminator(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return state dict and options of a snapshot's discriminator.

    Raises:
        InputError: If there is none.
    """
    network = read_snapshot(path).networks.get("D")
    if network is None:
        raise InputError(f"{path}: holds no discriminator")
    return network.state_dict, network.options


def write_imported(directory: Path, network: nn.Module, family: str, facts: dict[str, Any]) -> None:
    """Write a generator that came alone as a checkpoint directory.

    Raises:
        InputError: For a discriminator, which is no checkpoint without its generator.
    """
    if not isinstance(network, Generator):
        raise InputError(f"{family} alone is not a checkpoint; import the snapshot, or a generator")
    export_generator(directory, network, card=facts)


def not_finite(state_dict: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return [
        name
        for name, value in state_dict.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]


def _augmentation(pipe: object) -> tuple[float | None, tuple[str, ...]]:
    if pipe is None:
        return None, ()
    state = state_of(pipe, "augment_pipe")
    p = (state.get("_buffers") or {}).get("p")
    if not isinstance(p, Tensor):
        return None, ()
    options = plain(state)
    return float(p), tuple(name for name in OPERATIONS if options.get(name, 0))


def _origin(snapshot: Snapshot) -> dict[str, Any]:
    with snapshot.path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": snapshot.path.name,
        "sha256": checksum,
        "kimg": snapshot.kimg,
        "alpha": snapshot.generator.alpha,
        "augment_p": snapshot.augment_p,
        "augmentations": list(snapshot.augmentations),
        "options": {name: network.options for name, network in snapshot.networks.items()},
    }


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "imported from": snapshot.path.name,
        "growth stage": f"alpha {snapshot.generator.alpha:g}",
    }
    if snapshot.kimg is not None:
        facts["images seen"] = 1000 * snapshot.kimg
    if snapshot.augment_p is not None:
        facts["augmentation"] = f"p {snapshot.augment_p:g}: {', '.join(snapshot.augmentations)}"
    return facts
