"""Random heads from MakeHuman targets, the population behind the identity basis.

A head is linear in its target weights, so all heads are one matrix product. The random stream is
PCG64's raw bits turned into distributions by their inverse CDFs: NumPy guarantees the bits for
ever, unlike its `normal` and `beta` streams. Legend: N heads, H vertices, A signed local axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import betaincinv, gammaincinv, ndtri

from nfs.morphable.makehuman import FloatArray

RACES = ("african", "asian", "caucasian")
GENDERS = ("female", "male")
AGES = ("baby", "child", "young", "old")
LEVELS = ("min", "average", "max")
AGE_ANCHORS = np.array([0.0, 1 / 3, 2 / 3, 1.0])
LEVEL_ANCHORS = np.array([0.0, 0.5, 1.0])
OPPOSITES = (
    ("incr", "decr"),
    ("up", "down"),
    ("out", "in"),
    ("forward", "backward"),
    ("convex", "concave"),
    ("uncompress", "compress"),
)
NUM_MACRO_DRAWS = 8
LOCAL_SIGMA = 0.35
ASYMMETRY_FACTOR = 0.5
SIDE_CORRELATION = 0.92


def stable_uniforms(seed: int, rows: int, columns: int) -> FloatArray:
    """Return `[rows, columns]` uniforms in (0, 1), the same on every machine and NumPy version."""
    raw = np.random.PCG64(seed).random_raw(rows * columns)
    uniforms = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniforms.reshape(rows, columns)


def sample_heads(
    macro: Mapping[str, FloatArray], local: Mapping[str, FloatArray], *, num_heads: int, seed: int
) -> FloatArray:
    """Return the offsets of random heads from the base mesh.

    Args:
        macro: Macro targets (race, gender, age, muscle, weight), name -> `[H, 3]` dm.
        local: Local targets as `folder/name`, name -> `[H, 3]` dm.
        num_heads: N.
        seed: Seed of the population.

    Returns:
        `[N, H, 3]` dm.
    """
    axes = signed_axes(list(local))
    draws = stable_uniforms(seed, num_heads, NUM_MACRO_DRAWS + len(axes))
    weights = macro_weights(draws[:, :NUM_MACRO_DRAWS])
    local_weights = _local_weights(draws[:, NUM_MACRO_DRAWS:], [name for name, _ in axes])
    num_vertices = next(iter(macro.values())).shape[0]
    zero = np.zeros((num_vertices, 3))
    positive = np.stack([local[name] for name, _ in axes])
    negative = np.stack([zero if mate is None else local[mate] for _, mate in axes])
    targets = np.concatenate([np.stack([macro[name] for name in weights]), positive, negative])
    parts = [
        np.stack(list(weights.values()), axis=1),
        local_weights.clip(min=0),
        (-local_weights).clip(min=0),
    ]
    offsets: FloatArray = np.concatenate(parts, axis=1) @ targets.reshape(len(targets), -1)
    return offsets.reshape(num_heads, num_vertices, 3)


def signed_axes(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """Pair opposite targets into signed axes: (positive name, negative name or None)."""
    available, seen = set(names), set[str]()
    axes: list[tuple[str, str | None]] = []
    for name in names:
        if name in seen or name.startswith("asym/asymm"):
            continue
        if name.startswith("asym/"):
            if name.endswith("-l"):
                axes.append((name, f"{name[:-1]}r"))
            continue
        mate = _opposite(name, available)
        axes.append((name, mate))
        seen.add(name)
        if mate is not None:
            seen.add(mate)
    return axes


def macro_weights(draws: FloatArray) -> dict[str, FloatArray]:
    """Turn uniform draws into blend weights of the macro targets.

    Nine heads in ten are adults; gender is spread to both ends; races mix freely.

    Args:
        draws: `[N, 8]` uniforms: adult or child, age, gender, muscle, weight, three races.

    Returns:
        Target name -> `[N]` weights.
    """
    is_adult, age, gender, muscle, weight = draws[:, :5].T
    ages = _hat(np.where(is_adult < 0.9, 0.5 + 0.5 * age, 0.25 + 0.25 * age), AGE_ANCHORS)
    male = betaincinv(0.6, 0.6, gender)
    muscles = _hat(np.clip(0.5 + 0.22 * ndtri(muscle), 0, 1), LEVEL_ANCHORS)
    weights = _hat(np.clip(0.5 + 0.25 * ndtri(weight), 0, 1), LEVEL_ANCHORS)
    races = gammaincinv(0.5, draws[:, 5:8])
    races = races / races.sum(1, keepdims=True)
    blend: dict[str, FloatArray] = {}
    for gender_name, gender_weight in zip(GENDERS, (1 - male, male), strict=True):
        for i, age_name in enumerate(AGES):
            both = gender_weight * ages[:, i]
            for j, race_name in enumerate(RACES):
                blend[f"{race_name}-{gender_name}-{age_name}"] = both * races[:, j]
            for j, muscle_name in enumerate(LEVELS):
                for k, weight_name in enumerate(LEVELS):
                    name = f"universal-{gender_name}-{age_name}-{muscle_name}muscle"
                    blend[f"{name}-{weight_name}weight"] = both * muscles[:, j] * weights[:, k]
    return blend


def _local_weights(draws: FloatArray, names: Sequence[str]) -> FloatArray:
    """Return `[N, A]` weights in [-1, 1]; the two sides of the face are correlated."""
    normals = ndtri(draws)
    sides: dict[str, int] = {}
    for i, name in enumerate(names):
        folder, target = name.split("/")
        if target[:2] in ("l-", "r-"):
            key = folder + target[2:]
            if key in sides:
                rest = (1 - SIDE_CORRELATION**2) ** 0.5
                normals[:, i] = SIDE_CORRELATION * normals[:, sides[key]] + rest * normals[:, i]
            sides.setdefault(key, i)
    factors = [ASYMMETRY_FACTOR if name.startswith("asym/") else 1.0 for name in names]
    weights: FloatArray = (LOCAL_SIGMA * np.array(factors) * normals).clip(-1, 1)
    return weights


def _opposite(name: str, available: set[str]) -> str | None:
    stem, _, last = name.rpartition("-")
    for pair in OPPOSITES:
        if last in pair:
            mate = f"{stem}-{pair[1 - pair.index(last)]}"
            if mate in available:
                return mate
    return None


def _hat(values: FloatArray, anchors: FloatArray) -> FloatArray:
    """Return `[N, len(anchors)]` linear interpolation weights between neighbouring anchors."""
    columns = [np.interp(values, anchors, row) for row in np.eye(len(anchors))]
    return np.stack(columns, axis=1)
