"""The MLflow tracker; the only file that imports mlflow.

Runs are addressed by id through `MlflowClient`, never through global state, so the driver and its
workers record the same run. Time stamps derive from the step, so points that a resumed run records
again fall on themselves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from PIL import Image

from nfs.tracking.protocol import Status, TrackerSpec

FLUSH_SECONDS = 3.0
MAX_BATCH = 900
MAX_PARAM_CHARS = 500


class MlflowTracker:
    """One MLflow run.

    Args:
        client: Client of the tracking store.
        spec: Which run.
    """

    def __init__(self, client: MlflowClient, spec: TrackerSpec):
        self.run_id = spec.run_id
        self._client, self._spec = client, spec
        self._metrics: list[Metric] = []
        self._flushed_at = time.monotonic()

    def spec(self) -> TrackerSpec:
        """Return a picklable description for `attach_tracker`."""
        return self._spec

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the params that the run does not have yet."""
        known = self._client.get_run(self.run_id).data.params
        fresh = [
            Param(key, str(value)[:MAX_PARAM_CHARS])
            for key, value in params.items()
            if key not in known
        ]
        for start in range(0, len(fresh), 100):
            self._client.log_batch(self.run_id, params=fresh[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer points; they are written every few seconds and by `flush`."""
        stamp = self._spec.started_ms + step
        self._metrics += [Metric(k, float(v), stamp, step) for k, v in metrics.items()]
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def log_image(self, name: str, image: np.ndarray, step: int | None = None) -> None:
        """Record a PNG under `images/`."""
        suffix = "" if step is None else f"-{step:09d}"
        self._client.log_image(
            self.run_id, Image.fromarray(image), artifact_file=f"images/{name}{suffix}.png"
        )

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Record a copy of a file or folder."""
        source = Path(path)
        if source.is_dir():
            target = f"{folder}/{source.name}" if folder else source.name
            self._client.log_artifacts(self.run_id, str(source), target)
        else:
            self._client.log_artifact(self.run_id, str(source), folder or None)

    def log_text(self, text: str, name: str) -> None:
        """Record a text file."""
        self._client.log_text(self.run_id, text, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def link(self, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Record inputs as datasets, and both as tags `nfs.input.<id>`, `nfs.output.<id>`."""
        used = [
            DatasetInput(
                Dataset(
                    name=Path(uri).name,
                    digest=artifact_id[-12:],
                    source_type="local",
                    source=json.dumps({"uri": uri}),
                ),
                [InputTag("mlflow.data.context", "input")],
            )
            for uri, artifact_id in inputs.items()
        ]
        if used:
            self._client.log_inputs(self.run_id, datasets=used)
        pairs = [(f"nfs.input.{i}", uri) for uri, i in inputs.items()]
        pairs += [(f"nfs.output.{i}", uri) for uri, i in outputs.items()]
        if pairs:
            self.set_tags(dict(pairs))

    def flush(self) -> None:
        """Write the buffered points."""
        points, self._metrics = self._metrics, []
        for start in range(0, len(points), MAX_BATCH):
            self._client.log_batch(self.run_id, metrics=points[start : start + MAX_BATCH])
        self._flushed_at = time.monotonic()

    def finish(self, status: Status) -> None:
        """Flush and close the run."""
        self.flush()
        self._client.set_terminated(self.run_id, status=status)


def default_uri(storage: str | Path) -> str:
    """Return the URI of the sqlite store that runs of one storage folder share."""
    return f"sqlite:///{Path(storage).absolute()}/mlflow.db"


def start_run(
    uri: str, experiment: str, run_name: str, run_id: str | None, parent_run_id: str | None
) -> MlflowTracker:
    """Create a run, or reopen the run `run_id`.

    Args:
        uri: Tracking URI.
        experiment: Experiment name, made if absent (artifacts beside an sqlite store).
        run_name: Name shown in the browser.
        run_id: Run to reopen; None makes a new one.
        parent_run_id: Run under which the browser nests this one.
    """
    client = MlflowClient(tracking_uri=uri)
    if run_id is None:
        tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        run = client.create_run(_experiment(client, experiment, uri), run_name=run_name, tags=tags)
    else:
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
    spec = TrackerSpec("mlflow", run.info.run_id, uri, "", run.info.start_time)
    return MlflowTracker(client, spec)


def attach_run(spec: TrackerSpec) -> MlflowTracker:
    """Go on recording a run in another process."""
    return MlflowTracker(MlflowClient(tracking_uri=spec.uri), spec)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = None
    if uri.startswith("sqlite:///"):
        place = f"{Path(uri.removeprefix('sqlite:///')).parent}/mlartifacts"
    return str(client.create_experiment(name, artifact_location=place))
