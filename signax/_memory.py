"""What a worker does not forget: momentum that starts at the first gradient, and safe memory.

Memory stands before the network link, so it is the worker's own: M workers hold M momenta. One NaN
would stay in a momentum for ever; `abstaining` keeps it out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from signax import _choices, _network, _workers
from signax.signs import _sign


class EmaFromFirstGradientState(NamedTuple):
    """State of `ema_from_first_gradient`: this worker's own."""

    momentum: optax.Updates  # m, like the parameters
    has_started: jax.Array  # bool[]: m holds a gradient


def ema_from_first_gradient(
    beta: jax.typing.ArrayLike, *, accumulator_dtype: Any | None = None
) -> optax.GradientTransformation:
    r"""Momentum as an exponential moving average that starts at the first gradient.

    $$ m_{-1} = g_0, \qquad m_k = \beta m_{k-1} + (1 - \beta) g_k $$

    so that m_0 = g_0: the first update is the first gradient itself. `optax.ema` starts at zero,
    m_0 = (1 - beta) g_0, and its `debias=True` divides by 1 - beta^(k+1); all three differ.

    Args:
      beta: The decay in [0, 1), the same for all leaves; 0 is no memory.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes. A NaN stays in the momentum: wrap it in
      `abstaining`, as the named algorithms do. An empty tree passes.

    Raises:
      ValueError: If beta is not in [0, 1); at update, if the gradients are not of the shapes that
        init saw, or were already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.ema_from_first_gradient(0.9)
      >>> state = tx.init(jnp.zeros(2))
      >>> m, state = tx.update(jnp.array([1.0, -2.0]), state)
      >>> print(m)
      [ 1. -2.]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Algorithm 3, lines 2 and 6.
    """
    require_decay(beta, "ema_from_first_gradient", "beta")

    def init(params):
        momentum = optax.tree.zeros_like(params, dtype=accumulator_dtype)
        return EmaFromFirstGradientState(momentum, jnp.zeros((), bool))

    def update(updates, state, params=None):
        del params
        _sign.require_real(updates, "ema_from_first_gradient")
        _workers.require_own(updates, _workers.axes_of_memory(state), "ema_from_first_gradient")
        require_made_for(updates, state.momentum, "ema_from_first_gradient")
        gradient, previous = wide(updates), wide(state.momentum)
        averaged = optax.tree.update_moment(gradient, previous, beta, order=1)
        momentum = jax.tree.map(lambda m, g: jnp.where(state.has_started, m, g), averaged, gradient)
        kept = optax.tree.cast_like(momentum, state.momentum)
        out = optax.tree.cast_like(momentum, updates)
        return out, EmaFromFirstGradientState(kept, jnp.ones((), bool))

    return optax.GradientTransformation(init, update)


def abstaining(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keeps a worker's memory as it was at a step whose gradient is not finite.

    At such a step (a NaN or an infinity in what `inner` is given or returns, in any leaf) the new
    state is the old one and every update is NaN: the mark by which the network link knows that this
    worker abstains. At other steps it is `inner`.

    Integers and keys in the state (step counts, PRNG keys) always advance: all workers share them.

    Args:
      inner: A transformation with memory that stands before the network link: a momentum, a
        preconditioner, error feedback.

    Returns:
      A transformation with the state of `inner`. With `jax_debug_nans` a run whose gradients are
      finite is undisturbed; in a jitted step a worker still abstains (no NaN leaves the step), and
      outside of jit JAX raises a `FloatingPointError` where the first NaN arises.

    Raises:
      ValueError: At update, if a leaf of the memory would change its shape.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.abstaining(optax.ema(0.9, debias=False))
      >>> state = tx.init(jnp.zeros(2))
      >>> update, state = tx.update(jnp.array([1.0, jnp.nan]), state)
      >>> print(update, state.ema)
      [nan nan] [0. 0.]
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra_args):
        _sign.require_real(updates, "abstaining")
        _workers.require_own(updates, _workers.axes_of_memory(state), "abstaining")
        new_updates, new_state = inner.update(updates, state, params, **extra_args)
        require_made_for(updates, new_updates, "abstaining")
        _require_same_shapes(new_state, state)
        looked_at = new_updates
        if _is_in(new_updates, new_state):
            # The update is the memory, as a momentum is. To know whether it may be kept it is
            # computed once only to be looked at, and then again where it is kept: a second pass
            # costs less than a candidate as large as the model beside the old momentum.
            seen = jax.lax.optimization_barrier((updates, state))
            looked_at, _ = inner.update(*seen, params, **extra_args)
        is_finite = _sign.all_finite(updates, looked_at)

        def mark(update):
            return jnp.where(is_finite, update, jnp.nan)

        kept_state = kept_where(is_finite, new_state, state)
        return jax.tree.map(mark, _read(new_updates, new_state, kept_state)), kept_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def kept_where(is_good: jax.Array, new_state: Any, old_state: Any) -> Any:
    """The new memory of a worker, or where a bool scalar says so its old one.

    Integers and keys always advance: all workers share them.
    """

    def keep(new, old):
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        is_shared = is_key or jnp.issubdtype(old.dtype, jnp.integer)
        return new if is_shared else jnp.where(is_good, new, old)

    return jax.tree.map(keep, new_state, old_state)


