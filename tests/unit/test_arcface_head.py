"""Partial-FC on one rank, row optimisers, shards: the ranks are in tests/distributed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from nfs.arcface import PartialFC, RowAdamW, RowSGD, margins
from nfs.arcface.export import join_shards, load_shard, save_shard
from nfs.arcface.row_optimizers import RowGradient, merge_gradients
from nfs.arcface.shards import Shard, initial_centres, shard_of
from nfs.arcface.softmax import cosine_matrix
from nfs.errors import ArtifactError, ConfigError, InputError

C, D, B = 37, 16, 6


def make_head(ratio: float = 1.0, **options) -> PartialFC:
    return PartialFC(margins.cosface(0.2, scale=8.0), D, C, class_sample_ratio=ratio, **options)


def batch(seed: int = 0, count: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(count, D, requires_grad=True), torch.randint(0, C, (count,))


def test_loss_and_gradients_are_plain_cross_entropy():
    head = make_head()
    embeddings, labels = batch()
    loss = head(embeddings, labels)
    loss.backward()
    weight = head.weight.detach().clone().requires_grad_()
    other = embeddings.detach().clone().requires_grad_()
    cosines = F.normalize(other) @ F.normalize(weight).T
    expected = F.cross_entropy(8 * (cosines - 0.2 * F.one_hot(labels, C)), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(embeddings.grad, other.grad)
    torch.testing.assert_close(head.take_gradient().values, weight.grad, atol=1e-5, rtol=1e-5)


def test_cosine_gradient_and_short_rows():
    torch.manual_seed(0)
    a = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_matrix, (a, b))
    zero = torch.zeros(2, 5, requires_grad=True)
    cosine_matrix(a.detach().float(), zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 0.99])
def test_sample_holds_the_batch_and_is_sorted(ratio):
    head = make_head(ratio)
    embeddings, labels = batch()
    head(embeddings, labels).backward()
    rows = head.take_gradient().rows
    assert set(labels.tolist()) <= set(rows.tolist())
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == max(int(ratio * C), len(set(labels.tolist())))


def test_only_sampled_rows_move_and_keep_moments():
    head = make_head(0.3)
    optimizer = RowSGD(head.weight, momentum=0.9, weight_decay=0.1)
    before = head.weight.detach().clone()
    touched = torch.zeros(C, dtype=torch.bool)
    for step in range(3):
        embeddings, labels = batch(step)
        head(embeddings, labels).backward()
        gradient = head.take_gradient()
        touched[gradient.rows] = True
        optimizer.step(gradient, 0.1)
    moved = (head.weight.detach() != before).any(1)
    assert not touched.all()
    assert torch.equal(moved, touched)
    assert torch.equal((optimizer.moments["momentum"] != 0).any(1), touched)


@pytest.mark.parametrize("make", [RowSGD, RowAdamW])
def test_all_rows_equal_torch_optimisers(make):
    torch.manual_seed(0)
    ours, theirs = torch.randn(700, 4), None
    theirs = ours.clone().requires_grad_()
    optimizer = make(ours, weight_decay=0.1)
    reference = (
        torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.1)
        if make is RowSGD
        else torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    )
    for _ in range(4):
        gradient = torch.randn(700, 4)
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(RowGradient(None, gradient), 0.1)
    torch.testing.assert_close(ours, theirs.detach())


def test_micro_batches_add_up_over_the_union():
    merged = merge_gradients(
        [
            RowGradient(torch.tensor([1, 4]), torch.ones(2, 3)),
            RowGradient(torch.tensor([0, 4]), 2 * torch.ones(2, 3)),
        ]
    )
    assert merged.rows.tolist() == [0, 1, 4]
    assert merged.values[:, 0].tolist() == [2.0, 1.0, 3.0]


def test_labels_out_of_range_and_wrong_settings_are_named():
    embeddings, labels = batch()
    with pytest.raises(InputError, match="label 37 is outside"):
        make_head()(embeddings, labels * 0 + C)
    with pytest.raises(ConfigError, match="class_sample_ratio"):
        make_head(1.5)
    with pytest.raises(RuntimeError, match="no backward"):
        make_head().take_gradient()


def test_huge_losses_stay_finite():
    head = PartialFC(margins.cosface(0.4, scale=1000.0), D, C)
    embeddings, labels = batch()
    loss = head(embeddings, labels)
    assert math.isfinite(loss.detach())
    assert float(loss.detach()) <= 69.08
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()


def test_half_gather_is_close_and_one_image_is_enough():
    embeddings, labels = batch(count=1)
    exact = make_head()(embeddings, labels)
    half = make_head(gather_dtype=torch.bfloat16)(embeddings, labels)
    assert float(half) == pytest.approx(float(exact), rel=1e-2)


@given(st.integers(1, 900), st.integers(1, 7), st.integers(1, 7))
def test_any_division_covers_all_classes_with_the_same_rows(num_classes, first, second):
    whole = initial_centres(Shard(0, num_classes), 3, seed=5)
    for ranks in (first, second):
        parts = [shard_of(num_classes, rank, ranks) for rank in range(ranks)]
        assert [s.start for s in parts][1:] == [s.stop for s in parts][:-1]
        assert torch.equal(torch.cat([initial_centres(s, 3, seed=5) for s in parts]), whole)


def test_shards_are_read_by_any_number_of_ranks(tmp_path):
    weight = torch.randn(11, 4)
    for rank in range(3):
        shard = shard_of(11, rank, 3)
        save_shard(tmp_path, shard, {"weight": weight[shard.start : shard.stop]})
    assert torch.equal(join_shards(tmp_path), weight)
    for ranks in (1, 2, 5):
        for rank in range(ranks):
            shard = shard_of(11, rank, ranks)
            out = {"weight": torch.zeros(len(shard), 4)}
            load_shard(tmp_path, shard, out)
            assert torch.equal(out["weight"], weight[shard.start : shard.stop])
    with pytest.raises(ArtifactError, match="cover 11 of the classes"):
        load_shard(tmp_path, Shard(0, 12), {"weight": torch.zeros(12, 4)})
    next(tmp_path.glob("head-000000004*")).write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="not readable"):
        load_shard(tmp_path, Shard(0, 11), {"weight": torch.zeros(11, 4)})
