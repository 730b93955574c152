"""Margins: gradients, compatibility switches, filters, refused settings."""

import math

import pytest
import torch

from nfs.arcface import margins
from nfs.errors import ConfigError

LABELS = torch.tensor([0, 3, -1, 5])


@pytest.fixture
def cosines() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(4, 6, dtype=torch.float64) * 1.6 - 0.8).requires_grad_()


@pytest.mark.parametrize(
    "margin",
    [
        margins.CombinedMargin(0.9, 0.4, 0.15),
        margins.arcface(0.5, fold="linear"),
        margins.arcface(0.5, interclass_filter=0.4),
        margins.cosface(0.35),
        margins.AdaFace().eval(),
    ],
)
def test_gradients_are_exact(margin, cosines):
    norms = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: margin(x, LABELS, norms), (cosines,))


def test_rows_without_their_class_pass_unchanged(cosines):
    out = margins.arcface(0.5, scale=30.0)(cosines, LABELS)
    torch.testing.assert_close(out[2], 30 * cosines[2])
    expected = 30 * math.cos(math.acos(float(cosines.detach()[1, 3])) + 0.5)
    assert float(out.detach()[1, 3]) == pytest.approx(expected)


def test_straight_through_has_slope_one(cosines):
    margins.arcface(0.5, scale=1.0, gradient="straight_through")(cosines, LABELS).sum().backward()
    torch.testing.assert_close(cosines.grad, torch.ones_like(cosines))


def test_exact_slope_is_bounded_at_the_ends():
    ends = torch.tensor([[1.0, -1.0]], requires_grad=True)
    margins.arcface(0.5)(ends, torch.tensor([0])).sum().backward()
    assert torch.isfinite(ends.grad).all()


def test_fold_keeps_the_logit_monotonic():
    t = torch.linspace(-1, 1, 500)[:, None]
    labels = torch.zeros(500, dtype=torch.long)
    folded = margins.arcface(0.5, fold="linear")(t, labels)[:, 0]
    plain = margins.arcface(0.5)(t, labels)[:, 0]
    assert (folded.diff() > 0).all()
    assert not (plain.diff() > 0).all()


@pytest.mark.parametrize(("mode", "value"), [("zero", 0.0), ("exclude", -math.inf)])
def test_filter_spares_the_target(mode, value):
    cosines = torch.tensor([[0.9, 0.9, 0.1]])
    margin = margins.cosface(0.1, scale=1.0, interclass_filter=0.4, filter_mode=mode)
    torch.testing.assert_close(
        margin(cosines, torch.tensor([0])), torch.tensor([[0.8, value, 0.1]])
    )


def test_upstream_selection_and_refusal(cosines):
    combined = margins.upstream((1.0, 0.3, 0.2), scale=64)(cosines, LABELS)
    torch.testing.assert_close(combined, margins.cosface(0.2)(cosines, LABELS))
    for wrong in ((1.35, 0.0, 0.0), (1.0, 0.5, -0.1)):
        with pytest.raises(ConfigError, match="kind=combined"):
            margins.upstream(wrong)


def test_adaface_statistics_follow_the_lengths_in_training_only():
    margin = margins.AdaFace(decay=0.5)
    cosines, norms = torch.zeros(4, 6), torch.full((4,), 10.0)
    margin(cosines, LABELS, norms)
    assert float(margin.norm_mean) == 15.0
    margin.eval()(cosines, LABELS, norms)
    assert float(margin.norm_mean) == 15.0
    with pytest.raises(ValueError, match="lengths"):
        margin(cosines, LABELS)