def _is_in(updates: Any, state: Any) -> bool:
    """Whether every update is, as an array and not only in value, a leaf of the state."""
    return {id(u) for u in jax.tree.leaves(updates)} <= {id(s) for s in jax.tree.leaves(state)}


def _read(updates: Any, new_state: Any, kept_state: Any) -> Any:
    """The updates, each that is a leaf of `new_state` read from where it is kept."""
    kept = dict(zip(map(id, jax.tree.leaves(new_state)), jax.tree.leaves(kept_state), strict=True))
    # Without the barrier XLA computes the leaf anew for the reader, from the old memory, of which
    # it then has to make a copy before the new one is written over it.
    return jax.tree.map(
        lambda u: jax.lax.optimization_barrier(kept[id(u)]) if id(u) in kept else u, updates
    )


def require_made_for(updates: Any, memory: Any, function: str) -> None:
    """A memory of other shapes than the gradient's would be broadcast, and the parameters too."""
    if jax.tree.structure(updates) != jax.tree.structure(memory):
        raise ValueError(
            f"signax.{function}: the memory was made for a tree {jax.tree.structure(memory)} and"
            f" the gradients are {jax.tree.structure(updates)}: make the state anew with"
            " tx.init(params)."
        )
    for (path, g), m in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(memory), strict=True
    ):
        if jnp.shape(g) != jnp.shape(m):
            where = jax.tree_util.keystr(path) or "(the whole tree)"
            cure = "make the state anew with tx.init(params), for the shapes of the gradients."
            if jnp.shape(m) == (1, *jnp.shape(g)):
                cure = (
                    "in your own jax.shard_map take this worker's row first, opt_state ="
                    " signax.to_worker(opt_state, specs), and give it back with signax.from_worker."
                )
            raise ValueError(
                f"signax.{function}: the memory at {where} has shape {jnp.shape(m)} and its"
                f" gradient {jnp.shape(g)}: {cure}"
            )


def _require_same_shapes(new_state: Any, state: Any) -> None:
    """A gradient of one row would be broadcast against its memory, and the memory lost."""
    before = jax.tree.leaves(state)
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(new_state), before, strict=True
    ):
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"signax.abstaining: the memory at {jax.tree_util.keystr(path)} was made for"
                f" parameters of shape {jnp.shape(old)}, and this step would make it"
                f" {jnp.shape(new)}: the gradients are not those of the parameters that init saw."
                " Pass gradients of these shapes, or make the state anew with tx.init(params)."
            )


def guarded(
    memory: optax.GradientTransformation, on_nonfinite: _network.OnNonfinite
) -> optax.GradientTransformation:
    """The worker's memory, kept from a NaN unless the user wants to see it spread."""
    return memory if on_nonfinite == "propagate" else abstaining(memory)


def wide(tree: Any) -> Any:
    """At least float32: (1 - beta) g in bfloat16 would be wrong by up to 0.4 %."""
    tree = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: x.astype(np.promote_types(x.dtype, np.float32)), tree)


def require_decay(value: Any, function: str, argument: str) -> None:
    """Raises a `ValueError` for a concrete decay outside [0, 1); a traced one passes."""
    _choices.require_number(value, function, argument)
    if not isinstance(value, Tracer) and not 0 <= value < 1:
        raise ValueError(
            f"signax.{function}: {argument} must be in [0, 1), got {value}. It is the share of the"
            f" old momentum that stays at each step; {argument}=0 is no memory, 0.9 is usual."
        )
