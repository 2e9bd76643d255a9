r"""One bit and two numbers: each coordinate becomes the mean of its side of its column.

$$ Q(p)_i = \begin{cases} a_+ = \operatorname{mean} \{ p_j : p_j \ge 0 \} & p_i \ge 0 \\
                          a_- = \operatorname{mean} \{ p_j : p_j < 0 \} & p_i < 0 \end{cases} $$

over the coordinates j of the same column. For a threshold of 0 these are the values with the least
squared error. What a column is follows the layout of JAX's layers, whose last axis is the output:

    leaf                       columns
    (in, out), a dense kernel  out, each of `in` weights into one output
    (h, w, in, out), a conv    out, each of h * w * in weights
    (d,), a bias or a norm     one, of d coordinates
    (), a scalar               one, of one coordinate: it is said exactly

Source: Seide, Fu, Droppo, Li and Yu, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs", Interspeech 2014, sections 3.1 and 3.2.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _network, _reductions, _scaled, _workers
from signax._shards import _nesting, _whole
from signax.signs import _sign
from signax.wire import _server, _slices


def scale_by_column_means() -> optax.GradientTransformation:
    r"""Replaces each coordinate by the mean of its side of its column, positive or negative.

    $$ u_i = \operatorname{mean} \{ g_j : j \text{ in } i\text{'s column}, \;
       (g_j \ge 0) = (g_i \ge 0) \} $$

    A column is all but the last axis of a leaf: the weights into one output of a layer. A vector is
    one column, a scalar is its own. It stands before `average_column_means`, inside
    `error_feedback`.

    Returns:
      A transformation whose updates hold at most two values in each column, of the dtype and shape
      of the gradient, means in float32. Zero is on the positive side, so a column that is all zero
      stays so. A tree with a NaN or an infinity becomes NaN everywhere and abstains. An empty tree
      passes.

    Raises:
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.scale_by_column_means()
      >>> g = jnp.array([[1.0, -4.0], [3.0, -2.0], [-1.0, 5.0]])
      >>> print(tx.update(g, tx.init(g))[0])
      [[ 2. -3.]
       [ 2. -3.]
       [-1.  5.]]

    References:
      Seide, Fu, Droppo, Li and Yu, 1-bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs, Interspeech 2014, section 3.1.
    """

    @_nesting.on_shards
    def update(updates, state):
        _sign.require_real(updates, "scale_by_column_means")
        updates = jax.tree.map(jnp.asarray, updates)
        is_finite = _sign.all_finite(updates)

        def say(g):
            said = _leaf_of_rows(_side_means(_rows_of_columns(g)), g)
            return jnp.where(is_finite, said, jnp.nan).astype(g.dtype)

        return jax.tree.map(say, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def average_column_means(
    axis_name: _workers.AxisName | None,
    *,
    down_dtype: jax.typing.DTypeLike = "float32",
    on_nonfinite: _network.OnNonfinite = "abstain",
) -> optax.GradientTransformation:
    r"""The mean of what the workers say, where each says at most two values in a column.

    $$ u = \frac{1}{M} \sum_{n=1}^{M} u_n $$

    Up go one bit per coordinate and two floats per column, in one all_to_all: a column's largest
    and smallest value, and which of the two it is. Each column is filled up to whole bytes. Worker
    j takes the mean for slice j of the coordinates, in float32 and always in the order of the
    workers, and answers in one all_gather with 32 or 16 bits per coordinate.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker.
      down_dtype: The dtype in which the mean travels down: float32 or bfloat16.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. Each
      column must hold at most two values, as after `scale_by_column_means`. A worker whose tree
      holds a NaN or an infinity abstains: the mean is over the others, and zero if there are none.
      An empty tree passes.

    Raises:
      ValueError: For a `down_dtype` that is not floating or an unknown `on_nonfinite`; at update,
        if an axis is not bound, or if the gradients were already summed over the workers.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.average_column_means("workers")
      >>> mean = lambda u: tx.update(u, tx.init(u))[0]
      >>> said = jnp.array([[2.0, 2.0, -1.0], [4.0, -3.0, -3.0]])
      >>> print(jax.vmap(mean, axis_name="workers", out_axes=None)(said))
      [ 3.  -0.5 -2. ]

    References:
      Seide, Fu, Droppo, Li and Yu, 1-bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs, Interspeech 2014, section 3.2.
    """
    name = "average_column_means"
    _choices.require(on_nonfinite, _network.OnNonfinite, name, "on_nonfinite")
    _scaled.require_floating(down_dtype, name)

    @_nesting.on_shards
    def update(updates, state):
        _network.check_updates(updates, axis_name, name)
        _whole.require_told(updates, axis_name, name)
        updates = jax.tree.map(jnp.asarray, updates)
        columns = [_rows_of_columns(leaf) for leaf in jax.tree.leaves(updates)]
        sizes = [size for c in columns for size in [c.shape[1]] * c.shape[0]]
        slices = _slices.cut(sizes, _workers.num_workers(axis_name))
        if slices.num_words == 0:
            return _network.nothing_to_say(updates, state)
        with jax.named_scope(f"signax.{name}"):
            bits, values = _pack(columns)
            answers, _ = _server.serve(
                bits,
                values,
                _sign.all_finite(updates),
                slices,
                functools.partial(_answer, slices, _workers.worker_index(axis_name), down_dtype),
                axis_name,
            )
            answers, voters = _scaled.without_voters(answers)
            voters = _whole.largest(voters)
            means = _server.from_bytes(answers, down_dtype).reshape(-1, 8)
            mean = _whole.as_copies(_unpack(means, columns, updates), _whole.shards_of(updates))
            num_absent = _workers.num_workers(axis_name) - voters
            mean = _network.handle_nonfinite(mean, num_absent, on_nonfinite, name)
            return mean, _network.next_state(state, voters, axis_name)

    return optax.GradientTransformation(functools.partial(_network.init_state, key=0), update)


def _rows_of_columns(leaf: jax.Array) -> jax.Array:
    """A leaf's columns as rows, [columns, coordinates of each]."""
    if leaf.ndim < 2:
        return leaf.reshape(1, leaf.size)
    return leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1]).T


