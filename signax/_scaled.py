r"""The network link for signs that have a size: each worker says +c or -c, and the mean is taken.

$$ u = \frac{1}{M} \sum_{n=1}^{M} c_n s_n, \qquad s_n \in \{-1, +1\}^d $$

The scales differ between workers, so this is no count of votes: each server adds up real numbers
for its slice of the coordinates, always in the order of the workers, so that all mappings round
alike. What goes down is that mean, or (both ways one bit) its own scaled sign, and what the server
could not say, in the dtype of the leaf, stays in an error memory of its own:

$$ v = u + e, \qquad q = c \operatorname{sign} v, \quad c = \operatorname{mean} |v|,
   \qquad e' = v - q. $$

Sources: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, arXiv:1901.09847; Tang et
al., "DoubleSqueeze", ICML 2019, arXiv:1905.05957.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signax import _choices, _coins, _network, _rules, _workers
from signax._shards import _cut, _nesting, _whole
from signax.wire import _ballot, _bits, _contiguous, _server, _slices


class ScaledVoteState(NamedTuple):
    """State of `average_scaled_signs`."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]
    num_abstained: jax.Array  # int32[], workers left out of the mean at the last step
    server_residual: Any  # float32[S, 8]: this worker's slice; None if one way only


def average_scaled_signs(
    axis_name: _workers.AxisName | None,
    *,
    bidirectional: bool = False,
    down_dtype: jax.typing.DTypeLike = "float32",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
) -> optax.GradientTransformation:
    r"""The mean of what the workers say, where each says +c or -c in a leaf.

    $$ u = \frac{1}{M} \sum_{n=1}^{M} c_n s_n, \qquad \text{bidirectional:} \quad
       v = u + e, \quad u' = \tfrac{1}{d} \lVert v \rVert_1 \operatorname{sign} v,
       \quad e' = v - u' $$

    It stands behind `scale_by_stochastic_sign(..., rescale=True)`, or behind `error_feedback` of
    `scale_by_scaled_sign`. Up go one bit per coordinate and a scale per leaf, in one all_to_all.
    Worker j is the server of slice j of the coordinates, takes the mean there in float32, and
    answers in one all_gather: with the mean (32 or 16 bits per coordinate), or with `bidirectional`
    with one bit per coordinate and a scale for each leaf's part in its slice.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker.
      bidirectional: Whether the servers too answer in scaled signs, with an error memory. This
        memory lies in slices on the workers, so `init` must then run where the axis is bound:
        `init_train_state` and `init_opt_state` see to it.
      down_dtype: The dtype in which the mean travels down if not bidirectional: float32, or
        bfloat16 for half of it.
      key: An integer seed or a PRNG key, the same on all workers, for the coin that a server throws
        where v is exactly zero.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. Each
      leaf must hold exactly +c and -c for a c of its own: c is read off as the largest magnitude,
      and what is not positive is -c. A worker whose tree is zero counts, as in every mean; one
      whose tree holds a NaN or an infinity abstains; without any other the update is zero and the
      server's memory stays. An empty tree passes.

    Raises:
      ValueError: For a `down_dtype` that is not floating, has less than 16 bits, or 64 without
        jax_enable_x64, or an unknown `on_nonfinite`; at init (if bidirectional) and update, if an
        axis is not bound; at update, if the gradients were already summed over the workers.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.average_scaled_signs("workers")
      >>> mean = lambda u: tx.update(u, tx.init(u))[0]
      >>> said = jnp.array([[1.0, -1.0], [3.0, 3.0]])
      >>> print(jax.vmap(mean, axis_name="workers", out_axes=None)(said))
      [2. 1.]

    References:
      Tang et al., DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass
      Error-Compensated Compression, ICML 2019, arXiv:1905.05957, Algorithm 1.
    """
    name = "average_scaled_signs"
    _choices.require(on_nonfinite, _network.OnNonfinite, name, "on_nonfinite")
    require_floating(down_dtype, name)

    def init(params):
        residual = None
        if bidirectional:
            _workers.require_bound(axis_name, f"{name}(bidirectional=True).init")
            sizes, num_devices = _cut.local_sizes(params)
            slices = _slices.cut(sizes, _workers.num_workers(axis_name))
            residual = jnp.zeros((num_devices * slices.num_words, 8), jnp.float32)
        return ScaledVoteState(*_network.init_state(params, key), residual)

    @_nesting.on_shards
    def update(updates, state):
        _network.check_updates(updates, axis_name, name)
        _whole.require_told(updates, axis_name, name)
        slices = _sliced(updates, axis_name)
        if slices.num_words == 0:
            return _network.nothing_to_say(updates, state)
        with jax.named_scope(f"signax.{name}"):
            ballot = _ballot.pack_scaled(updates)
            if bidirectional:
                coins = _coins.make(state, updates, axis_name)[1]
                dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(updates)]
                answer = functools.partial(_answer_in_signs, coins, dtypes)
                decode = _decode_signs
            else:
                answer = functools.partial(_answer_in_full, down_dtype)
                decode = functools.partial(_decode_means, down_dtype)
            worker, residual = _workers.worker_index(axis_name), state.server_residual
            answers, residual = _server.serve(
                ballot.bits,
                ballot.scales,
                _whole.all_of(ballot.is_finite)[0],
                slices,
                functools.partial(answer, slices, worker, residual),
                axis_name,
            )
            answers, voters = without_voters(answers)
            mean = decode(answers, slices, ballot.bits.size, updates)
            mean = _whole.as_copies(mean, _whole.shards_of(updates))
            voters = _whole.largest(voters)
            num_absent = _workers.num_workers(axis_name) - voters
            mean = _network.handle_nonfinite(mean, num_absent, on_nonfinite, name)
            state = state._replace(server_residual=residual)
            return mean, _network.next_state(state, voters, axis_name)

    return optax.GradientTransformation(init, update)


