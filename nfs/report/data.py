"""What a report shows: plain values, filled by the job that ran the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Picture = tuple[str, bytes]
"""Caption and encoded PNG or JPEG."""
Clip = tuple[str, bytes]
"""Caption and MP4."""
Curve = Sequence[tuple[float, float]]
"""(step, value) pairs in order of step; values that are not finite are left out of the drawing."""


@dataclass(frozen=True)
class StageReport:
    """One stage of the chain."""

    name: str
    """Job name, e.g. `train_stylenerf`."""
    seconds: float = 0.0
    """Wall time."""
    summary: str = ""
    """One or two sentences: what the stage does and how to read its pictures."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final numbers, keyed `area/name_unit`."""
    images: Sequence[Picture] = ()
    """Pictures in the order shown."""
    videos: Sequence[Clip] = ()
    """Videos in the order shown."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Metric series by key."""
    notes: Sequence[str] = ()
    """Remarks: limits, warnings, paths."""
    reused: bool = False
    """The stage had finished in an earlier run and was not repeated."""


@dataclass(frozen=True)
class Quarantine:
    """One unit that a stage gave up."""

    stage: str
    item: str
    reason: str


@dataclass(frozen=True)
class ReportData:
    """The whole page."""

    title: str
    stages: Sequence[StageReport]
    subtitle: str = ""
    """When, where, with which command."""
    quarantined: Sequence[Quarantine] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and machine."""
    how_to_open: Sequence[str] = ()
    """Commands, e.g. the one that starts the MLflow server."""
