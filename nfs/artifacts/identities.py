"""Who is who, by embeddings of faces: clusters that keep their names when clips are added.

Legend: N clips, E embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_array, csr_array
from scipy.sparse.csgraph import connected_components

Embeddings = NDArray[np.float32]
_BLOCK = 1024


@dataclass(frozen=True)
class Identities:
    """Identity of each clip.

    `bridges` are new clips that lie close to several identities of before: those stay apart, and
    the clip goes to the nearest. Many of them mean that the threshold was too low at first.
    """

    of_clip: dict[str, str]
    bridges: list[str]


def cluster_identities(
    embeddings: Mapping[str, Embeddings], known: Mapping[str, str], threshold: float
) -> Identities:
    """Give one identity to clips whose embeddings are linked by distances under the threshold.

    Without known identities the result is the connected components of the graph of close pairs:
    no two clips of different identities are closer than the threshold, whatever the order. Known
    clips never change; new ones join them or found identities of their own.

    Time grows with N squared (128 multiplications a pair), memory with N.

    Args:
        embeddings: Vector `[E]` of each clip.
        known: Identity of clips seen before; those without an embedding are ignored.
        threshold: Largest Euclidean distance between two clips that are linked.
    """
    known = {clip: known[clip] for clip in known if clip in embeddings}
    new = sorted(embeddings.keys() - known.keys())
    found = dict(known)
    if not new:
        return Identities(found, [])
    vectors = np.stack([embeddings[clip] for clip in new]).astype(np.float32)
    parents = np.arange(len(new))
    for pair in _close_pairs(vectors, threshold):
        _union(parents, *pair)
    roots = np.array([_root(parents, number) for number in range(len(new))])
    old = sorted(known)
    links, nearest = _links(vectors, [embeddings[clip] for clip in old], threshold)
    bridges: list[str] = []
    for root in dict.fromkeys(roots.tolist()):
        members = np.flatnonzero(roots == root)
        close = {at for member in members.tolist() for at in links.get(member, [])}
        touched = sorted({known[old[at]] for at in close})
        if not touched:
            name = _name(new[members[0]])
            found |= {new[member]: name for member in members}
        elif len(touched) == 1:
            found |= {new[member]: touched[0] for member in members}
        else:
            found |= {new[member]: known[old[nearest[member]]] for member in members}
            bridges += [new[member] for member in members]
    return Identities(found, bridges)


def _close_pairs(vectors: Embeddings, threshold: float) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows that link the same rows as all pairs closer than the threshold do."""
    for start in range(0, len(vectors), _BLOCK):
        for other in range(start, len(vectors), _BLOCK):
            left, right = vectors[start : start + _BLOCK], vectors[other : other + _BLOCK]
            close = csr_array(_squares(left, right) < threshold**2)
            graph = block_array([[None, close], [close.T, None]], format="csr")
            _, labels = connected_components(graph, directed=False)
            numbers = np.concatenate([start + np.arange(len(left)), other + np.arange(len(right))])
            _, first = np.unique(labels, return_index=True)
            yield from zip(numbers[first[labels]].tolist(), numbers.tolist(), strict=True)


def _links(
    vectors: Embeddings, old: list[Embeddings], threshold: float
) -> tuple[dict[int, list[int]], NDArray[np.int64]]:
    """Return the close old clips of each new one, and the nearest old clip `[N]`."""
    links: dict[int, list[int]] = {}
    nearest = np.zeros(len(vectors), np.int64)
    best = np.full(len(vectors), np.inf)
    for start in range(0, len(old), _BLOCK):
        squares = _squares(vectors, np.stack(old[start : start + _BLOCK]).astype(np.float32))
        for row, column in np.argwhere(squares < threshold**2).tolist():
            links.setdefault(row, []).append(start + column)
        place = squares.argmin(axis=1)
        least = squares[np.arange(len(vectors)), place]
        nearest = np.where(least < best, start + place, nearest)
        best = np.minimum(best, least)
    return links, nearest


def _squares(first: Embeddings, second: Embeddings) -> Embeddings:
    products = first @ second.T
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None] - 2 * products
    return np.asarray(np.maximum(squares, 0), np.float32)


def _root(parents: NDArray[np.int64], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number


def _union(parents: NDArray[np.int64], first: int, second: int) -> None:
    a, b = _root(parents, first), _root(parents, second)
    parents[max(a, b)] = min(a, b)


def _name(clip_id: str) -> str:
    return f"face-{hashlib.sha256(clip_id.encode()).hexdigest()[:12]}"
