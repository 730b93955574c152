"""Verification protocol and pair files."""

import pickle

import numpy as np
import pytest
import torch

from nfs.arcface import verification
from nfs.arcface.pair_files import decode_pair_image, read_pairs, write_pairs
from nfs.arcface.plots import draw_histogram, draw_roc
from nfs.arcface.schedules import legacy_factor, polynomial_factor
from nfs.errors import InputError
from nfs.media.images import encode_jpeg


def clusters(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    same = np.arange(count) % 3 > 0
    first = rng.standard_normal((count, 8))
    second = np.where(same[:, None], first, rng.standard_normal((count, 8)))
    rows = np.stack([first, second + noise * rng.standard_normal((count, 8))], 1).reshape(-1, 8)
    return verification.normalise_rows(rows), same


@pytest.mark.parametrize(("count", "folds"), [(103, 10), (30, 1), (40, 3)])
def test_separable_pairs_are_found(count, folds):
    rows, same = clusters(count, 0.01)
    result = verification.evaluate(rows, same, num_folds=folds)
    assert result.accuracy == 1.0
    assert len(result.accuracies) == folds
    assert result.val == 1.0
    assert result.far < 0.1


def test_roc_and_tar():
    distances, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])
    far, tar = verification.roc(distances, same)
    assert far.tolist() == [0, 0, 0.5, 0.5, 1]
    assert tar.tolist() == [0, 0.5, 0.5, 1, 1]
    assert verification.tar_at_far(distances, same, 0.4) == 0.5
    assert draw_roc(distances, same, "t").shape == draw_histogram(distances, same, "t").shape


def test_sets_of_one_kind_and_wrong_counts_are_refused():
    rows, same = clusters(12, 0.1)
    with pytest.raises(InputError, match="no different pair"):
        verification.evaluate(rows, np.ones(12, bool))
    with pytest.raises(InputError, match="do not make"):
        verification.evaluate(rows[:-1], same)
    with pytest.raises(InputError, match="num_folds=20"):
        verification.evaluate(rows, same, num_folds=20)


def test_fold_without_a_kind_gives_nan(caplog):
    rows, same = clusters(20, 0.1)
    same[:10] = True
    result = verification.evaluate(rows, same, num_folds=2)
    assert np.isnan(result.far)
    assert "NaN" in caplog.text


class Pool(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 28).flatten(1)


def test_embedding_is_the_same_in_parts_and_batches(tmp_path):
    rng = np.random.default_rng(0)
    images = [encode_jpeg(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(10)]
    write_pairs(tmp_path / "v.bin", images, [True, False, True, True, False])
    pairs = read_pairs(tmp_path / "v.bin")
    whole = verification.embed_pairs(Pool(), pairs, batch_size=4)
    parts = [verification.embed_pairs(Pool(), pairs, part=(r, 3)) for r in range(3)]
    for side in (0, 1):
        for rank in range(3):
            np.testing.assert_array_equal(parts[rank][side], whole[side][rank::3])
    result, length = verification.evaluate_pairs(*whole, pairs.same, num_folds=2)
    assert 0 <= result.accuracy <= 1
    assert length > 0


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(([Evil(), b""], [True])),
        b"\x80\x02cos\nsystem\n(S'touch owned'\ntR.",
        pickle.dumps(np.zeros(3)),
        pickle.dumps(([b"a"], [True])),
        pickle.dumps(([1, 2], [True])),
        b"nonsense",
        b"",
        pickle.dumps(np.random.default_rng(0)),
    ],
)
def test_files_that_are_no_plain_pairs_are_refused(tmp_path, capsys, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.bin"):
        read_pairs(tmp_path / "x.bin")
    assert "owned" not in capsys.readouterr().out


def test_numpy_and_python2_pickles_are_read(tmp_path):
    arrays = [np.frombuffer(b"abc", np.uint8).reshape(-1, 1)] * 2
    (tmp_path / "n.bin").write_bytes(pickle.dumps((arrays, [True]), protocol=3))
    assert read_pairs(tmp_path / "n.bin").images == [b"abc", b"abc"]
    (tmp_path / "p.bin").write_bytes(b"(lp0\nS'abc'\nap1\nS'abc'\na(lp2\nI01\na\x86.")
    assert read_pairs(tmp_path / "p.bin").images == [b"abc", b"abc"]


def test_images_must_be_square_after_resizing():
    tall = encode_jpeg(np.zeros((200, 100, 3), np.uint8))
    with pytest.raises(InputError, match="pair 3: 112 x 224 px"):
        decode_pair_image(tall, "pair 3")
    with pytest.raises(InputError, match="pair 4"):
        decode_pair_image(b"none", "pair 4")


def test_schedules():
    rates = [polynomial_factor(i, total_steps=10, warmup_steps=4) for i in range(12)]
    assert rates[:5] == [0.25, 0.25, 0.5, 0.75, 1.0]
    assert rates[7] == 0.5
    assert rates[10:] == [0.0, 0.0]
    assert polynomial_factor(0, total_steps=10, warmup_steps=4, full_first_step=True) == 1.0
    assert polynomial_factor(0, total_steps=10, warmup_steps=-1) == 1.0
    assert legacy_factor(0, total_steps=10, warmup_steps=4) == 0.0
