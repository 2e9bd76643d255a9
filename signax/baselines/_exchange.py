"""The mean of payloads of several bits per coordinate: up in bytes, averaged by a server, down.

Eight coordinates of one leaf are B bytes: the B bit planes of small integers, or eight numbers of B
bits. Worker j is the server of slice j, as for signs (`signax/wire/_server.py`): one all_to_all, a
mean in float32, always in the order of the workers, and one all_gather of that mean. So every
mapping and backend moves these bits and no others, and replicas are equal bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from signax import _scaled, _workers
from signax.wire import _ballot, _server, _slices

# bytes uint8[S, B] and the leaf's scale float32[S, 1] -> values float32[S, 8], linear in the scale:
# the scale of a worker who abstains is 0, and all are divided by a power of two before they add up
Decode = Callable[[jax.Array, jax.Array], jax.Array]


def mean(
    payloads: Sequence[jax.Array],
    scales: jax.Array,
    is_voting: jax.Array,
    like: Any,
    decode: Decode,
    down_dtype: jax.typing.DTypeLike,
    axis_name: _workers.AxisName | None,
) -> tuple[Any, jax.Array]:
    """Averages over the workers who vote what their bytes mean.

    Args:
      payloads: For each leaf uint8[ceil(size / 8), B].
      scales: float32[L], one for each leaf.
      is_voting: bool scalar.
      like: The tree whose shapes and dtypes the mean gets.
      decode: From bytes and scales to values.
      down_dtype: The dtype in which the mean travels.
      axis_name: The workers' axis or axes; None is one worker.

    Returns:
      The mean, equal on all workers, and the number of voters (int32).
    """
    num_workers = _workers.num_workers(axis_name)
    slices = _slices.cut([jnp.size(leaf) for leaf in jax.tree.leaves(like)], num_workers)
    words = jnp.concatenate(payloads)  # [W, B]
    num_words, width = words.shape

    def answer(received: _server.Received):
        leaf = _slices.leaf_of_words(slices, _workers.worker_index(axis_name))

        def said(row):
            value, scale = row
            return decode(value.reshape(-1, width), scale[leaf][:, None])

        average = _scaled.mean_of_workers(said, received)
        return _scaled.with_voters(average.astype(down_dtype), received.voters), None

    answers, _ = _server.serve(
        words.reshape(-1),
        scales,
        is_voting,
        slices._replace(num_words=width * slices.num_words),
        answer,
        axis_name,
    )
    answers, voters = _scaled.without_voters(answers)
    means = _server.from_bytes(answers, down_dtype).reshape(-1, 8)[:num_words]
    return _ballot.unpack([means], like, _cut_leaf), voters


def _cut_leaf(planes, size, dtype):
    return planes[0].reshape(-1)[:size].astype(dtype)
