"""What a CUDA device computes against the same on the CPU. Run with `pytest tests/gpu`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.loading import load_model
from nfs.morphable.photometric_fit import PhotometricSettings, fit_photometric
from nfs.morphable.projection import project_points, to_screen
from nfs.morphable.rasterizer import rasterize
from nfs.morphable.shading import interpolate, render
from nfs.runtime.local import LocalContext
from nfs.stylenerf import Discriminator, Generator
from nfs.stylenerf.cameras import draw_cameras
from nfs.stylenerf.generator import RenderOptions
from nfs.stylenerf.settings import SpeedSettings
from nfs.stylenerf.task import StyleNerfTask
from nfs.tracking.jsonl import JsonlTracker
from nfs.tracking.null import NullTracker
from tests.stylenerf_tiny import BATCH, D_SPEC, SETTINGS, TINY, curve, worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE_PX = 224


@pytest.fixture(autouse=True)
def single_precision():
    """Convolutions in float32 instead of TF32, so that CPU and device agree to rounding."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def heads(count: int) -> Coefficients:
    packed = 0.3 * torch.randn(count, 257, generator=torch.Generator().manual_seed(0))
    return Coefficients.unpack(packed)


def test_both_rasterizers_agree_on_heads():
    pytest.importorskip("pytorch3d")
    model = load_model()
    shaded = render(model, heads(4), SIZE_PX)
    screen = to_screen(shaded.vertices, SIZE_PX)
    ours = rasterize(screen, model.faces, SIZE_PX)
    theirs = rasterize(screen.cuda(), model.faces.cuda(), SIZE_PX)
    assert theirs.pix_to_face.is_cuda
    face_of, barycentric = theirs.pix_to_face.cpu(), theirs.barycentric.cpu()
    same = face_of == ours.pix_to_face
    assert ours.mask.float().mean() > 0.1
    # A pixel centre on an edge goes to either triangle.
    assert (~same).sum() <= 3 * len(screen)
    seen = same & ours.mask
    assert (barycentric - ours.barycentric)[seen].abs().max() < 1e-3
    assert torch.allclose(theirs.depth.cpu()[seen], ours.depth[seen], rtol=1e-4)


def test_gradients_of_a_rendered_triangle_on_the_device():
    pytest.importorskip("pytorch3d")
    near = [[1.0, 1.0, 5.0], [6.0, 1.5, 6.0], [2.0, 6.0, 5.5]]
    far = [[0.5, 0.5, 9.0], [7.5, 1.0, 9.5], [3.0, 7.5, 8.0]]
    faces = torch.tensor([[3, 4, 5], [0, 1, 2]], device="cuda")
    screen = torch.tensor([near + far], dtype=torch.float64, device="cuda").requires_grad_()
    values = torch.rand(1, 6, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    face_of = rasterize(screen, faces, 8).pix_to_face
    assert (face_of >= 0).any()
    assert torch.autograd.gradcheck(
        lambda s, v: interpolate(s, v, faces, face_of), (screen, values)
    )


def test_the_photometric_fit_goes_the_same_way():
    pytest.importorskip("pytorch3d")
    model = load_model()
    truth = heads(1)
    with torch.no_grad():
        shaded = render(model, truth, SIZE_PX)
        points = project_points(model.landmarks_of(shaded.vertices), SIZE_PX)
    start = replace(truth, texture=torch.zeros_like(truth.texture))
    settings = PhotometricSettings(joint_steps=10)
    image = shaded.image.clamp(0, 1)
    here = fit_photometric(model, image, points, start=start, settings=settings)
    there = fit_photometric(
        copy.deepcopy(model).cuda(), image.cuda(), points.cuda(), start=start.to("cuda"),
        settings=settings,
    )  # fmt: skip
    first, last = ([fit.joint.history[row]["total"] for fit in (here, there)] for row in (0, -1))
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    assert last[1] == pytest.approx(last[0], rel=2e-2)


def test_mtcnn_finds_the_same_faces():
    pytest.importorskip("facenet_pytorch")
    data = pytest.importorskip("skimage.data")
    from nfs.face.detectors import MtcnnDetector

    photo = data.astronaut()
    pictures = [photo, photo[:, ::-1].copy()]
    here, there = (MtcnnDetector(device).detect(pictures) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert len(one.boxes) == len(other.boxes) >= 1
        assert abs(one.boxes - other.boxes).max() < 0.5


def test_the_generator_renders_the_same_image():
    torch.manual_seed(0)
    network = Generator(TINY).eval()
    z, code = torch.randn(BATCH, TINY.z_dim), torch.randn(BATCH, TINY.background_dim)
    cameras = draw_cameras(TINY.cameras, BATCH)
    with torch.no_grad():
        here = network(z, cameras, background_code=code)
        depths = (here.depths_coarse, here.depths_fine)
        options = RenderOptions(depths=tuple(d.cuda() for d in depths))
        there = copy.deepcopy(network).cuda()(
            z.cuda(), cameras.cuda(), background_code=code.cuda(), options=options
        )
    assert torch.allclose(there.image.cpu(), here.image, atol=1e-4)
    assert torch.allclose(there.depth.cpu(), here.depth, atol=1e-4)


@pytest.mark.parametrize(
    "speed",
    [
        SpeedSettings(),
        SpeedSettings(channels_last=True, recompute_field=True),
        SpeedSettings(precision="bf16"),
        SpeedSettings(precision="fp16"),
    ],
)
def test_steps_of_every_phase_move_the_networks(speed, tmp_path):
    torch.manual_seed(0)
    settings = replace(SETTINGS, growth_start_kimg=0.0, growth_end_kimg=0.0, speed=speed)
    task = StyleNerfTask(Generator(TINY), Discriminator(D_SPEC), settings)
    task.setup(LocalContext(tmp_path, NullTracker()))
    assert task.device.type == "cuda"
    before = torch.cat([p.detach().flatten() for p in task.G.parameters()])
    images = torch.randint(0, 256, (BATCH, 3, 16, 16), dtype=torch.uint8, device="cuda")
    metrics = {}
    for step in range(4):
        metrics |= task.train_step({"image": images}, step * BATCH)
    assert {"loss/g", "loss/g_path", "loss/g_path_length", "loss/d", "loss/d_r1"} <= metrics.keys()
    assert all(torch.isfinite(value).all() for value in metrics.values())
    after = torch.cat([p.detach().flatten() for p in task.G.parameters()])
    assert (after != before).float().mean() > 0.9


def train_to(directory: Path, samples: int) -> dict[int, dict[str, float]]:
    directory.mkdir(exist_ok=True)
    tracker = JsonlTracker(directory / "tracking", "r")
    worker({"total_samples": samples}, LocalContext(directory, tracker))
    tracker.flush()
    return curve(directory)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    whole = train_to(tmp_path / "whole", 12 * BATCH)
    again = train_to(tmp_path / "again", 12 * BATCH)
    train_to(tmp_path / "parts", 6 * BATCH)
    parts = train_to(tmp_path / "parts", 12 * BATCH)
    assert parts.keys() == whole.keys()
    # Sums of atomic additions differ between two runs of the same program, and so here.
    spread = largest(whole, again)
    assert largest(whole, parts) <= max(1e-4, 10 * spread)


def largest(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> float:
    return max(
        abs(value - other[step][name]) / (1 + abs(value))
        for step, row in one.items()
        for name, value in row.items()
    )