def _answer_in_full(dtype, slices, worker, residual, received):
    """The server's mean, and how many voted."""
    mean = _mean(slices, worker, received).astype(dtype)
    return with_voters(mean, received.voters), residual


def _answer_in_signs(coins, dtypes, slices, worker, residual, received):
    """The server's scaled signs; what they leave of its mean is its new residual."""
    leaf = _slices.leaf_of_words(slices, worker)
    is_coordinate = _slices.is_coordinate(slices, worker, leaf)
    v = jnp.where(is_coordinate, _mean(slices, worker, received) + residual, 0.0)
    scales = _mean_magnitudes(v, leaf, jnp.asarray(slices.coordinates, jnp.int32)[worker])
    scales = jnp.where(received.voters > 0, scales, 0.0)
    scales = _as_applied(scales, dtypes, jnp.asarray(slices.leaf, jnp.int32)[worker])
    coins = coins(slices.num_words, worker * slices.num_words)
    coin = jnp.unpackbits(coins, bitorder="little").reshape(v.shape) == 1
    is_positive = (v > 0) | ((v == 0) & coin)
    sent = _signed(is_positive, scales[leaf])
    kept = jnp.where(is_coordinate & (received.voters > 0), v - sent, residual)
    return with_voters(_bits.pack_bits(is_positive), scales, received.voters), kept


def _mean(slices, worker, received):
    """The voters' mean at each bit of the slice: float32[S, 8]. An absent worker's scale is 0."""
    leaf = _slices.leaf_of_words(slices, worker)

    def said(row):
        bits, scales = row
        bits = jnp.unpackbits(bits, bitorder="little").reshape(-1, 8) == 1
        return _signed(bits, scales[leaf])

    return mean_of_workers(said, received)


def mean_of_workers(said: Callable, received: _server.Received) -> jax.Array:
    """The mean of `said((bits, scales))` over the workers who vote, in their order: float32."""
    # A power of two keeps M scales of 3e38 from adding up to infinity, and changes no bit.
    unit = 2.0 ** received.bits.shape[0].bit_length()
    rows = received.bits, received.scales / unit
    first, rest = jax.tree.map(lambda x: x[0], rows), jax.tree.map(lambda x: x[1:], rows)
    add = lambda total, row: (total + said(row), None)  # noqa: E731
    total, _ = jax.lax.scan(add, said(first), rest, unroll=min(16, max(1, len(rest[0]))))
    return _rules.mean_over_voters(total, received.voters, jnp.float32) * unit


