"""Signs as bits, and votes counted without unpacking them.

A *word* is a uint8 that holds eight coordinates, the first one in its lowest bit. A *plane* is an
array of words: bit i of the plane belongs to coordinate i. Several planes hold a small integer per
coordinate, `sum_k 2^k plane_k`, so one logical instruction on 32 bytes works on 256 coordinates.

Counting adds planes as hardware adds bits. A full adder turns three planes of weight 1 into one of
weight 1 and one of weight 2,

    a + b + c = (a ^ b ^ c) + 2 ((a & b) | (c & (a ^ b))),

and M planes become the ceil(log2(M + 1)) planes of their count after about five operations each
(carry-save adders; Harley and Seal, in Warren, Hacker's Delight, section 5-1). Unpacking, summing
and packing again would touch every coordinate M times.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_GROUP = 15  # rows counted in one unrolled fusion: the most that four planes can hold

Planes = list[jax.Array]


def pack_bits(mask: jax.typing.ArrayLike) -> jax.Array:
    """Packs a mask into uint8 words, eight coordinates a word, the first in the lowest bit.

    Args:
      mask: array of any shape, boolean or numeric; non-zero is 1. It is read in C order.

    Returns:
      uint8 words of shape `[ceil(size / 8)]`; the last word is padded with zeros.

    Example:
      >>> signax.pack_bits(jnp.array([True, False, False, True]))
      Array([9], dtype=uint8)
    """
    bits = jnp.ravel(jnp.asarray(mask)) != 0
    return jnp.packbits(bits, bitorder="little")


def unpack_bits(words: jax.typing.ArrayLike, size: int) -> jax.Array:
    """Unpacks the first `size` coordinates of packed words: the inverse of `pack_bits`.

    Args:
      words: uint8 words of shape `[W]`.
      size: how many coordinates to return, at most `8 * W`.

    Returns:
      A boolean array of shape `[size]`.

    Example:
      >>> signax.unpack_bits(jnp.array([9], jnp.uint8), 4)
      Array([ True, False, False,  True], dtype=bool)
    """
    words = _check_words(words, size)
    return jnp.unpackbits(words, count=size, bitorder="little").astype(bool)


def pack_signs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ternary sign of `x` as two planes: + is (1, 0), - is (0, 1), 0 is (0, 0), NaN or inf (1, 1)."""
    x = jnp.ravel(x)
    absent = ~jnp.isfinite(x)
    return pack_bits((x > 0) | absent), pack_bits((x < 0) | absent)


def unpack_planes(
    planes: Sequence[jax.Array],
    weights: Sequence[float],
    size: int,
    dtype: jax.typing.DTypeLike = jnp.int32,
) -> jax.Array:
    """`sum_i weights[i] * planes[i]` for the first `size` coordinates, in one pass, as `dtype`."""
    wide = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    total = jnp.zeros(size, wide)
    for plane, weight in zip(planes, weights, strict=True):
        bits = jnp.unpackbits(plane, count=size, bitorder="little").astype(bool)
        total += jnp.where(bits, jnp.asarray(weight, wide), jnp.zeros((), wide))
    return total.astype(dtype)


def count_planes(rows: jax.Array) -> Planes:
    """Counts the set bits of each coordinate over the rows of `uint8[M, W]`.

    Returns the ceil(log2(M + 1)) planes of the count, least significant first. Any M >= 1.
    """
    num_rows = rows.shape[0]
    if num_rows <= _GROUP:
        return _add_rows([rows[i] for i in range(num_rows)])
    num_groups = -(-num_rows // _GROUP)
    rows = jnp.pad(rows, ((0, num_groups * _GROUP - num_rows), (0, 0)))
    groups = rows.reshape(num_groups, _GROUP, rows.shape[1])
    planes = _add_rows([groups[:, i] for i in range(_GROUP)])
    while planes[0].shape[0] > 1:
        planes = _add_halves(planes)
    # No count exceeds M, so what lies above its own bits is zero.
    return [plane[0] for plane in planes][: num_rows.bit_length()]


def compare_planes(planes: Planes, threshold: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Masks (count > threshold, count == threshold) for a run-time integer threshold."""
    threshold = jnp.asarray(threshold, jnp.int32)
    high = threshold >> min(len(planes), 31)  # -1 if negative, positive if above every count
    greater = _mask(high < 0) & jnp.full_like(planes[0], 255)
    equal = _mask(high == 0) & jnp.full_like(planes[0], 255)
    for k in reversed(range(len(planes))):
        bit = _mask((threshold >> k) & 1 == 1)
        greater |= equal & planes[k] & ~bit
        equal &= ~(planes[k] ^ bit)
    return greater, equal


def compare_counts(a_planes: Planes, b_planes: Planes) -> tuple[jax.Array, jax.Array]:
    """Masks (a > b, a < b) for two counts with equally many planes."""
    greater = jnp.zeros_like(a_planes[0])
    less = jnp.zeros_like(a_planes[0])
    for a, b in zip(a_planes, b_planes, strict=True):  # a higher plane overrules all below it
        same = ~(a ^ b)
        greater = (greater & same) | (a & ~b)
        less = (less & same) | (b & ~a)
    return greater, less


def _add_rows(level: Planes) -> Planes:
    """Adds planes of equal weight; returns the planes of the sum, least significant first."""
    planes = []
    while level:
        carries = []
        while len(level) > 1:
            a, b, *level = level
            if level:
                c, *level = level
                half = a ^ b
                level.append(half ^ c)
                carries.append((a & b) | (c & half))
            else:
                level.append(a ^ b)
                carries.append(a & b)
        planes.append(level[0])
        level = carries
    return planes


def _add_halves(planes: Planes) -> Planes:
    """Adds the second half of the rows to the first: `[n, W]` counts become `[ceil(n / 2), W]`."""
    num_rows = planes[0].shape[0]
    half = -(-num_rows // 2)
    carry = jnp.zeros_like(planes[0][:half])
    result = []
    for plane in planes:
        a = plane[:half]
        b = jnp.pad(plane[half:], ((0, 2 * half - num_rows), (0, 0)))
        result.append(a ^ b ^ carry)
        carry = (a & b) | (carry & (a ^ b))
    return [*result, carry]


def _mask(condition: jax.Array) -> jax.Array:
    """All ones where true: a scalar condition as a word."""
    return jnp.where(condition, jnp.uint8(255), jnp.uint8(0))


def _check_words(words: jax.typing.ArrayLike, size: int) -> jax.Array:
    words = jnp.asarray(words)
    if words.dtype != jnp.uint8 or words.ndim != 1:
        raise TypeError(
            f"words must be a uint8 vector as pack_bits returns it, got {words.dtype}{words.shape}."
        )
    if not 0 <= size <= 8 * words.size:
        raise ValueError(
            f"{words.size} words hold {8 * words.size} coordinates, but size={size} was asked for. "
            "Pass the size of the array that was packed."
        )
    return words
