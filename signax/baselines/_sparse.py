r"""Sparsification: a few coordinates in full, and error feedback for the rest.

Random-k takes the same coordinates on every worker (a shared seed), so their values travel by plain
all-reduce. Top-k takes each worker's largest, and must send where they are to everyone.

Sources: Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599;
Alistarh et al., "The Convergence of Sparsified Gradient Methods", NeurIPS 2018, arXiv:1809.10505.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signax import _network, _rules, _workers
from signax.baselines import _link
from signax.signs import _random
from signax.wire import _server

_TAG = 0x524E444B  # this link's place in the address of a random word


def average_random_k(
    axis_name: _workers.AxisName | None,
    *,
    fraction: float = 0.01,
    feedback: bool = True,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""The mean of k random coordinates of each leaf, the same ones on all workers.

    $$ p^n = g^n + e^n, \qquad u_i = \frac{1}{M} \sum_n p^n_i \;\text{ if } i \in S \text{ else } 0,
       \qquad e^n \leftarrow p^n - p^n_S $$

    S holds k = ceil(fraction d) of a leaf's d coordinates, drawn anew at each step without
    replacement. With `feedback=False` there is no residual and the values are multiplied by d/k, an
    unbiased estimate. One float32 all-reduce of the sum of k numbers + 1: 64 (M - 1)/M bits each;
    where they belong follows from the key and is not sent.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker (sparse all the same).
      fraction: The share of each leaf that is sent, in (0, 1]; at least one coordinate.
      feedback: Whether what was left out is remembered.
      key: An integer seed or a PRNG key, the same on all workers: the draws are addressed by (key,
        step, leaf path).
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. A
      worker whose tree holds a NaN or an infinity abstains and keeps its residual; without any
      other the update is zero. An empty tree passes.

    Raises:
      ValueError: For a fraction outside (0, 1] or an unknown `on_nonfinite`; at update, if an axis
        is not bound, or if the gradients were already summed over the workers.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.average_random_k(None, fraction=0.5)
      >>> u, state = tx.update(jnp.ones(4), tx.init(jnp.ones(4)))
      >>> print(u.sum(), u + state.residual)
      2.0 [1. 1. 1. 1.]

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599,
      Algorithm 1 with rand_k (the paper's Definition 2.2).
    """
    name = "baselines.average_random_k"
    _link.require_fraction(fraction, name)

    def exchange(updates, is_voting, state):
        leaves, treedef = jax.tree.flatten(updates)
        words = _random.link_words(state.key, _TAG, state.count, 0)  # no worker: the same for all
        words = jax.tree.leaves(_random.tree_words(words, updates))
        chosen = [_choose(words[i], leaf.size, fraction) for i, leaf in enumerate(leaves)]
        values = [leaf.reshape(-1)[c] for leaf, c in zip(leaves, chosen, strict=True)]
        sums, voters = _link.all_reduce(values, is_voting, axis_name)
        count = jnp.maximum(voters, 1).astype(jnp.float32)
        gain = [
            1.0 if feedback else leaf.size / max(1, c.size)
            for leaf, c in zip(leaves, chosen, strict=True)
        ]
        means = [x / count * factor for x, factor in zip(sums, gain, strict=True)]
        mean = [_scattered(m, c, leaf) for m, c, leaf in zip(means, chosen, leaves, strict=True)]
        said = [_scattered(v, c, leaf) for v, c, leaf in zip(values, chosen, leaves, strict=True)]
        return treedef.unflatten(mean), voters, treedef.unflatten(said), None

    return _link.make(
        name,
        axis_name,
        exchange,
        has_feedback=feedback,
        key=key,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
    )