def _leaf_of_rows(rows: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_rows_of_columns`."""
    return (rows if like.ndim < 2 else rows.T).reshape(like.shape)


def _side_means(rows: jax.Array) -> jax.Array:
    """Each value as the mean of the values of its row on its side of zero, float32[C, d]."""
    wide = rows.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=1, initial=0.0, keepdims=True)
    # So that no sum leaves float32, at any size of the values.
    unit = _reductions.power_of_two(largest)
    wide, is_positive = wide * (1.0 / unit), rows >= 0

    def mean(side):
        total = jnp.sum(jnp.where(side, wide, 0.0), axis=1, keepdims=True)
        return total / jnp.maximum(jnp.sum(side, axis=1, keepdims=True), 1).astype(jnp.float32)

    return jnp.where(is_positive, mean(is_positive), mean(~is_positive)) * unit


def _pack(columns: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The bits of all columns, each from a byte of its own, and the two values of each: [C, 2]."""
    bits, values = [], []
    for rows in columns:
        wide = rows.astype(jnp.float32)
        low, high = (
            reduce(wide, axis=1, initial=initial)
            for reduce, initial in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
        )
        bits.append(jnp.packbits(wide > low[:, None], axis=1, bitorder="little").reshape(-1))
        values.append(jnp.stack([low, high], axis=1))
    return jnp.concatenate(bits), jnp.concatenate(values)


def _answer(
    slices: _slices.Slices,
    worker: jax.Array,
    down_dtype: jax.typing.DTypeLike,
    received: _server.Received,
) -> tuple[jax.Array, None]:
    """The server's mean of its slice, and how many voted."""
    column = _slices.leaf_of_words(slices, worker)

    def said(row):
        bits, values = row
        is_high = jnp.unpackbits(bits, bitorder="little").reshape(-1, 8) == 1
        low, high = values.reshape(-1, 2)[column].T
        return jnp.where(is_high, high[:, None], low[:, None])

    mean = _scaled.mean_of_workers(said, received)
    return _scaled.with_voters(mean.astype(down_dtype), received.voters), None


def _unpack(means: jax.Array, columns: Sequence[jax.Array], updates: Any) -> Any:
    """The means, [words, 8], as a tree like `updates`."""
    leaves, treedef = jax.tree.flatten(updates)
    results, start = [], 0
    for rows, leaf in zip(columns, leaves, strict=True):
        words = -(-rows.shape[1] // 8)
        stop = start + rows.shape[0] * words
        mean = means[start:stop].reshape(rows.shape[0], 8 * words)[:, : rows.shape[1]]
        results.append(_leaf_of_rows(mean, leaf).astype(leaf.dtype))
        start = stop
    return treedef.unflatten(results)
