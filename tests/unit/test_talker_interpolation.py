import numpy as np
import pytest

from nfs.talker.interpolation import ScatteredVertices, shepard_weights


def _grid(size: int = 9) -> np.ndarray:
    axis = np.linspace(0, 1, size)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


@pytest.mark.parametrize("linear", [True, False])
def test_weights_sum_to_one_and_constants_are_kept(linear):
    rng = np.random.default_rng(0)
    where = rng.uniform(-0.5, 1.5, (200, 2))
    index, weight, outside = ScatteredVertices(_grid()).interpolate(
        where, neighbours=4, linear=linear
    )
    assert index.shape == weight.shape == (200, 5)
    assert np.allclose(weight.sum(1), 1)
    assert (weight > -1e-9).all()
    inside = ((where >= 0) & (where <= 1)).all(1)
    assert (outside[inside] == 0).all()
    assert (outside[np.abs(where - 0.5).max(1) > 0.9] > 0).all()


def test_linear_reproduces_linear_fields_inside():
    mesh = ScatteredVertices(_grid() + np.random.default_rng(1).normal(0, 0.01, (81, 2)))
    where = np.random.default_rng(2).uniform(0.1, 0.9, (100, 2))
    index, weight, _ = mesh.interpolate(where, neighbours=4, linear=True)
    field = mesh.points @ np.array([2.0, -3.0]) + 0.5
    assert np.allclose((field[index] * weight).sum(1), where @ np.array([2.0, -3.0]) + 0.5)


def test_nearest_has_no_jump_where_the_set_of_neighbours_changes():
    mesh = ScatteredVertices(_grid())
    line = np.stack((np.linspace(0.2, 0.8, 4001), np.full(4001, 0.437)), 1)
    field = np.sin(9 * mesh.points[:, 0]) + mesh.points[:, 1]
    index, weight, _ = mesh.interpolate(line, neighbours=5, linear=False)
    values = (field[index] * weight).sum(1)
    assert np.abs(np.diff(values)).max() < 0.01


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points_and_points_on_a_line(count):
    points = np.stack((np.arange(count) * 0.1, np.zeros(count)), 1)
    where = np.array([[0.05, 0.0], [0.0, 3.0]])
    index, weight, _ = ScatteredVertices(points).interpolate(where, neighbours=4, linear=True)
    assert index.max() < count
    assert np.allclose(weight.sum(1), 1)


def test_a_vertex_dominates_at_its_own_place():
    weight = shepard_weights(np.array([[0.0, 1.0, 1.1, 1.2]]), spacing=1e-3)
    assert weight[0, 0] > 0.999