def _mean_magnitudes(v, leaf, num_coordinates):
    """mean |v| for each of the K leaves in the slice, padding left out: float32[K]."""
    unit = 2.0 ** v.size.bit_length()  # as above
    of_words = jnp.sum(jnp.abs(v) / unit, axis=1)
    size = num_coordinates.size
    totals = jax.ops.segment_sum(of_words, leaf, num_segments=size, indices_are_sorted=True)
    return totals / jnp.maximum(num_coordinates, 1).astype(jnp.float32) * unit


def _as_applied(scales, dtypes, leaf):
    """Scales as the workers apply them, rounded to the dtype of each one's leaf: float32[K].

    What a float16 cannot hold is not said, and stays owed.
    """
    for dtype in sorted({dtype.name for dtype in dtypes if dtype.itemsize < 4}):
        is_own = jnp.asarray([other == dtype for other in dtypes])[leaf]
        largest = jnp.asarray(jnp.finfo(dtype).max, jnp.float32)
        # The barrier keeps XLA from leaving out both conversions, as excess precision allows it to.
        rounded = jax.lax.optimization_barrier(jnp.minimum(scales, largest).astype(dtype))
        rounded = rounded.astype(jnp.float32)
        scales = jnp.where(is_own, rounded, scales)
    return scales


def _signed(is_positive, scale):
    """+scale or -scale: bool[S, 8], float32[S] -> float32[S, 8]."""
    return jnp.where(is_positive, scale[:, None], -scale[:, None])


def with_voters(*parts: jax.Array) -> jax.Array:
    """What a server answers, and last how many voted: in words as wide as the first part's.

    Means that came as bytes XLA would put together again in a pass that writes all of them.
    """
    word = jnp.dtype(f"uint{min(8 * parts[0].dtype.itemsize, 32)}")
    return _contiguous.concatenate(
        [jax.lax.bitcast_convert_type(part, word).reshape(-1) for part in parts]
    )


def without_voters(answers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `with_voters` on the rows of all servers: the other parts, and the voters."""
    size = 4 // answers.dtype.itemsize
    return answers[:, :-size], _server.from_bytes(answers[0, -size:], jnp.int32)[0]


def _decode_means(down_dtype, answers, slices, num_words, updates):
    del slices
    means = _server.from_bytes(answers, down_dtype).reshape(-1, 8)[:num_words]

    def decode(planes, size, dtype):
        return planes[0].reshape(-1)[:size].astype(dtype)

    return _ballot.unpack([means], updates, decode)


def _decode_signs(answers, slices, num_words, updates):
    bits, scales = jnp.split(answers, [slices.num_words], axis=1)
    scales = _server.from_bytes(scales, jnp.float32)  # [M, K]
    scales = _slices.of_leaves(scales, slices)
    ends = np.cumsum([words.size for words in scales])
    bits = jnp.split(_contiguous.flat(bits)[:num_words], ends[:-1])

    def decode(planes, size, dtype):
        is_positive = jnp.unpackbits(planes[0], bitorder="little").reshape(-1, 8) == 1
        return _signed(is_positive, planes[1]).reshape(-1)[:size].astype(dtype)

    return _ballot.unpack_leaves(list(zip(bits, scales, strict=True)), updates, decode)


def _sliced(tree: Any, axis_name: _workers.AxisName | None) -> _slices.Slices:
    sizes = [jnp.size(leaf) for leaf in jax.tree.leaves(tree)]
    return _slices.cut(sizes, _workers.num_workers(axis_name))


def require_floating(down_dtype: jax.typing.DTypeLike, name: str) -> None:
    """Raises a `ValueError` for a dtype in which no mean can travel."""
    try:
        dtype = None if down_dtype is None else jnp.dtype(down_dtype)  # NumPy: None is float64
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"signax.{name}: down_dtype must be a floating dtype of at least 16 bits, got"
            f" {down_dtype!r}. It is what the mean of the workers travels in on its way back:"
            ' "float32" or "bfloat16".'
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"signax.{name}: down_dtype={dtype.name} has 64 bits, which JAX makes 32 of unless"
            ' jax_enable_x64 is set. The mean is taken in float32, so "float32" is all of it.'
        )
