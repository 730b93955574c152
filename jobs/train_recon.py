"""Train the face regressor: `python -m jobs.train_recon CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute
from jobs._training import train_job

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_recon import ArcfaceIdentity, TrainReconConfig
    from nfs.morphable.recon.identity import FaceIdentity
    from nfs.runtime.context import WorkerContext


def run(config: TrainReconConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.artifacts import read_manifest
    from nfs.morphable import load_model

    read_manifest(config.clips, kind="clips")
    parents = [config.clips]
    changes: dict[str, Any] = {"clips": absolute(config.clips)}
    if config.model != "open_head":
        changes["model"] = absolute(config.model)
    if config.supervision is not None:
        read_manifest(config.supervision.fits, kind="fits")
        parents.append(config.supervision.fits)
        changes["supervision.fits"] = absolute(config.supervision.fits)
    if config.init.kind != "scratch":
        changes["init.path"] = absolute(config.init.path)
    if config.identity.kind == "arcface":
        changes["identity.path"] = absolute(config.identity.path)
    config = config.override(changes)
    load_model(config.model)  # built and checked here, before any worker needs it
    return train_job(train_worker, config, job, model="recon", parents=parents)


def train_worker(tree: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """Train on one rank and return the final metrics.

    Args:
        tree: `TrainReconConfig` as plain values.
        context: This rank.
    """
    from nfs.config.train_recon import TrainReconConfig
    from nfs.morphable.recon.builders import train_regressor

    config = TrainReconConfig.from_tree(tree, source="train_recon")
    return train_regressor(config, load_identity(config), context)


def load_identity(config: TrainReconConfig) -> FaceIdentity | None:
    """Return the identity network that the configuration names."""
    if config.identity.kind == "none":
        return None
    if config.identity.kind == "arcface":
        return load_arcface(config.identity)
    from nfs.morphable.recon.identity import load_dlib

    return load_dlib()


def load_arcface(config: ArcfaceIdentity) -> FaceIdentity:
    """Return an ArcFace network, frozen, from a checkpoint directory or an original file.

    It sees the 112 px template; a network trained at another size gets that picture resized, as it
    was in its training.
    """
    import hashlib
    from pathlib import Path

    from nfs.arcface.identity import WHOLE_BOX
    from nfs.arcface.identity import ArcfaceIdentity as Embedding
    from nfs.morphable.recon.identity import ARCFACE_SIZE_PX, EmbeddingIdentity
    from nfs.pretrained import load_original

    path = Path(config.path)
    if path.is_dir():
        embedding = Embedding.from_checkpoint(path, box=WHOLE_BOX)
    else:
        with path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        embedding = Embedding(
            load_original(f"arcface/{config.name}", path),
            image_size_px=ARCFACE_SIZE_PX,
            name=f"arcface_{config.name}",
            checksum=checksum,
            box=WHOLE_BOX,
        )
    return EmbeddingIdentity(embedding, size_px=ARCFACE_SIZE_PX, scheme="arcface")


if __name__ == "__main__":
    job_main("train_recon", "nfs.config.train_recon:TrainReconConfig")