def average_top_k(
    axis_name: _workers.AxisName | None,
    *,
    fraction: float = 0.01,
    on_nonfinite: _network.OnNonfinite = "abstain",
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""The mean of each worker's k largest coordinates of each leaf, with error feedback.

    $$ p^n = g^n + e^n, \qquad u = \frac{1}{M} \sum_n \operatorname{top}_k(p^n), \qquad
       e^n \leftarrow p^n - \operatorname{top}_k(p^n) $$

    k = ceil(fraction d) for each leaf of d coordinates. A float32 value and an int32 position of
    each travel to all workers in one all_gather: 64 (M - 1) bits for each of the sum of k, and one
    byte to say who counts. Its traffic grows with M, as no reduction on the way is possible.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker (sparse all the same).
      fraction: The share of each leaf that a worker sends, in (0, 1]; at least one coordinate.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers, whose
      values are added in the order of the workers. Of equal magnitudes the first is sent. A worker
      whose tree holds a NaN or an infinity abstains and keeps its residual; without any other the
      update is zero. An empty tree passes.

    Raises:
      ValueError: For a fraction outside (0, 1] or an unknown `on_nonfinite`; at update, if an axis
        is not bound, or if the gradients were already summed over the workers.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.average_top_k(None, fraction=0.25)
      >>> u, state = tx.update(jnp.array([1.0, -3.0, 0.5, 2.0]), tx.init(jnp.zeros(4)))
      >>> print(u, state.residual)
      [ 0. -3.  0.  0.] [1.  0.  0.5 2. ]

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599,
      Algorithms 1 and 2 with top_k.
    """
    name = "baselines.average_top_k"
    _link.require_fraction(fraction, name)

    def exchange(updates, is_voting, state):
        del state
        leaves, treedef = jax.tree.flatten(updates)
        chosen = [_largest(leaf, fraction) for leaf in leaves]
        values = [
            leaf.reshape(-1)[c].astype(jnp.float32) for leaf, c in zip(leaves, chosen, strict=True)
        ]
        flags = is_voting.astype(jnp.uint8)[None]
        payload = [*map(_server.to_bytes, chosen), *map(_server.to_bytes, values), flags]
        # The barrier keeps XLA from repeating the selection for each part of the message.
        message = jax.lax.optimization_barrier(jnp.concatenate(payload))
        rows = message[None] if axis_name is None else _server.gather(message, axis_name)
        voters = jnp.sum(rows[:, -1], dtype=jnp.int32)
        total = _sum_of_rows(rows[:, :-1], [c.size for c in chosen], leaves)
        mean = [_rules.mean_over_voters(t, voters, jnp.float32).reshape(x.shape)
                for t, x in zip(total, leaves, strict=True)]  # fmt: skip
        said = [_scattered(v, c, leaf) for v, c, leaf in zip(values, chosen, leaves, strict=True)]
        return treedef.unflatten(mean), voters, treedef.unflatten(said), None

    return _link.make(
        name,
        axis_name,
        exchange,
        has_feedback=True,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
    )


def _sum_of_rows(rows: jax.Array, sizes: list[int], leaves: list[jax.Array]) -> list[jax.Array]:
    """Adds the workers' sparse leaves, one worker after the other: an order that never changes."""
    num_bytes = 4 * sum(sizes)
    positions = _server.from_bytes(rows[:, :num_bytes], jnp.int32)
    values = _server.from_bytes(rows[:, num_bytes:], jnp.float32)
    totals, start = [], 0
    for size, leaf in zip(sizes, leaves, strict=True):
        part = slice(start, start + size)
        start += size

        def add(total, row):
            return total.at[row[0]].add(row[1], unique_indices=True), None

        zeros = jnp.zeros(leaf.size, jnp.float32)
        totals.append(jax.lax.scan(add, zeros, (positions[:, part], values[:, part]))[0])
    return totals


def _num_kept(size: int, fraction: float) -> int:
    exact = round(fraction * size, 6)  # 0.07 * 100 is 7.000000000000001
    return min(size, max(1, math.ceil(exact)))


def _choose(words: jax.Array, size: int, fraction: float) -> jax.Array:
    """k different coordinates, every set equally likely: where the largest random words stand."""
    if size == 0:
        return jnp.zeros(0, jnp.int32)
    return jax.lax.top_k(_random.random_words(words, size), _num_kept(size, fraction))[1]


def _largest(leaf: jax.Array, fraction: float) -> jax.Array:
    if leaf.size == 0:
        return jnp.zeros(0, jnp.int32)
    return jax.lax.top_k(jnp.abs(leaf.reshape(-1)), _num_kept(leaf.size, fraction))[1]


def _scattered(values: jax.Array, chosen: jax.Array, like: jax.Array) -> jax.Array:
    zeros = jnp.zeros(like.size, values.dtype)
    return zeros.at[chosen].set(values, unique_indices=True).reshape(like.shape)
