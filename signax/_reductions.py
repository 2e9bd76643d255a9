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
_SMALL = 4096  # coordinates: below, an array shares a loop with others, or each is compiled
_INFINITY = 0x7F800000  # the bits of an exponent: 2^e has the bits (e + 127) << 23
_SMALLEST, _LARGEST = 1 << 23, 253 << 23  # 2^-126 and 2^126


def in_lanes(arrays: Sequence[jax.Array]) -> tuple[list[list[jax.Array]], jax.Array]:
    """Each array as eight lanes of one length, and the few coordinates of all that are left over.

    What lays lanes upon each other is one pass, into which XLA fuses whatever produces the array.
    Of several arrays all that are small count as one.
    """
    whole = [x for x in arrays if _cut.is_left_to_the_compiler(x)]  # to cut it would gather it
    flat = [x.reshape(-1) for x in arrays if not _cut.is_left_to_the_compiler(x)]
    large = [x for x in flat if x.size >= _SMALL]
    small = [x for x in flat if x.size < _SMALL]
    lanes, rest = [[x] for x in whole], []
    for x in [*large, jnp.concatenate(small)] if small else large:
        size = x.size // _NUM_LANES
        lanes.append([x[i * size : (i + 1) * size] for i in range(_NUM_LANES)])
        rest.append(x[_NUM_LANES * size :])
    return lanes, jnp.concatenate([*rest, jnp.zeros(0, arrays[0].dtype if arrays else jnp.float32)])


def largest(arrays: Sequence[jax.Array]) -> jax.Array:
    """The largest magnitude of all float32 arrays, 0 if there is none, NaN if one is."""
    lanes, rest = in_lanes([_magnitude_bits(x) for x in arrays])
    laid = [*(functools.reduce(jnp.maximum, own) for own in lanes), rest]
    return _float_of(jnp.max(jnp.stack([jnp.max(x, initial=0) for x in laid])))


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
    return _float_of(jnp.clip(_magnitude_bits(r) & _INFINITY, _SMALLEST, _LARGEST))


def in_common_unit(lanes: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """float32 arrays of one shape over a power of two near the largest at each place, and that."""
    unit = power_of_two(_float_of(functools.reduce(jnp.maximum, map(_magnitude_bits, lanes))))
    inverse = _float_of((254 << 23) - _magnitude_bits(unit))  # exact, and cheaper than a division
    return [lane * inverse for lane in lanes], unit


def _mean_of_lanes(lanes: Sequence[jax.Array]) -> jax.Array:
    """The mean magnitude at each place, whatever the lanes' magnitudes."""
    if len(lanes) == 1:
        return jnp.abs(lanes[0])
    scaled, unit = in_common_unit(list(map(jnp.abs, lanes)))
    return functools.reduce(jnp.add, scaled) / len(lanes) * unit


def _magnitude_bits(x: jax.Array) -> jax.Array:
    """|x| as the integer of its bits, which has the order of magnitudes with NaN above all.

    XLA's maximum of floats loses a NaN in a long array, and looks for it with more instructions.
    """
    return jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF


def _float_of(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
