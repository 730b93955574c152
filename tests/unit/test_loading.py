"""Batches read in line or ahead: the same numbers, errors that arrive, threads that end."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from nfs.config.base import LoaderConfig, TrainingConfig
from nfs.errors import ConfigError, InputError
from nfs.runtime.local import LocalContext
from nfs.tracking.jsonl import JsonlTracker
from nfs.training.loading import BatchReader, read_batches
from nfs.training.state import load_state
from tests.toy import LineDataset, line_worker

CPU = torch.device("cpu")
CLOCK = range(16, 16 + 8 * 9, 8)
INLINE = LoaderConfig(prefetch_batches=0)
AHEAD = LoaderConfig(prefetch_batches=3, workers=3)


class Uneven(LineDataset):
    """Later items are faster, so that threads overtake one another; some items are bad."""

    def __init__(self, bad: int = -1) -> None:
        self.bad, self.seen = bad, 0

    def get(self, index, rng):
        self.seen += 1
        if index == self.bad:
            raise InputError(f"photo {index}: cannot be read")
        time.sleep(0.002 * (index % 4 == 0))
        return super().get(index, rng)


def reader(dataset=None, rank=0, world_size=2):
    return BatchReader(dataset or Uneven(), seed=3, batch_size=8, rank=rank, world_size=world_size)


def batches(loader, **options):
    with closing(read_batches(reader(**options), CLOCK, loader, CPU)) as found:
        return list(found)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("nfs-loader")]


@pytest.mark.parametrize("loader", [LoaderConfig(), AHEAD, LoaderConfig(prefetch_batches=1)])
def test_read_ahead_equals_in_line_over_an_epoch_boundary(loader):
    expected, found = batches(INLINE), batches(loader)
    assert len(found) == len(expected) == 9
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert loader_threads() == []


def test_ranks_share_the_global_batch():
    whole = torch.cat([b["x"] for b in batches(AHEAD, world_size=1)])
    parts = [torch.stack([b["x"] for b in batches(AHEAD, rank=r)]) for r in range(2)]
    assert torch.equal(torch.stack(parts, dim=2).flatten(), whole)


@pytest.mark.parametrize("loader", [INLINE, LoaderConfig(), AHEAD])
def test_an_error_arrives_after_the_good_batches_and_ends_the_threads(loader):
    order = [round(float(x) * 37) for b in batches(INLINE) for x in b["x"]]
    good = []
    with (
        pytest.raises(InputError, match=f"photo {order[10]}: cannot be read"),
        closing(read_batches(reader(Uneven(bad=order[10])), CLOCK, loader, CPU)) as found,
    ):
        good.extend(found)
    assert len(good) == order.index(order[10]) // 4
    assert loader_threads() == []


def test_only_so_many_batches_are_read_ahead():
    dataset = Uneven()
    with closing(read_batches(reader(dataset), CLOCK, LoaderConfig(), CPU)) as found:
        next(found)
        time.sleep(0.2)
        assert dataset.seen == 3 * 4
        assert len(loader_threads()) == 1
    assert loader_threads() == []


def test_reader_pickles():
    import pickle

    one = reader()
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(one(40)["y"], again(40)["y"])


def run(directory, on_report=None, **tree):
    tracker = JsonlTracker(directory / "tracking", "r")
    return line_worker({"total_samples": 96, **tree}, LocalContext(directory, tracker, on_report))


def test_training_with_threads_is_training_in_line_also_after_a_restart(tmp_path):
    whole = run(tmp_path / "whole", loader=INLINE.tree())
    stop = iter([True, False])
    run(tmp_path / "cut", on_report=lambda _: next(stop), loader=AHEAD.tree())
    assert loader_threads() == []
    assert run(tmp_path / "cut", loader=LoaderConfig().tree()) == whole
    a, b = (load_state(LocalContext(tmp_path / n, None).latest()) for n in ("whole", "cut"))
    torch.testing.assert_close(a.task, b.task, rtol=0, atol=0)


def test_a_bad_item_ends_the_run(tmp_path, monkeypatch):
    def get(self, index, rng):
        raise InputError(f"item {index} is bad")

    monkeypatch.setattr(LineDataset, "get", get)
    with pytest.raises(InputError, match=r"item \d+ is bad"):
        run(tmp_path)
    assert loader_threads() == []


def test_settings_without_effect_are_refused():
    with pytest.raises(ConfigError, match="workers has no effect"):
        LoaderConfig.from_tree({"prefetch_batches": 0, "workers": 2})
    with pytest.raises(ConfigError, match="needs prefetch_batches"):
        LoaderConfig.from_tree({"prefetch_batches": 0, "ingest": "ray_data"})
    counts = dict.fromkeys(("batch_size", "log_every", "evaluate_every", "checkpoint_every"), 8)
    local = {"launch": {"kind": "local"}, "loader": {"ingest": "ray_data"}, **counts}
    with pytest.raises(ConfigError, match=r"loader\.ingest=ray_data needs launch\.kind=ray"):
        TrainingConfig.from_tree(local)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_the_gpu_through_pinned_memory():
    device = torch.device("cuda", 0)
    with closing(read_batches(reader(), CLOCK, AHEAD, device)) as found:
        on_gpu = list(found)
    for a, b in zip(batches(INLINE), on_gpu, strict=True):
        assert b["x"].device == device
        torch.testing.assert_close(a, {k: v.cpu() for k, v in b.items()}, rtol=0, atol=0)
