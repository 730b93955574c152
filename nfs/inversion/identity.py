"""The `identity` artifact: a person as a latent, a tuned generator and the fit of the frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from nfs.artifacts import Manifest, Store, read_manifest, write_manifest
from nfs.errors import ArtifactError
from nfs.media.images import encode_png
from nfs.morphable.coefficients import Coefficients
from nfs.stylenerf.builders import load_generator
from nfs.stylenerf.generator import Generator
from nfs.training.checkpoint import write_checkpoint

KIND = "identity"
LATENT_FILE, FIT_FILE, LOSSES_FILE, GENERATOR = (
    "identity.safetensors",
    "fit.safetensors",
    "losses.json",
    "generator",
)


@dataclass(frozen=True)
class Identity:
    """A person that can be rendered.

    Attributes:
        generator: Tuned generator in eval mode, without gradients.
        pivot_ws: `[1, num_ws, w_dim]`.
        background_code: `[1, background_dim]`; rendered with the frozen background camera.
        cam2world: `[T, 4, 4]` cameras of the fitted frames.
        coefficients: T rows: face-model fit of the frames.
        reference: The frontal, neutral frame among the T.
        model_id: Name of the face model of the fit.
        model_checksum: Its checksum.
        clip_id: Source clip or photo.
        frame_indices: T frame numbers in the clip.
    """

    generator: Generator
    pivot_ws: Tensor
    background_code: Tensor
    cam2world: Tensor
    coefficients: Coefficients
    reference: int
    model_id: str
    model_checksum: str
    clip_id: str
    frame_indices: list[int]

    @property
    def reference_cam2world(self) -> Tensor:
        """Camera of the reference frame `[4, 4]`."""
        return self.cam2world[self.reference]

    @property
    def reference_coefficients(self) -> Coefficients:
        """Fit of the reference frame, one row."""
        return self.coefficients[slice(self.reference, self.reference + 1)]


@dataclass(frozen=True)
class Extras:
    """What an identity artifact carries for people and for lineage.

    Attributes:
        previews: PNG pictures by name, uint8 `[H, W, 3]`.
        losses: Content of losses.json.
        metrics: Numbers for the manifest.
        model: `model.json` of the base checkpoint.
        config: Resolved settings of the job.
        parents: Artifact directories read.
        perceptual: Name and checksum of the perceptual backend.
    """

    previews: Mapping[str, NDArray[np.uint8]]
    losses: Mapping[str, Any]
    metrics: Mapping[str, float]
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    parents: Sequence[str]
    perceptual: Mapping[str, str]


def save_identity(uri: str, identity: Identity, extras: Extras) -> Manifest:
    """Write an identity artifact; its manifest comes last.

    Args:
        uri: Artifact directory (local or mounted).
        identity: What to write; the tuned weights are written in full.
        extras: Previews, losses, lineage.
    """
    store = Store(uri)
    latent = {
        "pivot_ws": identity.pivot_ws,
        "background_code": identity.background_code,
        "cam2world": identity.cam2world,
    }
    fit = {
        "coefficients": identity.coefficients.pack(),
        "reference": torch.tensor([identity.reference]),
    }
    store.write_bytes(LATENT_FILE, save({n: _plain(t) for n, t in latent.items()}))
    store.write_bytes(FIT_FILE, save({n: _plain(t) for n, t in fit.items()}))
    store.write_bytes(LOSSES_FILE, json.dumps(extras.losses).encode())
    for name, picture in extras.previews.items():
        store.write_bytes(f"{name}.png", encode_png(picture))
    write_checkpoint(
        store.local_path(GENERATOR),
        identity.generator.state_dict(),
        model=extras.model,
        card=f"# Generator tuned to {identity.clip_id}\n\nWeights belong to this person only.\n",
    )
    return write_manifest(
        uri,
        kind=KIND,
        config=extras.config,
        parents=extras.parents,
        counts={"frames": len(identity.frame_indices)},
        extra={
            "clip_id": identity.clip_id,
            "frame_indices": identity.frame_indices,
            "reference": identity.reference,
            "model_id": identity.model_id,
            "model_checksum": identity.model_checksum,
            "perceptual": dict(extras.perceptual),
            "metrics": dict(extras.metrics),
        },
    )


def load_identity(uri: str) -> Identity:
    """Read an identity artifact.

    Raises:
        ArtifactError: If it is missing, incomplete or damaged.
    """
    manifest = read_manifest(uri, kind=KIND)
    folder = Store(uri).local_path()
    latent = _read(folder / LATENT_FILE)
    fit = _read(folder / FIT_FILE)
    try:
        return Identity(
            generator=load_generator(folder / GENERATOR).eval().requires_grad_(False),
            pivot_ws=latent["pivot_ws"],
            background_code=latent["background_code"],
            cam2world=latent["cam2world"],
            coefficients=Coefficients.unpack(fit["coefficients"]),
            reference=int(fit["reference"][0]),
            model_id=manifest.extra["model_id"],
            model_checksum=manifest.extra["model_checksum"],
            clip_id=manifest.extra["clip_id"],
            frame_indices=list(manifest.extra["frame_indices"]),
        )
    except KeyError as error:
        raise ArtifactError(f"{uri}: {error} is missing; run jobs.invert again") from None


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; run jobs.invert again")
    return dict(load_file(file))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
