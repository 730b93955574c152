import numpy as np
import pyarrow as pa
import pytest
import torch

from nfs.artifacts import Store
from nfs.media.images import encode_png
from nfs.talker.finish import add_watermark, resize_frame
from nfs.talker.plan import PLAN_FILE, FramePlan, read_rows
from nfs.talker.plot import mouth_and_voice
from nfs.talker.video import spread, stored_frames
from nfs.talker.work import RENDERED, ROWS, frame_units


def _plan(count: int = 10) -> FramePlan:
    torch.manual_seed(0)
    return FramePlan(
        expression=torch.rand(count, 64),
        cam2world=torch.rand(count, 4, 4),
        mouth_opening=torch.rand(count),
        speech_energy=np.random.default_rng(0).random(count).astype(np.float32),
        fps=25.0,
    )


def test_plan_rows_come_back_across_row_groups(tmp_path):
    plan, store = _plan(), Store(str(tmp_path))
    store.write_table(PLAN_FILE, plan.table(), row_group_size=1024)
    for start, stop in ((0, 10), (3, 7), (9, 10)):
        expression, cam2world = read_rows(store, start, stop)
        assert torch.equal(expression, plan.expression[start:stop])
        assert torch.equal(cam2world, plan.cam2world[start:stop])
    long = _plan(2500)
    store.write_table(PLAN_FILE, long.table(), row_group_size=1024)
    assert torch.equal(read_rows(store, 1000, 2100)[0], long.expression[1000:2100])


def test_fingerprint_changes_with_the_frames_only():
    plan = _plan()
    assert plan.fingerprint() == _plan().fingerprint()
    plan.expression[3, 5] += 1e-3
    assert plan.fingerprint() != _plan().fingerprint()


def test_units_cover_the_frames_once_and_sort_in_order():
    units = frame_units(70, 32)
    assert [(u["start"], u["stop"]) for u in units] == [(0, 32), (32, 64), (64, 70)]
    assert sorted(u["key"] for u in units) == [u["key"] for u in units]
    assert units[-1]["path"] == "frames 64..69"


def test_stored_frames_are_read_in_order(tmp_path):
    store = Store(str(tmp_path))
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in range(5)]
    for key, part in (("b", pictures[3:]), ("a", pictures[:3])):
        columns = {
            "frame_index": list(range(len(part))),
            "image_png": [encode_png(picture) for picture in part],
        }
        store.write_table(f"{RENDERED}/{key}.parquet", pa.table(columns, schema=ROWS), 2)
    frames = list(stored_frames(store, RENDERED, ["a", "b"]))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4]


def test_watermark_is_small_and_in_the_corner():
    frame = np.full((256, 256, 3), 120, np.uint8)
    marked = add_watermark(frame)
    changed = (marked != frame).any(2)
    rows, columns = np.nonzero(changed)
    assert 0.001 < changed.mean() < 0.03
    assert rows.min() > 220
    assert columns.max() < 110
    assert (frame == 120).all()


def test_resize_keeps_frames_of_the_right_size():
    frame = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    assert resize_frame(frame, 16) is frame
    assert resize_frame(frame, 32).shape == (32, 32, 3)


@pytest.mark.parametrize(("count", "wanted"), [(1, 16), (5, 16), (200, 16)])
def test_sheet_frames_are_spread_evenly(count, wanted):
    indices = spread(count, wanted)
    assert indices[0] == 0
    assert indices[-1] == count - 1
    assert len(indices) == min(count, wanted)


def test_plot_shows_constant_series_too():
    plan = _plan(1)
    assert mouth_and_voice(plan).shape == (220, 960, 3)
    assert (mouth_and_voice(_plan(50)) != 255).any()
