"""What is measured and shown of a generator: shape, identity, distances, orbits."""

import math
from dataclasses import replace

import av
import pytest
import torch

from nfs.geometry.cameras import cam2world_to_yaw_pitch
from nfs.geometry.rays import pixel_grid
from nfs.stylenerf.evaluation import EvaluationSettings, GeneratorEvaluator
from nfs.stylenerf.flatness import FLAT_BELOW, measure_shape
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.portrayal import describe_subject, summarise
from nfs.stylenerf.spec import CameraPrior, EllipsoidPrior
from nfs.stylenerf.views import Gallery, orbit_path, quantised, view_cameras
from tests.evaluation_ranks import SPEC, Pooled, evaluator, generator, read_real

TAN = math.tan(math.radians(6))
FAR = 1.12


def ball(
    radius: float, size: int = 48, *, hollow: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and opacity of a ball at distance 1, its near or its far half."""
    grid = pixel_grid(size).double() * TAN
    a = 1 + grid.square().sum(1)
    root = 1 - a * (1 - radius**2)
    depth = (1 + (1 if hollow else -1) * root.clamp_min(0).sqrt()) / a
    hit = root > 0
    depth = torch.where(hit, depth, torch.full_like(depth, FAR))
    return depth.view(size, size), hit.double().view(size, size)


def shape(depth: torch.Tensor, opacity: torch.Tensor):
    return measure_shape(depth, opacity, tan_half_fov=TAN, far=FAR)


@pytest.mark.parametrize("radius", [0.03, 0.09])
def test_a_ball_has_relief_whatever_its_size(radius):
    found = shape(*ball(radius))
    # An orthographic half ball has sqrt(1/18) / sqrt(1/2) = 1/3.
    assert found.relief == pytest.approx(1 / 3, abs=0.03)
    assert found.bulge > 0.9
    assert found.problem is None
    assert "hollow" in shape(*ball(radius, hollow=True)).problem


def test_a_plane_is_flat_tilted_or_noisy_or_translucent():
    depth, opacity = ball(0.09)
    x = pixel_grid(48)[:, 0].double().view(48, 48) * TAN
    tilted = 1 / (1 + 0.4 * x)
    noise = 0.002 * torch.randn(48, 48, generator=torch.Generator().manual_seed(0)).double()
    assert shape(tilted, opacity).relief < 1e-6
    for surface in (torch.ones_like(depth), tilted, tilted + noise):
        for solid in (opacity, torch.ones_like(opacity)):
            found = shape(surface, solid)
            assert found.relief < FLAT_BELOW
            assert found.problem == "the geometry is flat"
    # A soft rim mixes in the far depth; that is no relief.
    soft = torch.where(opacity > 0, 0.75, 0.0).double()
    mixed = soft * torch.ones_like(depth) + (1 - soft) * FAR
    assert shape(mixed, soft).relief < 1e-6
    assert "empty" in shape(depth, torch.zeros_like(depth)).problem


def flat_generator() -> Generator:
    """Its density is an almost two-dimensional ellipsoid facing the camera."""
    torch.manual_seed(0)
    prior = EllipsoidPrior((0.004, 0.09, 0.09), 20000.0)
    spec = replace(SPEC, resolution_vol=16, num_samples=64, density_prior=prior)
    return Generator(spec).eval()


def round_generator() -> Generator:
    torch.manual_seed(0)
    prior = EllipsoidPrior((0.09, 0.09, 0.09), 2000.0)
    return Generator(replace(SPEC, resolution_vol=16, num_samples=32, density_prior=prior)).eval()


def test_a_collapsed_generator_raises_the_alarm():
    settings = EvaluationSettings(grid_size=2)
    found = GeneratorEvaluator(settings).run(flat_generator(), alpha=1.0, samples_seen=7)
    assert found.metrics["eval/flat_share"] == 1.0
    assert found.metrics["eval/relief"] < FLAT_BELOW
    assert found.warnings[0].startswith("the geometry is flat in 2 of 2 faces (relief 0.0")
    found = GeneratorEvaluator(settings).run(round_generator(), alpha=1.0, samples_seen=7)
    assert found.metrics["eval/relief"] > 0.2
    assert found.metrics["eval/flat_share"] == 0.0
    assert found.warnings == []


def test_subjects_do_not_depend_on_the_batch_nor_on_global_randomness():
    gallery = Gallery(generator())
    torch.manual_seed(1)
    together = gallery.samples(range(2, 6))
    torch.manual_seed(2)
    alone = torch.cat([gallery.samples(range(i, i + 1)) for i in range(2, 6)])
    assert (together.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(Gallery(generator(), seed=1).samples(range(2, 3))[0], together[0])
    assert together.dtype == torch.uint8


def test_a_conditional_generator_gets_its_labels_in_turn():
    torch.manual_seed(0)
    conditional = Generator(replace(SPEC, c_dim=3)).eval()
    gallery = Gallery(conditional, labels=torch.eye(3))
    assert torch.equal(gallery.subjects(range(2, 5)).c, torch.eye(3)[[2, 0, 1]])
    other = Gallery(conditional, labels=torch.eye(3).flip(0))
    assert not torch.equal(gallery.samples(range(1)), other.samples(range(1)))


def test_identity_over_views_is_compared_with_other_subjects():
    gallery = Gallery(generator())
    rows = [describe_subject(gallery, i, Pooled()) for i in range(3)]
    rows = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    metrics, _ = summarise(rows, "pooled")
    unit = torch.nn.functional.normalize(rows["embedding"].double(), dim=-1)
    views = [unit[i, 1] @ unit[i, v] for i in range(3) for v in (0, 2)]
    others = [unit[i, 1] @ unit[j, 1] for i in range(3) for j in range(3) if i != j]
    assert metrics["eval/identity_views_pooled"] == pytest.approx(float(sum(views) / 6))
    assert metrics["eval/identity_others_pooled"] == pytest.approx(float(sum(others) / 6))


def test_distances_reuse_the_features_of_the_real_images(tmp_path, monkeypatch):
    measured = evaluator(tmp_path)
    first = measured.run(generator(), alpha=1.0, samples_seen=0)
    assert {
        "eval/frechet_pooled",
        "eval/kernel_pooled",
        "eval/recall_pooled",
    } <= first.metrics.keys()

    def never(index):
        raise AssertionError("read again")

    monkeypatch.setattr("tests.evaluation_ranks.read_real", never)
    resumed = evaluator(tmp_path)
    assert resumed.run(generator(), alpha=1.0, samples_seen=0).metrics == first.metrics
    monkeypatch.undo()
    monkeypatch.setattr(Pooled, "checksum", "2")  # another network, other features
    reads = []
    monkeypatch.setattr(
        "tests.evaluation_ranks.read_real", lambda i: reads.append(i) or read_real(i)
    )
    evaluator(tmp_path).run(generator(), alpha=1.0, samples_seen=0)
    assert len(reads) == 11
    assert reads[0] == 0
    assert reads[-1] == 36


def test_the_orbit_is_a_closed_loop_in_the_range_of_the_prior():
    prior = CameraPrior(yaw_rad=(-0.4, 0.2), pitch_rad=(1.4, 1.8))
    yaw, pitch = cam2world_to_yaw_pitch(orbit_path(prior, 8, torch.zeros(())))
    assert yaw[[0, 2, 6]].tolist() == pytest.approx([-0.1, 0.2, -0.4], abs=1e-5)
    assert float(pitch.min()) == pytest.approx(1.5, abs=1e-5)
    assert float(pitch.max()) == pytest.approx(1.7, abs=1e-5)
    around = CameraPrior(yaw_rad=(-math.pi, math.pi), gaussian=False)
    yaw, _ = cam2world_to_yaw_pitch(orbit_path(around, 4, torch.zeros(())))
    assert sorted(round(float(v) / math.pi * 2) % 4 for v in yaw) == [0, 1, 2, 3]
    yaw, _ = cam2world_to_yaw_pitch(view_cameras(prior, torch.zeros(())))
    assert yaw.tolist() == pytest.approx([-0.4, -0.1, 0.2], abs=1e-5)


def test_the_orbit_video_is_readable_and_shows_what_was_rendered(tmp_path):
    net = round_generator()
    settings = EvaluationSettings(grid_size=2, orbit_latents=2, orbit_frames=5, batch_size=3)
    files = (
        GeneratorEvaluator(settings, directory=tmp_path).run(net, alpha=1.0, samples_seen=12).files
    )
    assert [file.name for file in files] == ["orbit-000000012.mp4"]
    with av.open(str(files[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    size = net.img_resolution
    assert len(frames) == 5
    assert frames[0].shape == (2 * size, 2 * size, 3)
    image = quantised(Gallery(net).orbit([5], num_subjects=2, num_frames=5).image)[0]
    shown = torch.from_numpy(frames[2][:size, size:]).float()
    assert (shown - image.permute(1, 2, 0)).abs().mean() < 12
    depth = frames[2][size:, size:]
    assert int(depth[size // 2, size // 2, 0]) > int(depth[0, 0, 0]) + 60
