"""Augmentation: differentiable twice, gated by p, repeatable, close to neutral at rest."""

from pathlib import Path

import pytest
import torch

from nfs.config.train_stylenerf import FILTER_PX, FILTERING, TrainStylenerfConfig
from nfs.errors import ConfigError
from nfs.stylenerf.augment import OPERATIONS, SETS, AugmentPipe
from nfs.stylenerf.augment_filters import band_filters, sample_at
from tests.parity.stylenerf_augment_checks import Percentile, augment
from tests.parity.stylenerf_recording import Report


def images(batch=3, size=32):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


class ClosedGates(Percentile):
    def gate(self, name, count, probability):
        return torch.zeros(count, dtype=torch.bool)


def test_recordings_of_the_original(shared_dir):
    report = Report()
    augment(report, shared_dir / "parity/stylenerf/units")
    assert len(report.checks) > 40
    assert {k: v for k, v in report.checks.items() if not v["ok"]} == {}


def test_a_folder_without_recordings_adds_nothing(tmp_path: Path):
    report = Report()
    augment(report, tmp_path)
    assert report.checks == {}


def test_the_configuration_knows_which_sets_filter_and_from_what_size():
    assert set(FILTERING) == {name for name, chosen in SETS.items() if "imgfilter" in chosen}
    pipe = AugmentPipe("filter")
    assert pipe(images(size=FILTER_PX), 1.0).shape[-1] == FILTER_PX
    with pytest.raises(ValueError, match="imgfilter needs images of more than 21 px"):
        pipe(images(size=FILTER_PX - 1), 1.0)


@pytest.mark.parametrize(
    ("overrides", "first_px"),
    [
        (["growth={start_kimg: 0, end_kimg: 0}"], None),
        ([], 16),
        (["growth.first_alpha=0.3"], None),
        (["growth={end_kimg: null}"], 16),
    ],
)
def test_images_too_small_for_the_filter_are_refused_before_the_run(
    repository, overrides, first_px
):
    path = repository / "jobs/configs/train_stylenerf/smoke.yaml"
    filtering = ["augment={kind: fixed, operations: bgcf}", *overrides]
    if first_px is None:
        assert TrainStylenerfConfig.load(path, filtering).augment.operations == "bgcf"
        return
    with pytest.raises(ConfigError, match=r"operations=bgcf .* at least 22 px.* with 16 px; use"):
        TrainStylenerfConfig.load(path, filtering)
    plain = ["augment={kind: fixed, operations: bgc}", *overrides]
    assert TrainStylenerfConfig.load(path, plain).augment.operations == "bgc"


def test_everything_is_differentiable_twice():
    pipe, x = AugmentPipe("bgcfnc"), images(2, 24).requires_grad_(True)

    def loss(x):
        torch.manual_seed(3)
        return (pipe(x, 0.9, draws=Percentile(0.3)) ** 3).sum()

    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    direction = torch.randn_like(x)
    (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    # The pipe is affine, so the gradient is quadratic and the central difference exact.
    ahead, behind = (x.detach() + sign * 0.1 * direction for sign in (1, -1))
    slopes = [torch.autograd.grad(loss(y.requires_grad_(True)), y)[0] for y in (ahead, behind)]
    numeric = (slopes[0] - slopes[1]) / 0.2
    assert torch.allclose(second, numeric, atol=1e-4 * float(numeric.abs().max()))
    assert second.abs().max() > 0


def test_sampling_has_torchs_derivatives():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5, dtype=torch.double, requires_grad=True)
    grid = torch.rand(2, 4, 7, 2, dtype=torch.double) * 2.4 - 1.2
    plain = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    assert torch.equal(sample_at(x, grid), plain)
    weight = torch.randn_like(plain)
    first = torch.autograd.grad((sample_at(x, grid) * weight).sum(), x)[0]
    assert torch.equal(first, torch.autograd.grad((plain * weight).sum(), x)[0])
    assert torch.autograd.gradgradcheck(lambda x: sample_at(x, grid) ** 2, x)


def test_a_linear_penalty_of_the_gradient_trains_the_discriminator():
    """R1 through the pipe: d(sum |dD/dx|^2)/dD is finite and not zero."""
    pipe = AugmentPipe("bgc")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten())
    x = images().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(pipe(x, 0.8)).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weight = network[0].weight.grad
    assert torch.isfinite(weight).all()
    assert weight.abs().max() > 0


def test_probability_zero_returns_the_images_and_closed_gates_almost():
    x = images()
    pipe = AugmentPipe("bgcfnc")
    assert pipe(x, 0.0) is x
    assert pipe(x, torch.tensor(0.0)) is x
    closed = pipe(x, 0.5, draws=ClosedGates(0.3))
    assert (closed - x).abs().max() < 2e-5


def test_probability_is_the_share_of_changed_images():
    x = images(400, 8)
    torch.manual_seed(0)
    changed = (AugmentPipe(["brightness"])(x, 0.3) != x).flatten(1).any(dim=1).float().mean()
    assert 0.23 < changed < 0.37
    turned = AugmentPipe(["rotate"])(x, torch.tensor(0.3))
    changed = ((turned - x).abs() > 1e-3).flatten(1).any(dim=1).float().mean()
    assert 0.23 < changed < 0.37


def test_draws_follow_the_seed():
    x, pipe = images(), AugmentPipe("bgcfnc")
    torch.manual_seed(5)
    first = pipe(x, 0.7)
    torch.manual_seed(5)
    assert torch.equal(first, pipe(x, 0.7))
    assert not torch.equal(first, pipe(x, 0.7))


def test_images_of_a_batch_are_independent():
    x, pipe = images(2), AugmentPipe("geom")
    alone = pipe(x[:1], 1.0, draws=Percentile(0.2))
    both = pipe(x, 1.0, draws=Percentile(0.2))
    assert torch.allclose(alone, both[:1], atol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("name", sorted(set(SETS) - {"filter", "bgcf", "bgcfn", "bgcfnc"}))
def test_every_set_keeps_the_shape(name, size):
    x = images(2, size)
    out = AugmentPipe(name)(x, 1.0)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


def test_not_square_images_are_supported():
    x = torch.rand(2, 3, 24, 40)
    assert AugmentPipe("bgcfnc")(x, 1.0).shape == x.shape


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="unknown augmentation set 'bgx'"):
        AugmentPipe("bgx")
    with pytest.raises(ValueError, match="unknown augmentations"):
        AugmentPipe(["xflip", "blur"])
    with pytest.raises(ValueError, match="more than 21 px"):
        AugmentPipe("filter")(images(1, 16), 0.5)
    with pytest.raises(ValueError, match="3 channels, got 1"):
        AugmentPipe("blit")(torch.zeros(1, 1, 8, 8), 0.5)


def test_sets_are_made_of_known_operations_and_bands_of_the_whole():
    assert set().union(*SETS.values()) == set(OPERATIONS)
    total = band_filters().sum(dim=0)
    assert torch.allclose(total, torch.eye(43)[21], atol=1e-6)
    assert AugmentPipe("bgc").state_dict() == {}
