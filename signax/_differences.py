r"""Compressed differences: workers say how their gradients changed, not what they are.

$$ c_n = Q(g_n - h_n), \qquad h_n \leftarrow h_n + \alpha c_n, \qquad
   u = h + \frac{1}{M} \sum_{n=1}^{M} c_n, \qquad
   h \leftarrow h + \frac{\alpha}{M} \sum_{n=1}^{M} c_n $$

h_n is what everyone knows of worker n's gradient, and h their mean, which all workers hold. As
training settles the differences vanish and with them the error of Q, however different the workers
are: at the solution their gradients are not zero, but the changes are. With alpha = 1 and a Q that
shrinks what is left over it is EF21; with an unbiased Q and a small alpha it is DIANA.

A worker who abstains says nothing and its h_n stays, so h moves by what the others said, divided by
M and not by their number: h is the mean of all h_n at every step.

Sources: Richtarik, Sokolov and Fatkhullin, "EF21", NeurIPS 2021, arXiv:2106.05203; Mishchenko,
Gorbunov, Takac and Richtarik, "Distributed Learning with Compressed Gradient Differences", 2019,
arXiv:1901.09269.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _memory, _network, _scaled, _votes, _workers
from signax._shards import _nesting
from signax.signs import _sign
from signax.wire import _server


class DifferencesState(NamedTuple):
    """State of compressed differences. Estimates are at least float32."""

    estimate: optax.Updates  # h_n, like the parameters: this worker's own
    mean_estimate: optax.Updates  # h, like the parameters: equal on all workers
    compressor: Any
    link: Any


class Compressor(NamedTuple):
    """Q, which says a sign for each coordinate and a scale for each leaf."""

    init: Callable[[Any], Any]
    # updates, state -> signs (NaN on a worker who abstains), scales, state
    apply: Callable[[Any, Any], tuple[Any, Any, Any]]
    is_shared: bool  # whether the scales are the same on all workers


def compressed_differences(
    compressor: Compressor,
    alpha: jax.typing.ArrayLike,
    axis_name: _workers.AxisName | None,
    key: jax.typing.ArrayLike,
    wire: _server.Wire,
    on_nonfinite: _network.OnNonfinite,
    name: str,
) -> optax.GradientTransformation:
    """The network link of EF21 and DIANA: its update is u above, the same on all workers."""
    if compressor.is_shared:
        average = _votes.average_signs(axis_name, key=key, wire=wire, on_nonfinite=on_nonfinite)
    else:
        _require_packed(wire, name)
        average = _scaled.average_scaled_signs(axis_name, key=key, on_nonfinite=on_nonfinite)

    def init(params):
        zeros = _memory.wide(optax.tree.zeros_like(params))
        return DifferencesState(zeros, zeros, compressor.init(params), average.init(params))

    @_nesting.on_shards_with(alpha)
    def update(updates, state, alpha):
        _network.check_updates(updates, axis_name, name)
        _memory.require_made_for(updates, state.estimate, name)
        change = jax.tree.map(jnp.subtract, _memory.wide(updates), state.estimate)
        signs, scales, compressor_state = compressor.apply(change, state.compressor)
        said = jax.tree.map(jnp.multiply, signs, scales)
        link: Any
        if compressor.is_shared:
            # Signs are zero where every scale is: such a worker has said "no change" and counts.
            spoken = jax.tree.map(lambda s: jnp.where(s == 0, jnp.ones_like(s), s), signs)
            mean_sign, link = average.update(spoken, state.link)
            mean = jax.tree.map(jnp.multiply, mean_sign, scales)
        else:
            mean, link = average.update(said, state.link)
        share = _share_of_voters(link.num_abstained, axis_name)
        mean = jax.tree.map(lambda m: m * share.astype(m.dtype), mean)  # over M: see above
        estimate = _moved(state.estimate, said, alpha)
        if on_nonfinite != "propagate":
            estimate = _memory.kept_where(_sign.all_finite(said), estimate, state.estimate)
        is_silent = (share == 0) & (on_nonfinite != "propagate")
        step = jax.tree.map(
            lambda h, m: jnp.where(is_silent, jnp.zeros_like(h), h + m), state.mean_estimate, mean
        )
        mean_estimate = _moved(state.mean_estimate, mean, alpha)
        state = DifferencesState(estimate, mean_estimate, compressor_state, link)
        return optax.tree.cast_like(step, updates), state

    return optax.GradientTransformation(init, update)


def _moved(estimate: Any, said: Any, alpha: jax.typing.ArrayLike) -> Any:
    return jax.tree.map(lambda h, c: h + jnp.asarray(alpha, h.dtype) * c, estimate, said)


def _share_of_voters(num_abstained: jax.Array, axis_name: _workers.AxisName | None) -> jax.Array:
    num_workers = _workers.num_workers(axis_name)
    return (num_workers - num_abstained).astype(jnp.float32) / num_workers


def _require_packed(wire: _server.Wire, name: str) -> None:
    if wire != "packed":
        raise ValueError(
            f"signax.{name}: with a scale of its own for each worker the servers add real numbers,"
            f' which travel on the packed wire alone, got wire={wire!r}. Write wire="packed", or'
            " share the scale."
        )
