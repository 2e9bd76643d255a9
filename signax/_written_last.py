"""Parameters and memories are written when all else of a step is known, and so in place."""

from typing import Any

import jax
import jax.numpy as jnp

from signax import _specs
from signax._worker_step import TrainState


def written_last(
    state: TrainState, specs: Any, axes: tuple[str, ...], metrics: Any
) -> tuple[Any, Any]:
    """The parameters and the optimizer's state, which wait for the metrics.

    Whatever reads the old ones is on the way to the exchange or to the loss. XLA does not see that
    it comes first, and would copy them for it; but it sees that a value needs the metrics, which
    the network brings, and cannot know that their least is always at most their largest.
    """
    known = jax.lax.bitcast_convert_type(jnp.stack(list(metrics.values())), jnp.int32)
    is_known = jnp.min(known) <= jnp.max(known)

    def wait(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.where(is_known, x, jnp.zeros_like(x)) if is_float else x

    params = jax.tree.map(wait, state.params)
    if "num_abstained" not in metrics:
        return params, state.opt_state
    opt_state = jax.tree.map(
        lambda spec, x: wait(x) if _specs.is_local(spec, axes) else x,
        specs, state.opt_state, is_leaf=_specs.is_spec,
    )  # fmt: skip
    return params, opt_state
