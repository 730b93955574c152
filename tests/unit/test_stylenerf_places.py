"""Where things are: pixels, cameras of a prior, lookups in planes and volumes."""

import math

import pytest
import torch

from nfs.geometry.rays import corner_pixel_grid, pixel_grid, rolled_pixels
from nfs.stylenerf.cameras import draw_positions, prior_cameras, uniform_cameras
from nfs.stylenerf.planes import multiscale_features, tri_plane_features, volume_features
from nfs.stylenerf.spec import CameraPrior


def test_pixels():
    corners = corner_pixel_grid(4, 8)
    assert corners[0].tolist() == [-1.0, 1.0]
    assert torch.allclose(corners[3], torch.tensor([2 * 6 / 7 - 1, 1.0]))  # every second of 8
    turned = rolled_pixels(pixel_grid(2), torch.tensor([0.0, math.pi]))
    assert torch.allclose(turned[0], -turned[1], atol=1e-6)


def test_cameras_of_a_sphere_in_shares():
    prior = CameraPrior((0.0, 1.0), (0.2, 0.8), (1.0, 3.0), gaussian=False, angular=False)
    quarter = torch.full((1,), 0.25)
    camera = uniform_cameras(prior, quarter, quarter * 2, quarter * 2)[0]
    assert torch.allclose(camera[:3, 3], torch.tensor([0.0, 2.0, 0.0]), atol=1e-6)
    camera = uniform_cameras(prior, quarter, quarter * 2, quarter * 2, zoom=0.5)[0]
    assert torch.allclose(camera[:3, 3], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("gaussian", [True, False])
def test_positions_of_drawn_cameras(gaussian):
    prior = CameraPrior(gaussian=gaussian)
    torch.manual_seed(0)
    drawn = draw_positions(prior, 4)
    yaw, pitch, radius = drawn.position.unbind(dim=1)
    assert (radius == 0).all()  # an empty range
    again = uniform_cameras(prior, yaw, pitch, radius)
    assert torch.allclose(again, drawn.cam2world, atol=1e-5)
    centre = prior_cameras(prior, *torch.zeros(3, 1))
    assert torch.allclose(centre, uniform_cameras(prior, *torch.full((3, 1), 0.5)), atol=1e-6)


def test_planes_are_looked_up_where_they_say():
    """Each plane sees its own two coordinates; outside of the region there is nothing."""
    size = 8
    ramp = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    planes = torch.zeros(1, 3, 2, size, size)
    planes[0, 0, 0] = ramp  # along the width: x of the first plane
    planes[0, 1, 1] = ramp[:, None]  # along the height: z of the second plane
    points = torch.tensor([[[0.3, 0.1, -0.5], [5.0, 0.0, 0.0]]])
    found = tri_plane_features(planes, points)
    assert torch.allclose(found[0, 0], torch.tensor([0.3, -0.5]), atol=1e-6)
    assert found[0, 1, 0] == 0
    volume = torch.zeros(1, 3, size, size, size)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = size
        volume[0, axis] = ramp.reshape(shape)
    found = volume_features(volume, points)
    assert torch.allclose(found[0, 0], torch.tensor([0.3, 0.5, 0.1]), atol=1e-6)


def test_multiscale_volumes_repeat():
    torch.manual_seed(0)
    volumes = torch.randn(1, 4, 8, 8, 8)
    points = torch.rand(1, 5, 3) * 0.2
    # 16 cells over a region of 2 units: a volume of 8 + 1 cells repeats every 9 / 8 units.
    shifted = points + torch.tensor([0.0, 9 / 8, 0.0])
    first, second = (
        multiscale_features(volumes, p - 1 + 1 / 8, (16, 16), num_levels=2)
        for p in (points, shifted)
    )
    assert torch.allclose(first, second, atol=1e-4)
