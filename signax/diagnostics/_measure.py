"""Reading the stream: the reference from its first half (or given), the sums from the rest."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signax.diagnostics import _draws, _sums


class Measured(NamedTuple):
    """The sums of a stream, and what they were measured against."""

    sums: _sums.Sums
    reference: _sums.Reference
    reference_draws: float  # draws that the reference is the mean of, all workers; inf if given
    described: str
    num_nonfinite: int
    last_batch: Any


def measure(
    draw: Callable,
    params: Any,
    stream: Iterator,
    tree: _draws.Tree,
    num_workers: int,
    given: Any,
    num_batches: int,
) -> Measured:
    """One pass over the stream."""
    first_half = 0 if given is not None else num_batches // 2
    total, num_read, batch = _mean_of(draw, params, stream, num_workers, tree, first_half)
    if given is None:
        _draws.require_enough(num_read if num_read < first_half else num_batches, num_batches)
        _require_finite(total[1])
        rows, draws = total[0] / total[1][:, None], float(jnp.sum(total[1]))
        described = f"mean of {first_half} other batches"
    else:
        rows, draws, described = _given(given, params, num_workers), float("inf"), "given, exact"
    mean = jnp.mean(rows, axis=0)
    if not np.any(mean):
        raise ValueError(
            "signax.diagnostics.examine: the gradient is zero in every coordinate, so no sign of it"
            " can be right. The loss does not depend on the parameters, or this is a stationary"
            " point: examine another."
        )
    unit, sums = None, _sums.empty(num_workers, tree)
    add = jax.jit(partial(_draw_and_add, draw, tree), donate_argnums=0)
    for batch in stream:
        num_read += 1
        if unit is None:
            # An array in the closure would be a constant, and XLA would fold it for seconds.
            unit = jax.jit(lambda p, b, r: _sums.unit_of(draw(p, b), r, tree))(params, batch, rows)
        sums = add(sums, params, batch, _sums.Reference(rows, unit, mean))
    _draws.require_enough(num_read, num_batches)
    if unit is None:
        raise ValueError(
            f"signax.diagnostics.examine: the stream ended after {num_read} batches, all of them"
            f" needed for the reference: write num_batches={num_read} (half of them are)."
        )
    _require_finite(sums.draws)
    absent = int(jnp.sum(sums.nonfinite)) + int(jnp.sum(total[2]))
    reference = _sums.Reference(rows, unit, mean)
    return Measured(sums, reference, draws, described, absent, batch)


def _draw_and_add(draw, tree, sums, params, batch, reference):
    return _sums.add(sums, draw(params, batch), reference, tree)


def _mean_of(draw, params, stream, num_workers, tree, num_batches):
    counts = jnp.zeros(num_workers, jnp.int32)
    total = (jnp.zeros((num_workers, tree.bounds[-1]), jnp.float32), counts, counts)
    add = jax.jit(lambda t, p, b: _sums.add_to_mean(t, draw(p, b)))
    num_read, batch = 0, None
    for batch in itertools.islice(stream, num_batches):
        total, num_read = add(total, params, batch), num_read + 1
    return total, num_read, batch


def _require_finite(draws: jax.Array) -> None:
    silent = np.flatnonzero(np.asarray(draws) < 2)
    if silent.size:
        raise ValueError(
            f"signax.diagnostics.examine: worker {silent[0]} has fewer than two finite gradients"
            " among these batches, so nothing can be said about its signs. Find the NaN first"
            " (jax_debug_nans)."
        )


def _given(reference: Any, params: Any, num_workers: int) -> jax.Array:
    """The reference as rows [M, d]."""
    if jax.tree.structure(reference) != jax.tree.structure(params):
        raise ValueError(
            "signax.diagnostics.examine: reference must be a tree like params, the gradient there,"
            f" got {jax.tree.structure(reference)}."
        )

    def rows(path, x, p):
        x = np.asarray(x)
        if x.shape == jnp.shape(p):
            return np.broadcast_to(x, (num_workers, *x.shape))
        if x.shape == (num_workers, *jnp.shape(p)):
            return x
        raise ValueError(
            f"signax.diagnostics.examine: reference{jax.tree_util.keystr(path)} has shape"
            f" {x.shape}; it must be that of the parameter, {jnp.shape(p)}, or with a"
            f" leading axis of {num_workers} for the workers."
        )

    rows_tree = jax.tree_util.tree_map_with_path(rows, reference, params)
    matrix = _draws.rows_of(rows_tree, num_workers)
    if not np.all(np.isfinite(matrix)):
        raise ValueError("signax.diagnostics.examine: reference holds a NaN or an infinity.")
    return matrix
