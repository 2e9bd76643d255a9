"""Dense steps first: compression starts when the gradients have stopped changing fast.

The switch is a step count, which all workers share, so all of them take the same branch and meet in
the same collectives. A branch that workers could take differently would hang.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from signax import _choices, _workers


class WarmupState(NamedTuple):
    """State of `warmup`."""

    count: jax.Array  # int32[], steps so far; equal on all workers
    dense_state: Any
    inner_state: Any


def warmup(
    dense_steps: jax.typing.ArrayLike,
    inner: optax.GradientTransformation,
    *,
    dense: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs one transformation for the first steps and another one from then on.

    $$ \text{update}_k = \begin{cases} \text{dense} & k < K \\ \text{inner} & k \ge K \end{cases} $$

    Around one link of a chain, to average in full before compression starts::

        optax.chain(
            signax.warmup(1000, signax.compressed_mean(axis), dense=signax.average_gradients(axis)),
            optax.adamw(1e-3),
        )

    or around whole algorithms: `warmup(1000, ssdm(...), dense=dense_sgd(...))`. Only the one whose
    turn it is runs, and only what it sends is sent. The state of the other stays as it is: the
    schedules and memories of `inner` start at step K.

    Args:
      dense_steps: K, the number of dense steps; 0 is none.
      inner: What runs from step K on, network link included.
      dense: What runs before, network link included: `average_gradients` or `dense_sgd`.

    Returns:
      A transformation. Both must return updates of the same shapes and dtypes. NaN, zero and
      abstention are as in the one that runs.

    Raises:
      ValueError: If `dense_steps` is negative.
      TypeError: If it is no number.

    Example:
      >>> tx = signax.warmup(1, signax.sign_sgd(0.5), dense=signax.dense_sgd(1.0))
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...   updates, state = tx.update(jnp.array([3.0]), state)
      ...   print(updates)
      [-3.]
      [-0.5]
    """
    _choices.require_number(
        dense_steps, "warmup", "dense_steps", "Write signax.warmup(1000, inner, dense=...)."
    )
    if not isinstance(dense_steps, Tracer) and not dense_steps >= 0:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"signax.warmup: dense_steps must not be negative, got {dense_steps}.")
    dense, inner = map(optax.with_extra_args_support, (dense, inner))

    def init(params):
        return WarmupState(jnp.zeros((), jnp.int32), dense.init(params), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        def run_dense(updates, dense_state, inner_state):
            new, dense_state = dense.update(updates, dense_state, params, **extra_args)
            return new, dense_state, nobody_abstained(inner_state)

        def run_inner(updates, dense_state, inner_state):
            new, inner_state = inner.update(updates, inner_state, params, **extra_args)
            return new, nobody_abstained(dense_state), inner_state

        updates = jax.tree.map(jnp.asarray, updates)
        updates, dense_state, inner_state = agreed_cond(
            state.count < dense_steps, run_dense, run_inner, updates, *state[1:]
        )
        # The count stays where it cannot wrap and start another warm-up.
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, WarmupState(count, dense_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def agreed_cond(is_first: Any, first: Callable, second: Callable, *args: Any) -> Any:
    """`jax.lax.cond` on a predicate that is equal on all workers; its branches may use collectives.

    JAX asks that both branches return the same types, and what one branch passes on as equal on all
    workers may be a worker's own in the other: each result gets the axes of both.
    """
    varying = jax.tree.map(frozenset.union, *(_varying_results(f, args) for f in (first, second)))

    def widened(branch):
        return lambda *args: jax.tree.map(_with_axes, branch(*args), varying)

    return jax.lax.cond(is_first, widened(first), widened(second), *args)


def _varying_results(branch: Callable, args: Any) -> Any:
    """The axes over which each result of `branch` is typed as differing."""
    found = []

    def traced(*args):
        results = branch(*args)
        found.append(jax.tree.map(_workers.varying_axes, results))
        return results

    jax.eval_shape(traced, *args)
    return found[0]


def _with_axes(x: jax.Array, axes: frozenset) -> jax.Array:
    missing = tuple(axes - _workers.varying_axes(x))
    return _workers.as_varying(x, missing) if missing else x


def nobody_abstained(state: Any) -> Any:
    """The state of what does not run: its last count of absent workers is not this step's."""

    def reset(path, x):
        is_count = jax.tree_util.keystr(path[-1:]) == ".num_abstained"
        return jnp.zeros_like(x) if is_count else x

    return jax.tree_util.tree_map_with_path(reset, state)
