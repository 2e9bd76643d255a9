"""Training part of a tree: only the trainable leaves vote, the others get zeros.

`optax.masked` around a network link lets the raw gradient of the leaves that it leaves out pass, a
different one on each worker; `optax.selective_transform` gives zeros that JAX types as the worker's
own, so that a typed step refuses them. Here the frozen leaves get constants.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def freeze(
    inner: optax.GradientTransformation, freeze_mask: Any | Callable[[optax.Params], Any]
) -> optax.GradientTransformationExtraArgs:
    """Applies a chain with a network link to the trainable leaves and keeps the others as they are.

    Frozen leaves send nothing, keep no memory and get an update of zero, equal on all workers.

    Args:
      inner: The whole chain, network link included.
      freeze_mask: A tree of bools like the parameters or a prefix of them, True where frozen; or a
        function from the parameters to one.

    Returns:
      A transformation with the state of `optax.partition`.

    Raises:
      ValueError: At init and update, if `freeze_mask` is no prefix of the parameters.

    Example:
      >>> tx = signax.freeze(signax.sign_sgd(0.1), {"head": False, "body": True})
      >>> params = {"head": jnp.ones(2), "body": jnp.ones(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates["head"], updates["body"])
      [-0.1 -0.1] [0. 0.]
    """

    def labels(params):
        mask = freeze_mask(params) if callable(freeze_mask) else freeze_mask
        return jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trainable", mask)

    return optax.partition({"trainable": inner, "frozen": _constant_zeros()}, labels)


def _constant_zeros() -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        # `zeros_like` would carry over the type of the gradient, which differs between workers.
        return jax.tree.map(lambda u: jnp.zeros(jnp.shape(u), jnp.result_type(u)), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
