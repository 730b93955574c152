"""Projection, normals, light, rasteriser, shading, losses."""

import numpy as np
import pytest
import torch

from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import AMBIENT, harmonics, irradiance
from nfs.morphable.loading import load_model
from nfs.morphable.losses import landmark_loss, photometric_loss
from nfs.morphable.normals import vertex_normals
from nfs.morphable.projection import project_points, to_screen
from nfs.morphable.rasterizer import rasterize
from nfs.morphable.shading import interpolate, render

TRIANGLE = torch.tensor([[0, 1, 2]])


def two_triangles() -> tuple[torch.Tensor, torch.Tensor]:
    """A near and a far triangle that overlap, in pixels of an 8 px image."""
    near = [[1.0, 1.0, 5.0], [6.0, 1.5, 6.0], [2.0, 6.0, 5.5]]
    far = [[0.5, 0.5, 9.0], [7.5, 1.0, 9.5], [3.0, 7.5, 8.0]]
    return torch.tensor([near + far]), torch.tensor([[3, 4, 5], [0, 1, 2]])


def test_projection_is_continuous_and_scales_with_the_image():
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.1, 0.2, 1.0]]])
    small, large = project_points(points, 224), project_points(points, 448)
    assert torch.allclose(large, 2 * small)
    assert small[0, 0].tolist() == [112, 112]
    assert small[0, 1].tolist() == pytest.approx([112 + 101.5 / 9, 112 - 203 / 9])


def test_rasterizer_shows_the_nearest_triangle():
    screen, faces = two_triangles()
    fragments = rasterize(screen, faces, 8)
    assert fragments.pix_to_face[0, 2, 3] == 1
    assert fragments.pix_to_face[0, 1, 6] == 0
    assert fragments.pix_to_face[0, 7, 0] == -1
    assert torch.isinf(fragments.depth[0, 7, 0])
    covered = fragments.mask
    assert torch.allclose(fragments.barycentric[covered].sum(-1), torch.ones(int(covered.sum())))


def test_rasterizing_leaves_torch_on_one_thread():
    before = torch.get_num_threads()
    screen, faces = two_triangles()
    rasterize(screen, faces, (9, 8))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (12, 7)])
def test_both_rasterizers_agree(size):
    pytest.importorskip("pytorch3d")
    screen, faces = two_triangles()
    screen = screen + torch.tensor([0.03, 0.07, 0.0])  # no edge through a pixel centre
    screen = torch.cat([screen, screen + torch.tensor([0.3, -0.2, 0.5])])
    ours = rasterize(screen, faces, size, backend="numba")
    theirs = rasterize(screen, faces, size, backend="pytorch3d")
    assert torch.equal(ours.pix_to_face, theirs.pix_to_face)
    assert torch.allclose(ours.barycentric, theirs.barycentric, atol=1e-4)
    assert torch.allclose(ours.depth, theirs.depth, rtol=1e-5)


def test_degenerate_hidden_and_empty_inputs():
    flat = torch.tensor([[[1.0, 1, 5], [2, 2, 5], [3, 3, 5]]])
    assert not rasterize(flat, TRIANGLE, 8).mask.any()
    behind = torch.tensor([[[1.0, 1, 5], [7, 1, 5], [1, 7, -1]]])
    assert not rasterize(behind, TRIANGLE, 8).mask.any()
    assert rasterize(torch.zeros(0, 3, 3), TRIANGLE, 8).pix_to_face.shape == (0, 8, 8)
    with pytest.raises(ValueError, match="expected screen"):
        rasterize(torch.zeros(3, 3), TRIANGLE, 8)


def test_interpolation_gradient_is_exact():
    screen, faces = two_triangles()
    screen = screen.double().requires_grad_()
    values = torch.rand(1, 6, 2, dtype=torch.float64, requires_grad=True)
    face_of = rasterize(screen, faces, 8).pix_to_face
    assert torch.autograd.gradcheck(
        lambda s, v: interpolate(s, v, faces, face_of), (screen, values)
    )


def test_interpolation_uses_the_rasterizers_barycentrics():
    screen, faces = two_triangles()
    fragments = rasterize(screen, faces, 8)
    depth = interpolate(screen, screen[..., 2:], faces, fragments.pix_to_face)[..., 0]
    assert torch.allclose(depth[fragments.mask], fragments.depth[fragments.mask], rtol=1e-5)


def test_normals_of_both_weightings():
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -3]]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1]])
    unit = vertex_normals(vertices, faces, weighting="unit")[0, 0]
    area = vertex_normals(vertices, faces, weighting="area")[0, 0]
    assert unit.tolist() == pytest.approx([0, -(0.5**0.5), 0.5**0.5], abs=1e-6)
    assert area.tolist() == pytest.approx([0, -3 / 10**0.5, 1 / 10**0.5], abs=1e-6)


def test_zero_lighting_is_white_ambient():
    normals = torch.nn.functional.normalize(torch.randn(1, 5, 3), dim=-1)
    light = irradiance(normals, torch.zeros(1, 27))
    assert torch.allclose(
        light, torch.full_like(light, AMBIENT * float(harmonics(normals)[0, 0, 0]))
    )


def test_a_rendered_head_has_gradients_in_every_coefficient():
    model = load_model()
    packed = (
        0.2 * torch.randn(1, 257, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    shaded = render(model, Coefficients.unpack(packed), 48)
    assert shaded.mask.float().mean() > 0.2
    shaded.image.square().sum().backward()
    gradient = Coefficients.unpack(packed.grad)
    for name in ("identity", "expression", "texture", "rotation", "translation", "lighting"):
        assert getattr(gradient, name).abs().max() > 0
    assert torch.isfinite(packed.grad).all()


def test_screen_is_what_the_rasterizer_takes():
    screen = to_screen(torch.tensor([[[0.0, 0.5, 0.0]]]), 100)
    assert screen[0, 0, 2] == 10
    assert screen[0, 0, 1] < 50  # up is a smaller row


def test_photometric_loss_of_equal_images_has_a_finite_gradient():
    image = torch.rand(1, 4, 4, 3, requires_grad=True)
    mask = torch.ones(1, 4, 4)
    loss = photometric_loss(image, image.detach().clone(), mask, eps=1e-20, over="image")
    loss.backward()
    assert loss < 1e-9
    assert torch.isfinite(image.grad).all()
    assert photometric_loss(image, image, torch.zeros(1, 4, 4)) == 0


def test_landmark_loss_is_a_weighted_square():
    predicted, target = torch.zeros(2, 68, 2), torch.zeros(2, 68, 2)
    predicted[0, 3] = torch.tensor([3.0, 4.0])
    weights = torch.zeros(68)
    weights[3] = 2
    assert landmark_loss(predicted, target, weights) == pytest.approx(2 * 25 / 2)


def test_render_is_deterministic():
    model, coefficients = load_model(), Coefficients.zeros(2)
    first = render(model, coefficients, 40).image.numpy()
    assert np.array_equal(first, render(model, coefficients, 40).image.numpy())
