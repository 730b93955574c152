"""The photometric stage: gradients, both rasterisers, bounds, clips, photographs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfs.config.fit_3dmm import ClipFitConfig
from nfs.errors import ConfigError
from nfs.morphable.appearance import photometric_l1
from nfs.morphable.clip_fit import build_refiner, fit_clip_frames, key_frames
from nfs.morphable.coefficients import PACKED_SIZES, Coefficients
from nfs.morphable.image_fit import fit_images
from nfs.morphable.landmark_fit import fit_landmarks
from nfs.morphable.loading import load_model
from nfs.morphable.losses import photometric_loss
from nfs.morphable.model import MorphableModel
from nfs.morphable.overlay import contact_sheet
from nfs.morphable.photometric_fit import PhotometricSettings, fit_photometric
from nfs.morphable.projection import to_screen
from nfs.morphable.rasterizer import rasterize
from nfs.morphable.refine import Refiner
from nfs.morphable.shading import interpolate, posed_vertices, render, vertex_colours

SIZE = 96
FAST = PhotometricSettings(joint_steps=8, backend="numba")


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return load_model()


def looks(frames: int, seed: int = 0) -> Coefficients:
    """A person with a skin and a light of their own, turning a little."""
    generator = torch.Generator().manual_seed(seed)
    rows = Coefficients.zeros(frames)
    rows.rotation[:, 1] = torch.linspace(-0.15, 0.15, frames)
    rows.expression[:, 24] = torch.linspace(0.0, 0.4, frames)
    one = {
        "identity": 0.5 * torch.randn(1, 80, generator=generator),
        "texture": torch.randn(1, 80, generator=generator),
        "lighting": 0.1 * torch.randn(1, 27, generator=generator),
    }
    return replace(rows, **{name: value.expand(frames, -1) for name, value in one.items()})


def pictures_of(head: MorphableModel, truth: Coefficients, size: int = SIZE):
    """Return uint8 pictures `[T, S, S, 3]` and exact landmarks `[T, 68, 2]`."""
    shaded = render(head, truth, size)
    points = to_screen(head.landmarks_of(shaded.vertices), size)[..., :2]
    return (shaded.image.clamp(0, 1) * 255).round().byte().numpy(), points


def test_both_rasterizers_agree_on_a_head(head):
    pytest.importorskip("pytorch3d")
    screen = to_screen(posed_vertices(head, looks(2)), 48)
    ours = rasterize(screen, head.faces, 48, backend="numba")
    theirs = rasterize(screen, head.faces, 48, backend="pytorch3d")
    covered = ours.mask & theirs.mask
    assert covered.float().mean() > 0.2
    assert int((ours.pix_to_face != theirs.pix_to_face).sum()) == 0
    assert (ours.barycentric - theirs.barycentric)[covered].abs().max() < 1e-3
    assert (ours.depth - theirs.depth)[covered].abs().max() < 1e-4


def loss_of(head: MorphableModel, packed, target, visible):
    coefficients = Coefficients.unpack(packed)
    screen = to_screen(posed_vertices(head, coefficients), target.shape[1])
    colours = vertex_colours(head, coefficients, normal_weighting="area")
    image = interpolate(screen, colours, head.faces, visible)
    return photometric_loss(image, target, (visible >= 0).double(), eps=1e-12, over="image")


@pytest.mark.parametrize("backend", ["numba", "pytorch3d"])
def test_gradients_equal_finite_differences(head, backend):
    """Every group of coefficients, in float64, with the visibility of either rasteriser."""
    if backend == "pytorch3d":
        pytest.importorskip("pytorch3d")
    double = copy.deepcopy(head).double()
    generator = torch.Generator().manual_seed(3)
    packed = looks(1).pack().double()
    screen = to_screen(posed_vertices(double, Coefficients.unpack(packed)), 32)
    visible = rasterize(screen.float(), head.faces, 32, backend=backend).pix_to_face
    target = torch.rand(1, 32, 32, 3, generator=generator, dtype=torch.float64)
    leaf = packed.clone().requires_grad_()
    loss_of(double, leaf, target, visible).backward()
    start = 0
    for name, width in PACKED_SIZES.items():
        direction = torch.zeros_like(packed)
        direction[:, start : start + width] = torch.randn(1, width, generator=generator)
        start += width
        step = 1e-5
        with torch.no_grad():
            high, low = (
                loss_of(double, packed + sign * step * direction, target, visible)
                for sign in (1, -1)
            )
        expected = float((high - low) / (2 * step))
        found = float((leaf.grad * direction).sum())
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_expressions_stay_in_bounds_and_unseen_axes_at_rest(head):
    truth = looks(1)
    _, points = pictures_of(head, truth, 48)
    wild = torch.rand(1, 48, 48, 3, generator=torch.Generator().manual_seed(1))
    settings = replace(FAST, learning_rate=0.3)
    found = fit_photometric(head, wild, points, start=truth, settings=settings)
    expression = found.coefficients.expression
    assert (expression >= head.expression_lower).all()
    assert (expression <= head.expression_upper).all()
    assert not expression[:, ~torch.isfinite(head.expression_prior)].any()


def test_frames_of_a_clip_share_person_and_light(head):
    truth = looks(2)
    pictures, points = pictures_of(head, truth, 48)
    images = torch.from_numpy(pictures).float() / 255
    start = replace(truth, lighting=torch.zeros(2, 27))
    shared = fit_photometric(
        head, images, points, start=start, settings=replace(FAST, shared=True)
    ).coefficients
    for name in ("identity", "texture", "lighting"):
        value = getattr(shared, name)
        assert torch.equal(value[0], value[1])
    assert not torch.equal(shared.rotation[0], shared.rotation[1])


def test_the_stage_lowers_the_colour_error_of_a_photo(head):
    pictures, points = pictures_of(head, looks(1))
    usable = torch.ones(1, dtype=torch.bool)
    base = fit_clip_frames(head, points, SIZE, images={0: pictures[0]})
    refiner = Refiner(head, replace(FAST, joint_steps=25), SIZE)
    refined = refiner(base.fit, {0: pictures[0]}, points, usable)
    first, last = refined.history.history[0], refined.history.history[-1]
    assert last["photometric"] < 0.85 * first["photometric"]
    assert refined.photometric_l1 == pytest.approx(
        float(
            photometric_l1(
                head,
                refined.fit.coefficients,
                torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
            )
        ),
        abs=1e-6,
    )
    assert refined.fit.nme_percent[0] < 4


def test_a_long_clip_takes_person_and_light_from_its_key_frames(head):
    pictures, points = pictures_of(head, looks(5))
    usable = torch.tensor([True, True, False, True, True])
    points[2] = torch.nan
    config = ClipFitConfig.from_tree(
        {"photometric": {"frames": 2, "joint_steps": 4, "image_size_px": 48}}
    )
    assert key_frames(config) == 2
    refiner = build_refiner(head, config)
    images = {0: pictures[0], 4: pictures[4]}
    plain = fit_clip_frames(head, points, SIZE, usable=usable, images=images)
    result = fit_clip_frames(head, points, SIZE, usable=usable, images=images, refiner=refiner)
    found = result.fit.coefficients
    for name in ("identity", "texture", "lighting"):
        value = getattr(found, name)
        assert torch.equal(value, value[:1].expand_as(value))
        assert not torch.equal(value, getattr(plain.fit.coefficients, name))
    assert torch.isfinite(result.photometric_l1).tolist() == [True, False, False, False, True]
    assert torch.isnan(result.fit.nme_percent).tolist() == [False, False, True, False, False]
    assert result.median_nme_percent < 2


def test_settings_of_the_stage_are_checked():
    assert build_refiner(None, ClipFitConfig()) is None
    with pytest.raises(ConfigError, match="appearance_frames"):
        ClipFitConfig.from_tree({"photometric": {}, "appearance_frames": 0})


def test_sheets_show_albedo_and_light(head):
    truth = looks(2)
    pictures, points = pictures_of(head, truth)
    sheet = contact_sheet(head, truth, pictures, landmarks_px=points, fitted_px=points)
    assert sheet.shape == (6 * SIZE, 2 * SIZE, 3)
    cells = sheet.reshape(6, SIZE, 2, SIZE, 3)[:, :, 0]
    middle = cells[:, SIZE // 2, SIZE // 2].astype(int)
    assert np.abs(middle[3] - middle[0]).max() <= 2  # the rendering of the truth is the picture
    assert (cells[4:, 0, 0] == 255).all()
    without = replace(truth, texture=torch.zeros(2, 80), lighting=torch.zeros(2, 27))
    plain = contact_sheet(head, without, pictures, landmarks_px=points, fitted_px=points)
    assert plain.shape == (3 * SIZE, 2 * SIZE, 3)


def test_a_batch_of_photos_has_a_row_for_each(head, tmp_path):
    pictures, points = pictures_of(head, looks(1), 192)
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no picture")
    blank = np.zeros((64, 64, 3), np.uint8)

    def find(picture):
        return None if not picture.any() else points[0].double().numpy()

    fits = fit_images(head, [pictures[0], blank, torn], find=find, crop_size_px=128)
    assert [fit.status for fit in fits] == ["ok", "no_face", "decode_error"]
    assert "torn.jpg" in fits[2].error
    good = fits[0]
    assert good.result.median_nme_percent < 1.5
    assert good.crop.shape == (128, 128, 3)
    direct = fit_landmarks(head, torch.from_numpy(good.landmarks_px)[None].float(), 128)
    assert torch.allclose(direct.coefficients.rotation, good.result.fit.coefficients.rotation)
