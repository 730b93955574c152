import shutil

import numpy as np
import pytest

from nfs.config.base import TrackingConfig
from nfs.tracking import attach_tracker, open_tracker


@pytest.fixture
def mlflow_storage(tmp_path, mlflow_template):
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


def open_in(storage, kind, **kw):
    config = TrackingConfig(kind=kind)
    return open_tracker(config, storage=storage, directory=storage / "run", run_name="r", **kw)


@pytest.mark.parametrize("kind", ["null", "jsonl", "mlflow"])
def test_every_tracker_accepts_the_protocol(mlflow_storage, kind):
    tracker = open_in(mlflow_storage, kind)
    tracker.log_params({"a.b": 1})
    tracker.log_params({"a.b": 2, "c": "x" * 9000})
    tracker.log_metrics({"loss/g": 1.0}, 8)
    tracker.log_image("grid", np.zeros((8, 8, 3), np.uint8), 8)
    tracker.log_text("hello", "note.txt")
    tracker.log_file(__file__, "code")
    tracker.link(inputs={"/a": "clips-0123"}, outputs={"/b": "fits-4567"})
    again = attach_tracker(tracker.spec())
    again.log_metrics({"loss/g": 0.5}, 16)
    again.flush()
    tracker.finish("FINISHED")


def test_jsonl_keeps_one_point_per_step_and_survives_a_torn_line(tmp_path):
    tracker = open_in(tmp_path, "jsonl")
    tracker.log_metrics({"loss/g": 1.0}, 8)
    with (tmp_path / "run" / "tracking" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 16, "met\n')
    resumed = open_in(tmp_path, "jsonl")
    resumed.log_metrics({"loss/g": 1.0}, 8)
    resumed.log_metrics({"loss/g": 0.5}, 16)
    assert [r["step"] for r in resumed.read()] == [8, 16]


def test_mlflow_records_nested_runs_and_resumes_without_doubling(mlflow_storage):
    from mlflow.tracking import MlflowClient

    parent = open_in(mlflow_storage, "mlflow")
    child = open_in(mlflow_storage, "mlflow", parent_run_id=parent.run_id)
    child.log_metrics({"loss/g": 1.0}, 8)
    child.flush()
    again = open_in(mlflow_storage, "mlflow", run_id=child.run_id)
    again.log_metrics({"loss/g": 1.0}, 8)
    again.log_metrics({"loss/g": 0.5}, 16)
    again.log_image("grid", np.zeros((8, 8, 3), np.uint8), 16)
    again.finish("FINISHED")
    again.link(inputs={"/data/clips": "clips-0123456789ab"}, outputs={"/data/fits": "fits-1"})
    client = MlflowClient(f"sqlite:///{mlflow_storage}/mlflow.db")
    points = client.get_metric_history(child.run_id, "loss/g")
    assert [(p.step, p.value) for p in points] == [(8, 1.0), (16, 0.5)]
    run = client.get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(child.run_id, "images")]
    assert run.info.artifact_uri.startswith(str(mlflow_storage))
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["clips"]
    assert run.data.tags["nfs.output.fits-1"] == "/data/fits"
