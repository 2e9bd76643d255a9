r"""Many steps on each worker alone, then one exchange: k times less traffic on top of one bit.

Every worker starts a round at the same parameters and takes k steps of an inner optimizer on its
own data. What is exchanged is how far it came, as if that were a gradient:

$$ x_n \leftarrow x, \qquad
   x_n \leftarrow x_n + \text{inner}(\nabla f_n(x_n)) \quad (k \text{ times}), \qquad
   x \leftarrow x + \text{outer}(x - x_n), $$

where `outer` is a chain with a network link. With a dense mean and Nesterov momentum outside and
AdamW inside it is DiLoCo; with a vote, sign momentum with local steps.

Sources: Douillard et al., DiLoCo, 2023, arXiv:2311.08105, Algorithm 1; Yu et al., Distributed Sign
Momentum with Local Steps for Training Transformers, 2024, arXiv:2411.17866.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _memory
from signax.signs import _sign


class LocalUpdatesState(NamedTuple):
    """State of `local_updates`."""

    inner_state: Any  # each worker's own
    outer_state: Any  # as of any chain with a network link


class LocalUpdates(optax.GradientTransformationExtraArgs):
    """A transformation whose two halves `make_train_step(..., local_steps=k)` runs apart."""

    inner: optax.GradientTransformationExtraArgs
    outer: optax.GradientTransformationExtraArgs


def local_updates(
    inner: optax.GradientTransformation, outer: optax.GradientTransformation
) -> LocalUpdates:
    r"""Steps by `inner` on each worker alone, and exchanges by `outer` how far each worker came.

    Give it to `make_train_step(..., local_steps=k)` or `simulate_train_step`: one step of these is
    a round of k inner steps and one exchange, so the traffic is that of `outer` divided by k. The
    workers' parameters differ only within a round; between rounds, where checkpoints are made and
    replicas compared, they are equal.

    Args:
      inner: The optimizer of one worker, without a network link, such as `optax.sgd(0.1)` or
        `optax.adamw(1e-3)`. Its state is the worker's own and lives on from round to round.
      outer: A chain with a network link, which is given x - x_n as its gradient. Its learning rate
        is that of a round: `signax.sign_sgd(0.01, axis_name="workers")` moves every coordinate by
        0.01 a round. Error memory and momentum go here, as in any chain.

    Returns:
      A transformation. Its `update` on its own is a round of one inner step. A worker whose way
      ends in a NaN or an infinity abstains in that round (if `outer`'s link abstains), and its
      inner state stays as it was. Integers and keys in it always advance: all workers share them.

    Raises:
      TypeError: If `inner` or `outer` is not an Optax transformation.

    Example:
      >>> tx = signax.local_updates(optax.sgd(0.1), signax.sign_sgd(0.5, axis_name="workers"))
      >>> mesh = signax.make_worker_mesh(2)
      >>> loss = lambda x, batch: jnp.mean((x - batch) ** 2) / 2
      >>> step = signax.make_train_step(loss, tx, mesh, local_steps=4)
      >>> state = signax.init_train_state(jnp.zeros(()), tx, mesh)
      >>> state, metrics = step(state, jnp.full(8, 3.0))
      >>> print(state.params)
      0.5

    References:
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, 2023,
      arXiv:2311.08105, Algorithm 1.

      Yu et al., Distributed Sign Momentum with Local Steps for Training Transformers, 2024,
      arXiv:2411.17866.
    """
    for name, tx in {"inner": inner, "outer": outer}.items():
        _choices.require_transformation(
            tx, "local_updates(optax.sgd(0.1), signax.sign_sgd(0.01, axis_name=...))", name
        )
    inner, outer = map(optax.with_extra_args_support, (inner, outer))

    def init(params):
        return LocalUpdatesState(inner.init(params), outer.init(params))

    def update(updates, state, params=None, **extra_args):
        way, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        way = jax.tree.map(jnp.negative, way)
        return exchange(outer, way, inner_state, state, params, **extra_args)

    tx = LocalUpdates(init, update)
    tx.inner, tx.outer = inner, outer
    return tx


def exchange(
    outer: optax.GradientTransformationExtraArgs,
    way: Any,
    inner_state: Any,
    state: LocalUpdatesState,
    params: Any,
    **extra_args: Any,
) -> tuple[Any, LocalUpdatesState]:
    """Ends a round: `way` is x - x_n, `inner_state` what the inner steps left, `state` the old."""
    inner_state = _memory.kept_where(_sign.all_finite(way), inner_state, state.inner_state)
    updates, outer_state = outer.update(way, state.outer_state, params, **extra_args)
    return updates, LocalUpdatesState(inner_state, outer_state)
