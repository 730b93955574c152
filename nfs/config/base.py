"""Loading, overriding and checking configuration; the settings that every job shares."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nfs.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, values are fixed after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply `key.path=value` overrides and validate.

        Args:
            path: YAML file; its top level is a mapping.
            overrides: Items such as `optimizer.lr=0.002`; values are parsed as YAML.

        Raises:
            ConfigError: If the file is missing or unreadable, or a key or value is wrong.
        """
        return cls.from_tree(apply_overrides(read_yaml(path), overrides), source=str(path))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], source: str = "<dict>") -> Self:
        """Validate a nested mapping.

        Raises:
            ConfigError: One line per problem, naming `source`, the key and the bad value.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            problems = [_describe(cls, item) for item in error.errors(include_url=False)]
            raise ConfigError("\n".join(f"{source}: {p}" for p in problems)) from None

    def tree(self) -> dict[str, Any]:
        """Return plain JSON values; `from_tree` of the result is equal to this object."""
        return self.model_dump(mode="json")

    def override(self, changes: Mapping[str, Any]) -> Self:
        """Return a validated copy with dotted keys replaced, e.g. `{"optimizer.lr": 1e-3}`."""
        tree = self.tree()
        for key, value in changes.items():
            set_dotted(tree, key, value)
        return type(self).from_tree(tree, source="override")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping and the files that its key `extends` names.

    `extends: [model.yaml, spec.yaml]` (paths relative to the file) starts from those mappings,
    later files over earlier ones, and the file itself over all; see `merge`.

    Raises:
        ConfigError: If a file is missing, is not YAML, is not a mapping, or extends itself.
    """
    return _read_extended(Path(path), str(path), ())


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the keys of `above` over it, section by section.

    A section of another `kind` replaces the section below it as a whole.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other = "kind" in value and value["kind"] != old.get("kind", value["kind"])
            merged[key] = dict(value) if other else merge(old, value)
        else:
            merged[key] = value
    return merged


