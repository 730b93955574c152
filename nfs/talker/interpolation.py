"""Interpolation between scattered points of a plane. Legend: Q queries, V points, K used points."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError, cKDTree

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ScatteredVertices:
    """Finds, for any point of the plane, the vertices around it and their weights.

    Args:
        points: `[V, 2]`.
    """

    def __init__(self, points: FloatArray):
        self.points = points
        self._tree = cKDTree(points)

    def interpolate(
        self, where: FloatArray, *, neighbours: int, linear: bool
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return indices `[Q, K]`, weights `[Q, K]` with sum 1, distances outside the mesh `[Q]`.

        Args:
            where: `[Q, 2]`.
            neighbours: Nearest vertices averaged where `linear` does not apply.
            linear: Barycentric weights of the Delaunay triangle around the point, if there is one.
        """
        count = min(max(neighbours + 1, 3), len(self.points))
        distance, index = self._tree.query(where, k=count)
        distance = np.asarray(distance).reshape(len(where), count)
        index = np.array(index, np.int64).reshape(len(where), count)
        spacing = self.spacing
        weight = shepard_weights(distance, spacing)
        if linear:
            self._set_linear(where, index, weight)
        # Inside the mesh no point is farther than about the spacing from a vertex.
        return index, weight, np.maximum(distance[:, 0] - spacing, 0.0)

    @cached_property
    def spacing(self) -> float:
        """Median distance of a vertex to its nearest neighbour."""
        if len(self.points) < 2:
            return 0.0
        return float(np.median(self._tree.query(self.points, k=2)[0][:, 1]))

    @cached_property
    def _triangles(self) -> Delaunay | None:
        """Delaunay triangulation; None with fewer than three vertices or all on a line."""
        try:
            return Delaunay(self.points)
        except (QhullError, ValueError):
            return None

    def _set_linear(self, where: FloatArray, index: IntArray, weight: FloatArray) -> None:
        """Overwrite the rows of points that lie inside a triangle."""
        triangles = self._triangles
        if triangles is None:
            return
        simplex = triangles.find_simplex(where)
        transform = triangles.transform[simplex]
        two = np.einsum("qij,qj->qi", transform[:, :2], where - transform[:, 2])
        barycentric = np.concatenate((two, 1 - two.sum(1, keepdims=True)), axis=1)
        rows = (simplex >= 0) & np.isfinite(barycentric).all(1)
        weight[rows] = 0.0
        weight[rows, :3] = barycentric[rows]
        index[rows, :3] = triangles.simplices[simplex[rows]]


def shepard_weights(distance: FloatArray, spacing: float) -> FloatArray:
    """Return weights `[Q, K + 1]` of the K nearest vertices, in order of distance, and about 0.

    Inverse squared distance, softened by half the spacing, times a factor that reaches 0 at the
    next vertex (Franke and Little's modification of Shepard's method), so that nothing jumps where
    the set of neighbours changes.
    """
    reach = np.maximum(distance[:, -1:], 1e-12)
    weight: FloatArray = 1.0 / (distance**2 + (0.5 * spacing) ** 2 + 1e-12)
    if distance.shape[1] > 1:
        weight = weight * ((1.0 - distance / reach) ** 2 + 1e-9)
    return weight / weight.sum(1, keepdims=True)
