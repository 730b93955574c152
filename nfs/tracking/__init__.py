"""Recording runs: one small protocol, MLflow, JSONL and null behind it."""

from nfs.tracking.open import attach_tracker, open_tracker
from nfs.tracking.protocol import Tracker, TrackerSpec

__all__ = ["Tracker", "TrackerSpec", "attach_tracker", "open_tracker"]
