r"""Running sums over draws: memory O(M d), however many batches there are.

Two passes would need the batches twice, so the stream is used in two parts. The first gives each
worker's mean gradient c_n (the reference); the second is measured against it. With

$$ y = (\hat g^n_t - c_n) / u, \qquad a = \frac1M \sum_n c_n, $$

u a power of two per coordinate (so that fourth powers of gradients of 1e-12 are no zeros), these
are kept for each coordinate

    sum y (each worker's own), sum y^2, sum y^3, sum y^4, sum |y|^3, sum sign(g^), count g^ != 0

and for each leaf, as a sum and a sum of squares over the *steps*, which are independent whatever
the correlation between coordinates,

    <a, mean over workers of sign g^>     what a step of one worker's signs gains: the rho-norm
    <a, majority of the M workers>        what a step of their vote gains
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from signax import _reductions
from signax.diagnostics import _draws

# R of the stochastic sign, in the order of the rows of `Sums.signal`.
SCALES = (("l2", "global"), ("l2", "leaf"), ("linf", "global"), ("linf", "leaf"))


class Sums(NamedTuple):
    """What is kept of all draws so far; M workers, d coordinates, L leaves."""

    draws: jax.Array  # int32[M]: finite draws
    nonfinite: jax.Array  # int32[M]
    steps: jax.Array  # int32[]: batches in which some draw was finite
    residual: jax.Array  # float32[M, d]: sum y
    powers: jax.Array  # float32[4, d]: sums of y^2, y^3, y^4, |y|^3
    signs: jax.Array  # int32[d]
    nonzero: jax.Array  # int32[d]
    gains: jax.Array  # float32[2, 2, L + 1]: (one worker, vote) x (sum, sum of squares)
    signal: jax.Array  # float32[4, L]: mean |g^_i| / R by scale


class Reference(NamedTuple):
    """What the draws are measured against."""

    rows: jax.Array  # float32[M, d]: c_n
    unit: jax.Array  # float32[d]: u
    mean: jax.Array  # float32[d]: a


def empty(num_workers: int, tree: _draws.Tree) -> Sums:
    d, leaves = tree.bounds[-1], len(tree.names)
    return Sums(
        draws=jnp.zeros(num_workers, jnp.int32),
        nonfinite=jnp.zeros(num_workers, jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        residual=jnp.zeros((num_workers, d), jnp.float32),
        powers=jnp.zeros((4, d), jnp.float32),
        signs=jnp.zeros(d, jnp.int32),
        nonzero=jnp.zeros(d, jnp.int32),
        gains=jnp.zeros((2, 2, leaves + 1), jnp.float32),
        signal=jnp.zeros((4, leaves), jnp.float32),
    )


def add_to_mean(total: tuple, rows: jax.Array) -> tuple:
    """(sum [M, d], finite draws [M], others [M]) with one more batch."""
    is_finite = jnp.all(jnp.isfinite(rows), axis=1)
    kept = jnp.where(is_finite[:, None], rows, 0.0)
    return total[0] + kept, total[1] + is_finite, total[2] + ~is_finite


def unit_of(rows: jax.Array, means: jax.Array, tree: _draws.Tree) -> jax.Array:
    """A power of two near each coordinate's noise, from one batch; of its leaf where that is 0."""
    noise = jnp.where(jnp.isfinite(rows), jnp.abs(rows - means), 0.0)
    own = jnp.max(noise, axis=0)
    of_leaf = tree.per_leaf(jnp.maximum(own, jnp.max(jnp.abs(means), axis=0)), jnp.max)
    shared = tree.spread(of_leaf)
    unit = jnp.where(own > 0, own, jnp.where(shared > 0, shared, 1.0))
    return _reductions.power_of_two(unit)


def add(sums: Sums, rows: jax.Array, reference: Reference, tree: _draws.Tree) -> Sums:
    """`sums` with one more batch of draws, rows [M, d]."""
    is_finite = jnp.all(jnp.isfinite(rows), axis=1)
    kept = is_finite[:, None]
    rows = jnp.where(kept, rows, 0.0)
    y = jnp.where(kept, (rows - reference.rows) / reference.unit[None], 0.0)
    signs = jnp.sign(rows).astype(jnp.int32)
    total = jnp.sum(signs, axis=0)
    voters = jnp.sum(is_finite, dtype=jnp.int32)
    one = reference.mean * total / jnp.maximum(voters, 1)
    gains = jnp.stack([_leaves_and_all(g, tree) for g in (one, reference.mean * jnp.sign(total))])
    powers = [jnp.sum(p, axis=0) for p in (y**2, y**3, y**4, jnp.abs(y) ** 3)]
    return Sums(
        draws=sums.draws + is_finite,
        nonfinite=sums.nonfinite + ~is_finite,
        steps=sums.steps + (voters > 0),
        residual=sums.residual + y,
        powers=sums.powers + jnp.stack(powers),
        signs=sums.signs + total,
        nonzero=sums.nonzero + jnp.sum(signs != 0, axis=0, dtype=jnp.int32),
        gains=sums.gains + jnp.stack([gains, gains**2], axis=1),
        signal=sums.signal + jnp.sum(_signals(rows, tree), axis=1),
    )


def _leaves_and_all(values: jax.Array, tree: _draws.Tree) -> jax.Array:
    by_leaf = tree.per_leaf(values)
    return jnp.append(by_leaf, jnp.sum(by_leaf))


def _signals(rows: jax.Array, tree: _draws.Tree) -> jax.Array:
    """The mean over a leaf's coordinates of |g^_i| / R, for each scale: [4, M, L]; 0 at R = 0."""
    size = jnp.abs(rows)
    linf = tree.per_leaf(size, jnp.max)  # [M, L]
    z = _divide(size, tree.spread(linf))  # at most 1: no square leaves the range of float32
    mean = tree.per_leaf(z) / jnp.array(tree.sizes)[None]
    l2 = jnp.sqrt(tree.per_leaf(z**2))
    share = _divide(linf, jnp.max(linf, axis=1, keepdims=True))
    l2_of_all = jnp.sqrt(jnp.sum((share * l2) ** 2, axis=1, keepdims=True))
    return jnp.stack([_divide(share * mean, l2_of_all), _divide(mean, l2), share * mean, mean])


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)
