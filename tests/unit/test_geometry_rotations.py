"""Round trips and conventions of rotations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfs.geometry.rotations import euler_to_matrix, matrix_to_euler, skew, so3_exp, so3_log

ANGLE = st.floats(-3.1, 3.1)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


@given(ANGLE, st.floats(-1.5, 1.5), ANGLE)
@settings(max_examples=50, deadline=None)
def test_euler_angles_round_trip(a, b, c):
    angles = vector(a, b, c)
    matrix = euler_to_matrix(angles)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix_to_euler(matrix), angles, atol=1e-8)


@given(ANGLE, ANGLE, ANGLE)
@settings(max_examples=50, deadline=None)
def test_exponential_and_logarithm(x, y, z):
    rotation = so3_exp(vector(x, y, z))
    assert torch.allclose(rotation, torch.matrix_exp(skew(vector(x, y, z))), atol=1e-9)
    assert torch.allclose(so3_exp(so3_log(rotation)), rotation, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1.0, 3.0, math.pi - 1e-9])
def test_logarithm_is_exact_from_zero_to_pi(angle):
    axis = torch.nn.functional.normalize(vector(1.0, -2.0, 0.5))
    assert torch.allclose(so3_log(so3_exp(angle * axis)), angle * axis, atol=1e-7)


def test_logarithm_has_a_gradient_at_the_identity():
    w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    so3_log(so3_exp(w)).sum().backward()
    assert torch.allclose(w.grad, torch.ones_like(w))


def test_euler_order_is_z_after_y_after_x():
    x, y, z = vector(0.3, 0, 0), vector(0, -0.5, 0), vector(0, 0, 1.1)
    expected = euler_to_matrix(z) @ euler_to_matrix(y) @ euler_to_matrix(x)
    assert torch.allclose(euler_to_matrix(x + y + z), expected)
    quarter = euler_to_matrix(vector(0, 0, math.pi / 2))[0]
    assert torch.allclose(quarter @ vector(1, 0, 0)[0], vector(0, 1, 0)[0], atol=1e-12)


def test_skew_is_the_cross_product():
    u, v = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose((skew(u) @ v[..., None])[..., 0], torch.linalg.cross(u, v), atol=1e-6)
