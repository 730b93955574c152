"""Which configuration class belongs to which job."""

from __future__ import annotations

import importlib

from nfs.config.base import JobConfig
from nfs.errors import ConfigError

SCHEMAS = {
    "preprocess": "nfs.config.preprocess:PreprocessConfig",
    "fit_3dmm": "nfs.config.fit_3dmm:Fit3dmmConfig",
    "train_stylenerf": "nfs.config.train_stylenerf:TrainStylenerfConfig",
    "train_arcface": "nfs.config.train_arcface:TrainArcfaceConfig",
    "verify_arcface": "nfs.config.verify_arcface:VerifyArcfaceConfig",
    "train_recon": "nfs.config.train_recon:TrainReconConfig",
    "train_audio2exp": "nfs.config.train_audio2exp:TrainAudio2expConfig",
    "invert": "nfs.config.invert:InvertConfig",
    "render": "nfs.config.render:RenderConfig",
    "evaluate": "nfs.config.evaluate:EvaluateConfig",
    "pipeline": "nfs.config.pipeline:PipelineConfig",
    "tuning.pti": "nfs.config.tuning:TunePtiConfig",
    "tuning.audio2exp": "nfs.config.tuning:TuneAudio2expConfig",
}


def load_schema(reference: str) -> type[JobConfig]:
    """Return the class that `module:Class` names."""
    module, _, name = reference.partition(":")
    cls: type[JobConfig] = getattr(importlib.import_module(module), name)
    return cls


def schema_of(job: str) -> type[JobConfig]:
    """Return the configuration class of a job.

    Raises:
        ConfigError: If there is no such job.
    """
    if job not in SCHEMAS:
        raise ConfigError(f"unknown job {job!r}; known: {', '.join(sorted(SCHEMAS))}")
    return load_schema(SCHEMAS[job])
