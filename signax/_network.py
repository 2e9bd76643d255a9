"""What every link over the network has: its state, its checks, and what a NaN does to it."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from signax import _workers
from signax.signs import _random, _sign

OnNonfinite = Literal["abstain", "propagate", "error"]


class VoteState(NamedTuple):
    """State of a network link: equal on all workers."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]
    num_abstained: jax.Array  # int32[], workers who did not vote at the last step


def init_state(params: Any, key: jax.typing.ArrayLike) -> VoteState:
    del params
    zero = jnp.zeros((), jnp.int32)
    return VoteState(zero, _random.key_words(key), jnp.zeros_like(zero))


def next_state(state: Any, voters: jax.Array, axis_name: _workers.AxisName | None) -> Any:
    # The count is only an address: it may wrap after 2^32 steps.
    return state._replace(
        count=state.count + 1, num_abstained=_workers.num_workers(axis_name) - voters
    )


def nothing_to_say(updates: Any, state: Any) -> tuple[Any, Any]:
    """The step of a tree without coordinates, made anew: JAX types its leaves as replicated."""
    nothing = jax.tree.map(lambda u: jnp.zeros(jnp.shape(u), jnp.result_type(u)), updates)
    return nothing, state._replace(count=state.count + 1)


def handle_nonfinite(
    updates: Any, num_absent: jax.Array, on_nonfinite: OnNonfinite, name: str
) -> Any:
    if on_nonfinite == "propagate":
        return jax.tree.map(
            lambda u: jnp.where(num_absent > 0, jnp.nan, u).astype(u.dtype), updates
        )
    if on_nonfinite == "error":
        jax.debug.callback(functools.partial(_raise_if_absent, name=name), num_absent)
    return updates


def _raise_if_absent(num_absent: Any, name: str) -> None:
    if num_absent > 0:
        raise FloatingPointError(
            f"signax.{name}: a NaN or an infinity in the updates of {num_absent} worker(s) at this"
            ' step. With on_nonfinite="abstain" these workers would not vote and training would go'
            " on; jax_debug_nans finds where the first NaN arises."
        )


def check_updates(updates: Any, axis_name: _workers.AxisName | None, name: str) -> None:
    _workers.require_bound(axis_name, name)
    _sign.require_real(updates, name)
    _workers.require_varying(updates, axis_name, name)
