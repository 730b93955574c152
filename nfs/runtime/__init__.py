"""Where work runs: one process or a Ray cluster, behind two functions and one context."""

from nfs.runtime.context import WorkerContext
from nfs.runtime.dispatch import run_function, run_training, run_units

__all__ = ["WorkerContext", "run_function", "run_training", "run_units"]
