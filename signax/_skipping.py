"""Skipping a step together: one worker's doubt stops all, and nobody waits for the others.

A network link must run on every worker or on none. Optax's wrappers that decide per worker
(`apply_if_finite`, `MultiSteps(should_skip_update_fn=...)`) put it under a branch that workers can
take differently: some enter the exchange and wait for ever for those who did not. Here the decision
is agreed first, the inner update always runs, and its result is taken or dropped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _workers
from signax._shards import _whole


class SkipTogetherState(NamedTuple):
    """State of `skip_together`."""

    inner_state: Any
    num_skipped: jax.Array  # int32[], steps skipped so far; equal on all workers


def skip_together(
    inner: optax.GradientTransformation,
    should_skip: Callable[[optax.Updates, optax.Params | None], jax.typing.ArrayLike],
    *,
    axis_name: _workers.AxisName | None,
) -> optax.GradientTransformationExtraArgs:
    """Skips a step on all workers if one of them wants to.

    At a skipped step the update is zero and every leaf of the inner state stays as it was, also the
    counts: it is as if the step had never been.

    Args:
      inner: The whole chain, network link included.
      should_skip: `should_skip(updates, params) -> bool` scalar, of this worker's own gradient,
        such as `lambda g, params: optax.tree.norm(g) > 100`.
      axis_name: The workers' axis or a tuple of axes; None is one worker.

    Returns:
      A transformation that costs one collective of 32 bits more than `inner`. For gradients that
      are not finite nothing is needed: such a worker abstains.

    Raises:
      ValueError: At update, if an axis is not bound or the predicate is not a scalar.

    Example:
      >>> tx = signax.skip_together(
      ...   signax.sign_sgd(0.1), lambda g, params: optax.tree.norm(g) > 10, axis_name=None
      ... )
      >>> updates, state = tx.update(jnp.array([100.0]), tx.init(jnp.zeros(1)))
      >>> print(updates, state.num_skipped)
      [0.] 1
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return SkipTogetherState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        _workers.require_bound(axis_name, "skip_together")
        doubt = jnp.asarray(should_skip(updates, params))
        if doubt.shape != ():
            raise ValueError(
                f"signax.skip_together: should_skip returned an array of shape {doubt.shape}; it"
                " must return one bool for the whole tree, such as optax.tree.norm(updates) > 100."
            )
        is_skipped = _any_worker(doubt, axis_name)
        new_updates, new_state = inner.update(updates, state.inner_state, params, **extra_args)
        kept = jax.tree.map(
            lambda new, old: jnp.where(is_skipped, old, new), new_state, state.inner_state
        )
        zeroed = jax.tree.map(lambda u: jnp.where(is_skipped, jnp.zeros_like(u), u), new_updates)
        return zeroed, SkipTogetherState(kept, state.num_skipped + is_skipped.astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)


def _any_worker(doubt: jax.Array, axis_name: _workers.AxisName | None) -> jax.Array:
    doubt = _whole.largest(doubt.astype(jnp.int32))
    if axis_name is None:
        return doubt > 0
    doubt = _workers.as_varying(doubt.astype(jnp.int32), axis_name)
    return jax.lax.pmax(doubt, axis_name) > 0
