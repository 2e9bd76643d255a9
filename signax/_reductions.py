"""One number of arrays as large as the model, in passes that write nothing as large.

XLA on a CPU does not fuse what produces an array into its reduction to a scalar: it writes the
magnitudes of a whole leaf out, into memory that is fresh at every step, and page faults cost more
than the sum. So an array is read as eight lanes of one length, laid upon each other in one loop,
and only what comes of that, an eighth, is reduced.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from signax._shards import _cut

# XLA evaluates a producer once for each lane, and fuses none that it would evaluate more than 15
# times (kAllowedCodeDuplication in its fusion_node_indexing_evaluation.cc).
_NUM_LANES = 8


def in_lanes(arrays: Sequence[jax.Array]) -> tuple[list[list[jax.Array]], jax.Array]:
    """Each array as eight lanes of one length, and the few coordinates of all that are left over.

    What lays lanes upon each other is one pass, into which XLA fuses whatever produces the array.
    """
    lanes, rest = [], []
    for x in arrays:
        if _cut.is_left_to_the_compiler(x):  # to cut it into lanes would gather it
            lanes.append([x])
            rest.append(jnp.zeros(0, x.dtype))
            continue
        x, size = x.reshape(-1), x.size // _NUM_LANES
        lanes.append([x[i * size : (i + 1) * size] for i in range(_NUM_LANES)])
        rest.append(x[_NUM_LANES * size :])
    return lanes, jnp.concatenate(rest) if rest else jnp.zeros(0, jnp.float32)


def largest(arrays: Sequence[jax.Array]) -> jax.Array:
    """The largest magnitude of all float32 arrays, 0 if there is none, NaN if one is.

    Magnitudes have the order of their bits as integers, and NaN is above all: XLA's maximum of
    floats loses a NaN in a long array.
    """
    lanes, rest = in_lanes([jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) for x in arrays])
    laid = [*(functools.reduce(jnp.maximum, own) for own in lanes), rest]
    found = jnp.max(jnp.stack([jnp.max(x, initial=0) for x in laid]))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def mean_magnitude(leaves: Sequence[jax.Array]) -> jax.Array:
    """The mean of |g| over all coordinates in float32, 0 if there are none: at any size of g."""
    lanes, rest = in_lanes([leaf.astype(jnp.float32) for leaf in leaves])
    means = [*map(_mean_of_lanes, lanes), jnp.abs(rest)]
    weights = [*map(len, lanes), 1]
    unit = power_of_two(largest(means))
    sums = [w * jnp.sum(x * (1.0 / unit)) for x, w in zip(means, weights, strict=True)]
    return sum(sums, start=jnp.zeros((), jnp.float32)) / max(sum(x.size for x in leaves), 1) * unit


def power_of_two(r: jax.Array) -> jax.Array:
    """The power of two below r, kept where its inverse too is a normal float32."""
    exponent = jax.lax.bitcast_convert_type(r, jnp.int32) & 0x7F800000
    return jnp.clip(jax.lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-126, 2.0**126)


def _mean_of_lanes(lanes: Sequence[jax.Array]) -> jax.Array:
    """The mean magnitude at each place, whatever the lanes' magnitudes."""
    magnitudes = list(map(jnp.abs, lanes))
    if len(lanes) == 1:
        return magnitudes[0]
    unit = power_of_two(functools.reduce(jnp.maximum, magnitudes))
    scaled = [x * (1.0 / unit) for x in magnitudes]
    return functools.reduce(jnp.add, scaled) / len(lanes) * unit
