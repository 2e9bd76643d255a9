"""What every baseline's link does as those of the sign methods do: check, abstain, remember."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signax import _choices, _memory, _network, _workers
from signax._shards import _nesting, _whole
from signax.signs import _sign

# updates in float32 or wider, whether this worker counts, state -> mean, voters, said, memory
Exchange = Callable[[Any, jax.Array, Any], tuple[Any, jax.Array, Any, Any]]


class LinkState(NamedTuple):
    """State of a baseline's network link."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]
    num_abstained: jax.Array  # int32[], workers left out of the mean at the last step
    residual: Any = None  # e, like the parameters, this worker's own; None without error feedback
    memory: Any = None  # what else a method keeps, equal on all workers


def make(
    name: str,
    axis_name: _workers.AxisName | None,
    exchange: Exchange,
    *,
    has_feedback: bool,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    accumulator_dtype: Any | None = None,
    init_memory: Callable[[Any, jax.Array], Any] = lambda params, key: None,
) -> optax.GradientTransformation:
    """A link whose mean is taken by `exchange`: p = u + e, e' = p - said, of voters alone."""
    _choices.require(on_nonfinite, _network.OnNonfinite, name, "on_nonfinite")

    def init(params):
        state = LinkState(*_network.init_state(params, key))
        if has_feedback:
            residual = optax.tree.zeros_like(params, dtype=accumulator_dtype)
            state = state._replace(residual=residual)
        return state._replace(memory=init_memory(params, state.key))

    @_nesting.on_shards
    def update(updates, state):
        _network.check_updates(updates, axis_name, name)
        _whole.require_told(updates, axis_name, name)
        _whole.require_whole(
            updates,
            name,
            "The baselines are for comparison on models that fit one device: leave the leaves"
            " whole (PartitionSpec()), or use signax.compressed_mean or a vote.",
        )
        if not any(jnp.size(u) for u in jax.tree.leaves(updates)):
            return _network.nothing_to_say(updates, state)
        with jax.named_scope(f"signax.{name}"):
            meant = _memory.wide(updates)
            if has_feedback:
                _memory.require_made_for(updates, state.residual, name)
                meant = jax.tree.map(jnp.add, meant, _memory.wide(state.residual))
            is_voting = _sign.all_finite(updates, meant)
            # Zeros in place of NaN: an absent worker's numbers still pass through the sums.
            kept = jax.tree.map(lambda p: jnp.where(is_voting, p, 0.0), meant)
            mean, voters, said, memory = exchange(kept, is_voting, state)
            if has_feedback:
                state = state._replace(residual=_left_over(meant, said, is_voting, state.residual))
            mean = optax.tree.cast_like(mean, updates)
            num_absent = _workers.num_workers(axis_name) - voters
            mean = _network.handle_nonfinite(mean, num_absent, on_nonfinite, name)
            return mean, _network.next_state(state._replace(memory=memory), voters, axis_name)

    return optax.GradientTransformation(init, update)


def _left_over(meant: Any, said: Any, is_voting: jax.Array, residual: Any) -> Any:
    def next_residual(p, s, e):
        return jnp.where(is_voting, (p - s).astype(e.dtype), e)

    return jax.tree.map(next_residual, meant, said, residual)


def all_reduce(
    parts: list[jax.Array], is_voting: jax.Array | None, axis_name: _workers.AxisName | None
) -> tuple[list[jax.Array], jax.Array]:
    """Sums arrays over the workers in one float32 all-reduce; the number of voters rides along."""
    shapes = [part.shape for part in parts]
    flags = [] if is_voting is None else [is_voting.astype(jnp.float32)[None]]
    flat = jnp.concatenate([*(part.astype(jnp.float32).reshape(-1) for part in parts), *flags])
    total = flat if axis_name is None else jax.lax.psum(flat, axis_name)
    *cut, rest = jnp.split(total, np.cumsum([part.size for part in parts], dtype=int))
    voters = jnp.zeros((), jnp.int32) if is_voting is None else rest[0].astype(jnp.int32)
    return [part.reshape(shape) for part, shape in zip(cut, shapes, strict=True)], voters


def require_positive_integer(value: Any, function: str, argument: str, what: str) -> None:
    """Raises a `ValueError` unless the value is a whole number of at least 1, and no array."""
    _choices.require_static(value, function, argument)
    _choices.require_positive_integer(value, function, argument, what)


def require_fraction(value: Any, function: str) -> None:
    """Raises a `ValueError` unless the value is a share of the coordinates, in (0, 1]."""
    _choices.require_static(value, function, "fraction")
    if (
        not isinstance(value, (int, float, np.number))
        or isinstance(value, bool)
        or not 0 < value <= 1
    ):
        raise ValueError(
            f"signax.{function}: fraction must be a number in (0, 1], got {value!r}. It is the "
            "share of each leaf's coordinates that is sent at a step; 0.01 is usual."
        )
