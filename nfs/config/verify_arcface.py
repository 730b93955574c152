"""Settings of `jobs.verify_arcface`: how well an identity embedding tells people apart."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig


class TemplateProtocol(Config):
    """IJB-B or IJB-C."""

    root: str
    """Folder with `meta/` and `loose_crop/`."""
    name: Literal["ijbb", "ijbc"] = "ijbc"
    """Start of the names of the files in `meta/`."""


class VerifyArcfaceConfig(JobConfig):
    """Measure a backbone on verification sets; every worker embeds its share."""

    checkpoint: str
    """Checkpoint directory of `jobs.train_arcface`."""
    sets: tuple[str, ...] = ()
    """Paths of `.bin` files (LFW, CFP-FP, AgeDB-30, or of `nfs records pairs`)."""
    templates: TemplateProtocol | None = None
    """Template protocol; null: none."""
    untrained: bool = False
    """Also measure the sets with the same network as it was before training."""
    num_folds: int = Field(10, ge=1)
    """Folds of the accuracy."""
    batch_size: int = Field(32, ge=1)
    """Images per forward pass."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.sets and self.templates is None:
            raise ValueError("nothing to verify: name .bin files in sets, or give templates")
        if self.untrained and not self.sets:
            raise ValueError("untrained has no effect without sets")
        return self
