import numpy as np
import pytest
import torch

from nfs.talker.mouth import darken_mouth, mouth_opening, polygon_mask, smooth_contour


def _landmarks(gap: float) -> torch.Tensor:
    """A schematic face in plane coordinates with inner lips `gap` apart."""
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45
    points[36], points[45] = torch.tensor([0.35, 0.4]), torch.tensor([0.65, 0.4])
    angle = torch.arange(12) / 12 * 2 * torch.pi
    points[48:60] = torch.stack((0.5 - 0.12 * angle.cos(), 0.7 - 0.06 * angle.sin()), -1)
    inner = [(0.4, 0), (0.45, -1), (0.5, -1), (0.55, -1), (0.6, 0), (0.55, 1), (0.5, 1), (0.45, 1)]
    points[60:68] = torch.tensor([(x, 0.7 + side * gap / 2) for x, side in inner])
    return points


def test_opening_is_relative_to_the_eyes():
    assert mouth_opening(_landmarks(0.06)) == pytest.approx(0.06 / 0.3, abs=1e-6)
    assert mouth_opening(_landmarks(0.06) * 7) == pytest.approx(0.2, abs=1e-6)
    assert mouth_opening(_landmarks(0.0)) == pytest.approx(0.0, abs=1e-6)


def test_mask_is_one_inside_and_exactly_zero_outside():
    square = np.array([[4.0, 4.0], [20.0, 4.0], [20.0, 12.0], [4.0, 12.0]])
    mask = polygon_mask(square, 32, 2.0)
    assert mask[8, 12] == 1
    assert mask[4, 12] == pytest.approx(0.25)
    outside = np.ones((32, 32), bool)
    outside[4:12, 4:20] = False
    assert (mask[outside] == 0).all()
    assert (mask[~outside] > 0).all()


def test_mask_handles_concave_shapes_and_shapes_off_the_image():
    shape = np.array([[2, 2], [14, 2], [14, 14], [8, 6], [2, 14]], float)
    mask = polygon_mask(shape, 16, 0.5)
    assert mask[12, 8] == 0
    assert mask[12, 2] > 0
    assert (polygon_mask(shape + 100, 16, 1.0) == 0).all()


def test_contour_passes_through_its_corners():
    corners = np.array([[0, 0], [2, 0], [2, 1], [0, 1]], float)
    curve = smooth_contour(corners, 4)
    assert len(curve) == 16
    assert np.allclose(curve[::4], corners)


def test_unchanged_or_closing_mouth_returns_the_image_bit_for_bit():
    image = torch.rand(3, 64, 64) * 2 - 1
    reference = _landmarks(0.05)
    assert darken_mouth(image, reference, reference) is image
    assert darken_mouth(image, _landmarks(0.02), reference) is image


def test_opening_mouth_turns_dark_inside_only():
    image = torch.full((3, 64, 64), 0.4)
    result = darken_mouth(image, _landmarks(0.12), _landmarks(0.0))
    centre, corner = result[:, int(0.7 * 64), 32], result[:, 5, 5]
    assert (centre < -0.6).all()
    assert torch.equal(corner, image[:, 5, 5])
    assert torch.equal(result[:, :30], image[:, :30])


def test_strength_grows_with_the_opening():
    image = torch.full((3, 64, 64), 0.4)
    levels = [
        darken_mouth(image, _landmarks(gap), _landmarks(0.0))[0, int(0.7 * 64), 32].item()
        for gap in (0.01, 0.03, 0.06)
    ]
    assert levels == sorted(levels, reverse=True)
