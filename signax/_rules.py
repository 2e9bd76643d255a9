"""Who wins? From the counts of a server's coordinates to what the workers are told.

With M workers, V of them voting, the servers count set bits. One bit per worker counts the votes
for +1, c; two bits per worker, sign + 1, count s + M, the sum of signs moved up by M:

    majority, ties="random":  sign(2 c - V), a coin at 0      average:  (2 c - V) / V
    majority, ties="zero":    sign(s)                         average:  s / V

`decide` runs on the server and on packed words; `decode` runs everywhere, on what came back.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from signax.wire import _bits

Ties = Literal["zero", "random"]
Planes = _bits.Planes

_FEW_PLANES = 3  # with four, 15 choices take as long as one sum and its division


class Rule(NamedTuple):
    """How counts become an update."""

    # counts as bit planes, number of rows counted, voters, coins -> planes to send back
    decide: Callable[[Planes, int, jax.Array, Callable[[], jax.Array]], Planes]
    # those planes for one leaf, size, dtype, voters, number of workers -> the leaf
    decode: Callable[[Planes, int, Any, jax.Array, int], jax.Array]
    # number of workers -> how many values are sent back for each coordinate
    num_values: Callable[[int], int]


# Traced once for all leaves of a size: tracing two hundred of them takes seconds.
_traced_once = functools.partial(jax.jit, static_argnames=("size", "dtype", "num_workers"))


def _majority_or_zero(counts, num_rows, voters, coins):
    del voters, coins
    positive, tie = _bits.compare_planes(counts, num_rows // 2)  # counted: sum of signs + M
    return [tie, positive]  # sign + 1


def _majority_or_coin(counts, num_rows, voters, coins):
    del num_rows
    positive, half = _bits.compare_planes(counts, voters // 2)  # counted: votes for +1
    is_even = jnp.where(voters % 2 == 0, jnp.uint8(255), jnp.uint8(0))
    return [positive | (half & is_even & coins())]


def _all_counts(counts, num_rows, voters, coins):
    del num_rows, voters, coins
    return counts


@_traced_once
def _decode_ternary(planes, size, dtype, voters, num_workers):
    del num_workers, voters
    return _bits.unpack_planes(planes, (1, 2), size, dtype) - 1


@_traced_once
def _decode_binary(planes, size, dtype, voters, num_workers):
    del num_workers
    sign = _bits.unpack_planes(planes, (2,), size, jnp.float32) - 1.0
    return jnp.where(voters > 0, sign, 0.0).astype(dtype)


@_traced_once
def _decode_mean_ternary(planes, size, dtype, voters, num_workers):
    return _decode_each(
        planes, size, lambda count: mean_over_voters(count - num_workers, voters, dtype)
    )


@_traced_once
def _decode_mean_binary(planes, size, dtype, voters, num_workers):
    del num_workers
    return _decode_each(
        planes, size, lambda count: mean_over_voters(2 * count - voters, voters, dtype)
    )


def _decode_each(planes, size, value):
    """`value(count)` at each coordinate, worked out once for each count if these are few."""
    if len(planes) > _FEW_PLANES:
        return value(_bits.unpack_planes(planes, [2**k for k in range(len(planes))], size))
    values = list(value(jnp.arange(2 ** len(planes), dtype=jnp.int32)))
    for plane in planes:  # each decides between neighbours
        is_set = _bits.unpack_bits(plane, size)
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [jnp.where(is_set, odd, even) for even, odd in pairs]
    return values[0]


def mean_over_voters(total, voters, dtype):
    """total / voters, rounded alike in every program.

    XLA turns x / scalar into x * (1 / scalar) in some programs and not in others, and 3 * (1 / 7)
    is not 3 / 7: replicas under vmap and shard_map would differ in the last bit. So the quotient's
    first 12 bits are multiplied back, exactly as long as there are fewer than 4,096 workers, and
    what they leave is divided again.
    """
    total = total.astype(jnp.float32)
    voters = jnp.maximum(voters, 1).astype(jnp.float32)
    inverse = 1.0 / voters
    bits = jax.lax.bitcast_convert_type(total * inverse, jnp.uint32)
    head = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
    return (head + (total - head * voters) * inverse).astype(dtype)


MAJORITY: dict[Ties, Rule] = {
    "zero": Rule(_majority_or_zero, _decode_ternary, lambda m: 3),
    "random": Rule(_majority_or_coin, _decode_binary, lambda m: 2),
}
AVERAGE: dict[Ties, Rule] = {
    "zero": Rule(_all_counts, _decode_mean_ternary, lambda m: 2 * m + 1),
    "random": Rule(_all_counts, _decode_mean_binary, lambda m: m + 1),
}
