"""Train Audio2Exp: `python -m jobs.train_audio2exp CONFIG.yaml [key.path=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._launch import job_main
from jobs._run_directory import absolute
from jobs._training import train_job

if TYPE_CHECKING:
    from jobs._launch import JobRun
    from nfs.config.train_audio2exp import TrainAudio2expConfig

_MM_PER_UNIT = 100.0
_MAX_UPPER_VERTICES = 600
_NOSE_BASE, _NOSE_BRIDGE = 33, 27


def run(config: TrainAudio2expConfig, job: JobRun) -> dict[str, Any]:
    """Train and return metrics and the checkpoint's directory."""
    from nfs.audio.builders import train_worker

    config = with_face_basis(config, job.directory)
    parents = [config.clips, config.fits]
    return train_job(train_worker, config, job, model="audio2exp", parents=parents)


def with_face_basis(config: TrainAudio2expConfig, directory: Path) -> TrainAudio2expConfig:
    """Return the configuration with absolute paths and `face_basis` written when not given."""
    from nfs.artifacts import read_manifest

    read_manifest(config.clips, kind="clips")
    fits = read_manifest(config.fits, kind="fits")
    path = Path(config.face_basis or directory / "face_basis.npz").absolute()
    if config.face_basis is None and not path.exists():
        write_face_basis(path, str(fits.config.get("model", "open_head")))
    return config.override(
        {
            "clips": absolute(config.clips),
            "fits": absolute(config.fits),
            "face_basis": str(path),
        }
    )


def write_face_basis(path: Path, model_spec: str) -> None:
    """Write what audio training needs of a morphable model: lips, upper face, landmarks in mm.

    Args:
        path: `.npz` file.
        model_spec: Argument of `nfs.morphable.load_model`.
    """
    import torch

    from nfs.audio.face_basis import FaceBasis, save_face_basis
    from nfs.morphable import load_model

    model = load_model(model_spec)
    mean = torch.zeros(1, model.num_identity), torch.zeros(1, model.expression_basis.shape[-1])
    landmarks = model.landmarks(*mean)[0]
    vertices = model.vertices(*mean)[0]
    groups = model.vertex_groups
    front = groups["front"]
    border = 0.5 * (landmarks[_NOSE_BASE, 1] + landmarks[_NOSE_BRIDGE, 1])
    upper = front[vertices[front, 1] > border]
    upper = upper[:: max(1, -(-len(upper) // _MAX_UPPER_VERTICES))]
    basis = FaceBasis(
        lips=_MM_PER_UNIT * model.expression_basis[groups["lips"]],
        upper=_MM_PER_UNIT * model.expression_basis[upper],
        landmarks=_MM_PER_UNIT * model.landmark_basis()[1][..., model.num_identity :],
        landmarks_neutral=_MM_PER_UNIT * landmarks,
    )
    save_face_basis(path, basis)


if __name__ == "__main__":
    job_main("train_audio2exp", "nfs.config.train_audio2exp:TrainAudio2expConfig")
