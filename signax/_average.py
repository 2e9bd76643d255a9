"""The network link that compresses nothing: what every other one is compared with."""

import functools

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _network, _workers
from signax._shards import _nesting
from signax.signs import _sign


def average_gradients(
    axis_name: _workers.AxisName | None, *, on_nonfinite: _network.OnNonfinite = "abstain"
) -> optax.GradientTransformation:
    r"""The dense baseline: the mean of the workers' gradients, every coordinate in full.

    $$ u = \frac{1}{M} \sum_{n=1}^{M} u_n $$

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker.
      on_nonfinite: "abstain", "propagate" or "error", as for `majority_vote`.

    Returns:
      A transformation that keeps shapes and dtypes; it sends each coordinate in its own dtype
      (`lax.psum`), but float16 as float32: the sum of a few workers would leave its range. A worker
      whose tree holds a NaN or an infinity abstains: the mean is over the others, and zero if there
      are none. `num_abstained` is in the state.

    Raises:
      ValueError: For an unknown `on_nonfinite`; at update, if an axis is not bound, or if the
        gradients were already summed.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.average_gradients("workers")
      >>> mean = lambda g: tx.update(g, tx.init(g))[0]
      >>> print(jax.vmap(mean, axis_name="workers", out_axes=None)(jnp.array([1.0, 2.0])))
      1.5
    """
    name = "average_gradients"
    _choices.require(on_nonfinite, _network.OnNonfinite, name, "on_nonfinite")

    @_nesting.on_shards
    def update(updates, state):
        _network.check_updates(updates, axis_name, name)
        with jax.named_scope(f"signax.{name}"):
            is_voting = _sign.all_finite(updates)
            kept = jax.tree.map(
                lambda u: _addable(jnp.where(is_voting, u, jnp.zeros_like(u))), updates
            )
            voters = is_voting.astype(jnp.int32)
            if axis_name is not None:
                kept, voters = jax.lax.psum((kept, voters), axis_name)
            mean = jax.tree.map(lambda u: u / jnp.maximum(voters, 1).astype(u.dtype), kept)
            mean = optax.tree.cast_like(mean, updates)
            num_absent = _workers.num_workers(axis_name) - voters
            mean = _network.handle_nonfinite(mean, num_absent, on_nonfinite, name)
            return mean, _network.next_state(state, voters, axis_name)

    return optax.GradientTransformation(functools.partial(_network.init_state, key=0), update)


def _addable(u: jax.Array) -> jax.Array:
    return u.astype(jnp.float32) if u.dtype == jnp.float16 else u
