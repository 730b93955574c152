"""Batches prepared by Ray Data actors: those of the inline loader, also after a restart."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from nfs.config.base import LaunchConfig, LoaderConfig
from nfs.errors import InputError
from nfs.runtime import run_training
from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from nfs.training.loading import BatchReader, read_batches
from nfs.training.state import load_state
from tests.toy import LineDataset, PickyDataset, line_worker

pytestmark = [pytest.mark.ray, pytest.mark.distributed, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
ON_RAY = LoaderConfig(ingest="ray_data", workers=2)
INLINE = LoaderConfig(prefetch_batches=0)


def reader(dataset):
    return BatchReader(dataset, seed=3, batch_size=8, rank=1, world_size=2)


def batches(loader, clock, dataset=None):
    source = reader(dataset or LineDataset())
    with closing(read_batches(source, clock, loader, CPU)) as found:
        return list(found)


@pytest.mark.timeout(400)
def test_same_batches_in_the_same_order(monkeypatch):
    monkeypatch.setattr("nfs.runtime.ray_backend._STREAM_WINDOW", 30)  # two data sets
    clock = range(16, 16 + 8 * 45, 8)
    expected, found = batches(INLINE, clock), batches(ON_RAY, clock)
    assert len(found) == 45
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.timeout(300)
def test_an_error_in_an_actor_ends_the_stream_with_its_message():
    order = [reader(LineDataset())._sampler.item_at(p) for p in reader(LineDataset()).positions(64)]
    with pytest.raises(InputError, match=f"^item {order[0]} cannot be read$"):
        batches(ON_RAY, range(0, 8 * 40, 8), PickyDataset(bad=order[0]))


@pytest.mark.timeout(580)
def test_training_resumes_with_the_same_numbers(tmp_path):
    def fit(name: str, loader: LoaderConfig, **tree):
        directory: Path = tmp_path / name
        return run_training(
            line_worker,
            {"total_samples": 96, "loader": loader.tree(), **tree},
            LaunchConfig(kind="ray", max_failures=1),
            directory,
            JsonlTracker(directory / "tracking", "r"),
        )

    expected = line_worker({"total_samples": 96}, LocalContext(tmp_path / "here", NullTracker()))
    crash = {"crash_file": str(tmp_path / "crashed"), "crash_at": 56}
    assert fit("ray", ON_RAY.model_copy(update={"workers": 1}), **crash) == expected
    assert (tmp_path / "crashed").exists()
    state = load_state(LocalContext(tmp_path / "here", NullTracker()).latest())
    newest = sorted(p for p in (tmp_path / "ray" / "states").glob("checkpoint_*") if p.is_dir())
    torch.testing.assert_close(load_state(newest[-1]).task, state.task, rtol=0, atol=0)


def test_too_many_actors_are_refused_at_once(tmp_path):
    loader = {"ingest": "ray_data", "workers": 500}
    with pytest.raises(InputError, match="500 loading actors need 501 CPUs"):
        run_training(line_worker, {"loader": loader}, LaunchConfig(), tmp_path, NullTracker())