def _read_extended(file: Path, shown: str, above: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in above:
        raise ConfigError(f"{shown}: extends itself through {' -> '.join(f.name for f in above)}")
    tree = _read_mapping(file, shown)
    names = tree.pop("extends", [])
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{shown}: extends must be a list of YAML files, got {names!r}")
    merged: dict[str, Any] = {}
    for name in names:
        below = _read_extended(
            file.parent / name, f"{shown}: extends {name}", (*above, file.resolve())
        )
        merged = merge(merged, below)
    return merge(merged, tree)


def _read_mapping(file: Path, path: str) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{path}: no such configuration file{_nearby(file)}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the top level must be a mapping, got {type(tree).__name__}")
    return tree


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key.path=value` items to a tree in place and return it."""
    for item in overrides:
        key, separator, raw = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {item!r} must look like optimizer.lr=0.002")
        try:
            value = yaml.safe_load(raw) if raw else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"override {item!r}: value is not YAML: {error}") from None
        set_dotted(tree, key, value)
    return tree


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in a nested dictionary, making parents as needed."""
    *parents, leaf = key.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {key!r}: {name!r} is a value, not a section")
        tree = child
    tree[leaf] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, leaf value) pairs of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def tree_hash(tree: Mapping[str, Any]) -> str:
    """Return 12 hex digits that identify the content of a JSON tree."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class LaunchConfig(Config):
    """Where a job's work runs."""

    kind: Literal["ray", "local"] = "ray"
    """`ray`: tasks and workers on a Ray cluster; `local`: this process or torchrun, without Ray."""
    num_workers: int = Field(1, ge=1)
    """Training workers (ranks) or data actors."""
    cpus_per_worker: float = Field(1, gt=0)
    """Logical CPUs reserved by each worker."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs reserved by each worker; fractions share one GPU between data actors."""
    max_failures: int = Field(2, ge=0)
    """Restarts of a training run after a worker failure."""


class LoaderConfig(Config):
    """Who reads and decodes the training items; the numbers are the same whoever does."""

    ingest: Literal["threads", "ray_data"] = "threads"
    """`threads`: in the training worker; `ray_data`: actors anywhere on the cluster, for storage
    or decoding that one node cannot keep up with (docs/data_formats.md)."""
    workers: int = Field(1, ge=1)
    """Threads, or actors with one CPU each, per training worker."""
    prefetch_batches: int = Field(2, ge=0)
    """Batches prepared ahead; 0 (threads only): in line with the training step."""

    @model_validator(mode="after")
    def _ahead(self) -> Self:
        if not self.prefetch_batches:
            if self.ingest == "ray_data":
                raise ValueError("ingest=ray_data needs prefetch_batches of at least 1")
            if self.workers > 1:
                raise ValueError("workers has no effect with prefetch_batches=0")
        return self


class TrackingConfig(Config):
    """Where parameters, metrics and pictures go."""

    kind: Literal["mlflow", "jsonl", "null"] = "mlflow"
    """`jsonl` writes `metrics.jsonl` into the run directory; `null` records nothing."""

    @field_validator("kind", mode="before")
    @classmethod
    def _null_is_a_name(cls, value: object) -> object:
        return "null" if value is None else value  # YAML reads a bare null as nothing

    uri: str | None = None
    """MLflow tracking URI; default `sqlite:///<storage>/mlflow.db`."""
    experiment: str = "nfs"
    """MLflow experiment name."""


class JobConfig(Config):
    """Settings that every job has."""

    storage: str = "runs"
    """Folder that holds one directory per run."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    launch: LaunchConfig = LaunchConfig()
    """Where the work runs."""
    tracking: TrackingConfig = TrackingConfig()
    """Where parameters, metrics and pictures go."""


class BestConfig(Config):
    """What makes one evaluation of a training better than another."""

    metric: str
    """Metric of the evaluations, e.g. `eval/frechet_face`."""
    goal: Literal["min", "max"] = "min"
    """Whether small or large values are good."""


class TrainingConfig(JobConfig):
    """Settings that every training on a data set has."""

    loader: LoaderConfig = LoaderConfig()
    """Who reads the training items."""
    batch_size: int = Field(ge=1)
    """Samples per step over all workers."""
    log_every: int = Field(ge=1)
    """Samples between points of the loss curves."""
    evaluate_every: int = Field(ge=1)
    """Samples between evaluations."""
    checkpoint_every: int = Field(ge=1)
    """Samples between saved states."""
    states: str | None = None
    """Folder or URI (`s3://bucket/folder`) under which states are kept, for machines that may not
    come back: the same command on another one goes on from there. Null: in the run directory."""
    best: BestConfig | None = None
    """Keep the model of the best evaluation as `best/` of the run, beside the last one in
    `checkpoint/`; null keeps the last alone."""

    @model_validator(mode="after")
    def _intervals(self) -> Self:
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} is not a multiple of "
                f"log_every={self.log_every}"
            )
        return self

    @model_validator(mode="after")
    def _loader(self) -> Self:
        if self.loader.ingest == "ray_data" and self.launch.kind != "ray":
            raise ValueError(
                f"loader.ingest=ray_data needs launch.kind=ray, got {self.launch.kind}"
            )
        return self


def _describe(cls: type[Config], item: Mapping[str, Any]) -> str:
    parts, model = _locate(cls, item["loc"])
    location = ".".join(parts) or "<root>"
    if item["type"] == "extra_forbidden":
        parent, owner = _locate(cls, item["loc"][:-1])
        known = sorted(getattr(owner, "model_fields", {}))
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
        return f"unknown key {'.'.join([*parent, str(item['loc'][-1])])!r}{hint}"
    if item["type"] == "missing":
        return f"{location}: required and not given; set it in the file or as {location}=VALUE"
    message = item["msg"].removeprefix("Value error, ")
    section = isinstance(item["input"], Mapping) or model is cls
    return f"{location}: {message}" if section else f"{location}: {message} (got {item['input']!r})"


def _locate(cls: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], Any]:
    """Return the key path as a user writes it (without union tags) and the type at its end."""
    parts: list[str] = []
    model: Any = cls
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            parts.append(str(part))
            model = field.annotation
            continue
        members = [m for m in get_args(model) if _kind(m) == part]
        if members:  # the tag of a union: `expression.audio2exp.checkpoint`
            model = members[0]
            continue
        parts.append(str(part))
        model = None
    return parts, model


def _kind(member: object) -> object:
    field = getattr(member, "model_fields", {}).get("kind")
    return None if field is None else next(iter(get_args(field.annotation)), None)


def _nearby(file: Path) -> str:
    folder = file.parent
    names = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"; {folder} has {', '.join(names)}" if names else ""
