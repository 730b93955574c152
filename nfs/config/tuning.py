"""Settings of the hyper-parameter searches, and their search spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nfs.config.base import Config, JobConfig, flatten, read_yaml, set_dotted
from nfs.config.invert import InvertConfig
from nfs.config.train_audio2exp import TrainAudio2expConfig
from nfs.errors import ConfigError

Scalar = bool | int | float | str | None


class LogUniform(Config):
    """A positive number whose logarithm is uniform."""

    kind: Literal["loguniform"]
    low: float = Field(gt=0)
    """Smallest value."""
    high: float = Field(gt=0)
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class Uniform(Config):
    """A uniform number."""

    kind: Literal["uniform"]
    low: float
    """Smallest value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class Integer(Config):
    """A uniform whole number."""

    kind: Literal["int"]
    low: int
    """Smallest value."""
    high: int
    """Largest value, included."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self


class Choice(Config):
    """One of some values."""

    kind: Literal["choice"]
    values: tuple[Scalar, ...] = Field(min_length=1)
    """The values."""


Dimension = Annotated[LogUniform | Uniform | Integer | Choice, Field(discriminator="kind")]


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low={low} is not below high={high}")


def space_example(space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """Return one sample, to check key paths and ranges against a base configuration."""
    return {key: _first(dimension) for key, dimension in space.items()}


def _first(dimension: LogUniform | Uniform | Integer | Choice) -> Scalar:
    return dimension.values[0] if dimension.kind == "choice" else dimension.low


class AshaConfig(Config):
    """Early stopping of weak trials (asynchronous successive halving)."""

    grace: int = Field(ge=1)
    """Clock value before which no trial is stopped."""
    max_clock: int | None = Field(None, ge=1)
    """Clock value of a whole trial; default the base configuration's length (for `tuning.pti` the
    largest number of steps that the space allows)."""
    reduction_factor: float = Field(3.0, gt=1)
    """One in this many trials survives each rung."""


class SearchConfig(JobConfig):
    """What all searches have. `launch` describes a trial; `num_workers` trials run at once.

    In a file, `base` may name a job's configuration (`base: {file: PATH, clips: ...}`: the other
    keys replace the file's) and `space` may be the path of a file. Both are read at once, so the
    resolved configuration holds their content.
    """

    base: JobConfig
    """Configuration of the job that a trial runs; its storage, launch and tracking are not used."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Key paths of `base` and what they are drawn from."""
    num_trials: int = Field(ge=1)
    """Configurations tried in all."""
    objective: str
    """Reported metric to optimise."""
    mode: Literal["min", "max"] = "min"
    """Direction."""
    clock: str
    """Reported metric that measures progress."""
    scheduler: AshaConfig
    """Early stopping."""
    snapshot_s: float = Field(2.0, gt=0)
    """Seconds between snapshots of the search; what is younger repeats after a crash."""
    keep_all_checkpoints: bool = False
    """Keep the training states of finished trials, not only of the best one."""

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, tree: object) -> object:
        if not isinstance(tree, Mapping):
            return tree
        resolved = dict(tree)
        if isinstance(resolved.get("space"), str):
            resolved["space"] = read_yaml(resolved["space"])
        base = resolved.get("base")
        if isinstance(base, Mapping) and "file" in base:
            changes = {key: value for key, value in base.items() if key != "file"}
            resolved["base"] = apply_tree(read_yaml(base["file"]), changes)
        return resolved

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        try:
            self.base.override(space_example(self.space))
        except ConfigError as error:
            raise ValueError(f"space does not fit base: {error}") from None
        return self


def apply_tree(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the leaves of a nested mapping that `changes` has; return the tree."""
    for key, value in flatten(changes):
        set_dotted(tree, key, value)
    return tree


class TuneAudio2expConfig(SearchConfig):
    """Search for Audio2Exp training settings (spec/audio.md 4.8)."""

    base: TrainAudio2expConfig
    """Configuration of the training that a trial runs."""

    objective: str = "val/lve_mm"
    """Reported metric to optimise."""
    clock: str = "train/samples_seen"
    """Reported metric that measures progress."""


class TunePtiConfig(SearchConfig):
    """Search for inversion settings (spec/inversion_and_talker.md 4.9)."""

    base: InvertConfig
    """Configuration of the inversion that a trial runs."""

    objective: str = "val/novel_view_score"
    """Reported metric to optimise."""
    clock: str = "inversion/steps"
    """Reported metric that measures progress."""
