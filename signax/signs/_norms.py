"""One norm of many arrays, at any size of theirs, in passes that write nothing as large.

A norm is kept as mantissa times a power of two, and taken in float32 after dividing by it, so that
gradients of 1e-30 and of 3e38 give the law of 1.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from signax import _reductions

Norm = Literal["l2", "linf"]


class Norms(NamedTuple):
    """mantissa * unit, the unit a power of two: 1e-30 and 3e38 keep all their bits."""

    mantissa: jax.Array  # float32, of any shape
    unit: jax.Array  # the same


def norm_of(leaves: Sequence[jax.Array], norm: Norm) -> Norms:
    """One norm of several arrays, float32[]."""
    return Norms(*(x[0] for x in norms_of([leaves], norm)))


def norms_of(groups: Sequence[Sequence[jax.Array]], norm: Norm) -> Norms:
    """One norm for each group of arrays, float32[groups]; NaN or infinite if a coordinate is.

    What follows the passes over the arrays is worked out for all groups at once.
    """
    wide = [[leaf.astype(jnp.float32) for leaf in group] for group in groups]
    if norm == "linf":
        return normalized(jnp.stack([_reductions.largest(group) for group in wide]))
    means, weights = zip(*map(_mean_squares, wide), strict=True)
    unit = _reductions.power_of_two(jnp.stack([_reductions.largest(own) for own in means]))
    inverse, squares = 1.0 / unit, []
    for i in range(len(groups)):
        parts = [
            w * jnp.sum((x * inverse[i]) ** 2) for x, w in zip(means[i], weights[i], strict=True)
        ]
        squares.append(sum(parts, start=jnp.zeros((), jnp.float32)))
    return Norms(jnp.sqrt(jnp.stack(squares)), unit)


def _mean_squares(leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], list[int]]:
    """Root mean squares of lanes, and how many squares each is the mean of."""
    lanes, rest = _reductions.in_lanes(leaves)
    return [*map(_root_mean_square, lanes), rest], [*map(len, lanes), 1]


@jax.jit  # traced once for all leaves of a size
def _root_mean_square(lanes: Sequence[jax.Array]) -> jax.Array:
    """Of the lanes laid upon each other, at each place, whatever their magnitudes."""
    if len(lanes) == 1:
        return jnp.abs(lanes[0])
    scaled, unit = _reductions.in_common_unit(lanes)
    return jnp.sqrt(functools.reduce(jnp.add, [x**2 for x in scaled]) / len(lanes)) * unit


def value(norm: Norms) -> jax.Array:
    """The norm as a float32, the largest float32 if it is beyond."""
    return jnp.minimum(norm.mantissa * norm.unit, jnp.finfo(jnp.float32).max)


def normalized(r: jax.Array) -> Norms:
    """A float as mantissa * unit with 1 <= mantissa < 4 and a unit whose inverse is a float32."""
    unit = _reductions.power_of_two(r)
    return Norms(r / unit, unit)
