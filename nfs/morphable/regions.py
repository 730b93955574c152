"""Named vertex regions of a head mesh, from its triangles and landmarks. Legend: V vertices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LIPS_OUTER = range(48, 60)
LIPS_INNER = range(60, 68)
RIGHT_EYE = range(36, 42)
LEFT_EYE = range(42, 48)


def landmark_contours(
    positions: FloatArray, faces: IntArray, landmark_vertices: IntArray
) -> dict[str, IntArray]:
    """Return closed contours through landmark vertices along mesh edges.

    Args:
        positions: `[V, 3]` mean shape.
        faces: `[F, 3]` triangles that the contours may follow.
        landmark_vertices: `[68]` nearest vertex of each landmark.

    Returns:
        `lips_outer`, `lips_inner`, `eye_right`, `eye_left`: ordered vertex ids, each vertex once,
        the first not repeated at the end. The lip contours start at the mouth corner 48 or 60
        (image left) and run over the upper lip.
    """
    loops = {
        "lips_outer": LIPS_OUTER,
        "lips_inner": LIPS_INNER,
        "eye_right": RIGHT_EYE,
        "eye_left": LEFT_EYE,
    }
    graph = _edge_graph(positions, faces)
    return {
        name: _closed_path(graph, landmark_vertices[list(points)]) for name, points in loops.items()
    }


def inside_polygon(points: FloatArray, polygon: FloatArray) -> NDArray[np.bool_]:
    """Return `[N]` which 2-D points lie inside a closed polygon (even-odd rule).

    Args:
        points: `[N, 2]`.
        polygon: `[M, 2]` corners in order.
    """
    x, y = points[:, :1], points[:, 1:]
    x0, y0 = polygon.T
    x1, y1 = np.roll(polygon, -1, axis=0).T
    crosses = (y0 > y) != (y1 > y)
    height = np.where(y1 == y0, 1.0, y1 - y0)
    left = x < x0 + (y - y0) / height * (x1 - x0)
    inside: NDArray[np.bool_] = (crosses & left).sum(1) % 2 == 1
    return inside


def lips_between(
    positions: FloatArray, outer: IntArray, inner: IntArray, candidates: NDArray[np.bool_]
) -> IntArray:
    """Return the candidates between the lip contours in the frontal view, contours included."""
    plane = positions[:, :2]
    depth = positions[outer, 2].min() - 0.1
    ring = inside_polygon(plane, plane[outer]) & ~inside_polygon(plane, plane[inner])
    ring &= candidates & (positions[:, 2] > depth)
    ring[outer] = ring[inner] = True
    return np.flatnonzero(ring)


def _edge_graph(positions: FloatArray, faces: IntArray) -> coo_matrix:
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    lengths = np.linalg.norm(positions[edges[:, 0]] - positions[edges[:, 1]], axis=1)
    size = len(positions)
    return coo_matrix((lengths, (edges[:, 0], edges[:, 1])), shape=(size, size)).tocsr()


def _closed_path(graph: coo_matrix, stations: IntArray) -> IntArray:
    """Join the stations by shortest paths and close the loop; repeated vertices are dropped."""
    _, previous = dijkstra(graph, directed=False, indices=stations, return_predecessors=True)
    loop: list[int] = []
    for i, start in enumerate(stations):
        node, leg = int(stations[(i + 1) % len(stations)]), []
        while node != start and node >= 0:
            node = int(previous[i, node])
            leg.append(node)
        loop += leg[::-1]
    return _unique_in_order(loop)


def _unique_in_order(values: Sequence[int]) -> IntArray:
    return np.array(list(dict.fromkeys(value for value in values if value >= 0)), np.int64)
