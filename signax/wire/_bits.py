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

import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from signax import _rows
from signax.wire import _contiguous

# Rows counted in one fusion. Above, a scan adds groups of rows: nested fusions of adders would be
# evaluated again for each of their users, which can be a thousand times slower.
_UNROLLED = 64
_GROUP = 32

Planes = Sequence[jax.Array]


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
    return pack_masks([jnp.asarray(mask).astype(bool)])


def unpack_bits(words: jax.typing.ArrayLike, size: int) -> jax.Array:
    """Unpacks the first `size` coordinates of packed words: the inverse of `pack_bits`.

    Args:
      words: uint8 words of shape `[W]`.
      size: how many coordinates to return, at most `8 * W`.

    Returns:
      A boolean array of shape `[size]`.

    Raises:
      TypeError: If `words` is not a uint8 vector, or `size` not an integer.
      ValueError: If the words hold fewer than `size` coordinates.

    Example:
      >>> signax.unpack_bits(jnp.array([9], jnp.uint8), 4)
      Array([ True, False, False,  True], dtype=bool)
    """
    words, size = jnp.asarray(words), operator.index(size)
    if words.dtype != jnp.uint8 or words.ndim != 1:
        raise TypeError(
            f"signax.unpack_bits: words must be a uint8 vector, as pack_bits returns it, got"
            f" {words.dtype}{list(words.shape)}. To unpack rows of words use jax.vmap."
        )
    if not 0 <= size <= 8 * words.size:
        raise ValueError(
            f"signax.unpack_bits: {words.size} words hold {8 * words.size} coordinates, but"
            f" size={size}. Pass the size of the array that was packed."
        )
    return jnp.unpackbits(words, count=size, bitorder="little").astype(bool)


def pack_signs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ternary sign as two planes: + is (1, 0), - is (0, 1), 0 is (0, 0), NaN and inf (1, 1)."""
    return pack_leaves([x])


def pack_masks(masks: Sequence[jax.Array]) -> jax.Array:
    """Several boolean arrays in one buffer, each of which starts at a word of its own."""
    return _contiguous.concatenate([piece for mask in masks for piece in _pack(mask, _mask_codes)])


def pack_leaves(leaves: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`pack_signs` of several arrays in one buffer, each of which starts at a word of its own.

    One pass: whatever produces a leaf is fused and evaluated once per coordinate. The two bits
    share a uint32 while eight coordinates become one word (XLA adds wide ones faster), and a uint16
    until all words lie end to end; then its bytes part.
    """
    pieces = [piece for leaf in leaves for piece in _pack(leaf, _sign_codes)]
    words = _contiguous.concatenate([piece.astype(jnp.uint16) for piece in pieces])
    return words.astype(jnp.uint8), (words >> 8).astype(jnp.uint8)


def unpack_planes(
    planes: Planes,
    weights: Sequence[float],
    size: int,
    dtype: jax.typing.DTypeLike = jnp.int32,
) -> jax.Array:
    """`sum_i weights[i] * planes[i]` for the first `size` coordinates, in one pass, as `dtype`."""
    # Sums of small floats would round: bfloat16 holds no integer above 256 exactly.
    wide = np.promote_types(dtype, np.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    total = jnp.zeros(size, wide)
    for plane, weight in zip(planes, weights, strict=True):
        is_set = jnp.unpackbits(plane, count=size, bitorder="little") != 0
        total += jnp.where(is_set, jnp.asarray(weight, wide), jnp.zeros((), wide))
    return total.astype(dtype)


def count_planes(rows: jax.Array) -> list[jax.Array]:
    """Counts the set bits of each coordinate over the rows of `uint8[M, W]`, for any M >= 1.

    Returns the ceil(log2(M + 1)) planes of the count, least significant first.
    """
    num_rows = rows.shape[0]
    if num_rows <= _UNROLLED:
        return add_planes([[rows[i] for i in range(num_rows)]])
    num_planes, whole = num_rows.bit_length(), num_rows - num_rows % _GROUP

    def add(counts: list[jax.Array], group: jax.Array) -> tuple[list[jax.Array], None]:
        return _add_rows(counts, group)[:num_planes], None  # no count exceeds M

    groups = rows[:whole].reshape(-1, _GROUP, rows.shape[1])
    zero = rows[0] & jnp.uint8(0)  # typed as varying over the workers, like the rows
    counts, _ = jax.lax.scan(add, [zero] * num_planes, groups)
    return _add_rows(counts, rows[whole:])[:num_planes]


def add_planes(weights: list[list[jax.Array]]) -> list[jax.Array]:
    """Adds planes, `weights[k]` being those of weight 2^k: one plane of each weight is left."""
    total = []
    while weights:
        planes, *weights = weights
        carries = []
        while len(planes) > 1:
            a, b, *planes = planes
            if planes:
                c, *planes = planes
                planes.append(a ^ b ^ c)
                carries.append((a & b) | (c & (a ^ b)))
            else:
                planes.append(a ^ b)
                carries.append(a & b)
        total += planes
        if carries:
            more, *weights = weights or [[]]
            weights = [more + carries, *weights]
    return total


def compare_planes(planes: Planes, threshold: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Masks (count > threshold, count == threshold) for an integer, which may be traced."""
    threshold = jnp.asarray(threshold).astype(jnp.int32)
    high = threshold >> min(len(planes), 31)  # -1 if negative, positive if above every count
    greater = _mask(high < 0) | jnp.zeros_like(planes[0])
    equal = _mask(high == 0) | jnp.zeros_like(planes[0])
    for k in reversed(range(len(planes))):
        bit = _mask((threshold >> k) & 1 == 1)
        greater |= equal & planes[k] & ~bit
        equal &= ~(planes[k] ^ bit)
    return greater, equal


def _sign_codes(x: jax.Array) -> jax.Array:
    """Positive in the low byte and negative in the high one, both for NaN and infinity."""
    x = x.astype(np.promote_types(x.dtype, np.float32))  # else each bfloat16 op rounds
    x = x + (x - x)  # an infinity becomes a NaN, for which both comparisons are false
    positive = jnp.where(x <= 0, jnp.uint32(0), jnp.uint32(1))
    return positive + jnp.where(x >= 0, jnp.uint32(0), jnp.uint32(256))


def _mask_codes(mask: jax.Array) -> jax.Array:
    return mask.astype(jnp.uint8)


def _pack(x: jax.Array, codes: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
    """Eight codes to a word of their dtype, `sum_j codes[8 w + j] << j`, in one or two pieces.

    Cut before they are codes: what makes `x` in the same pieces is fused into each.
    """
    return [_join(_in_words(codes(piece))).reshape(-1) for piece in _rows.cut(jnp.ravel(x))]


def _in_words(codes: jax.Array) -> jax.Array:
    """A row of eight for each word; of whole rows, 64 words to a row."""
    if codes.size and codes.size % _rows.ROW == 0:
        return codes.reshape(-1, _rows.ROW // 8, 8)
    return jnp.pad(codes, (0, -codes.size % 8)).reshape(-1, 8)


def _join(codes: jax.Array) -> jax.Array:
    shifts = jax.lax.broadcasted_iota(codes.dtype, codes.shape, codes.ndim - 1)
    return jnp.sum(codes << shifts, axis=-1, dtype=codes.dtype)


def _add_rows(counts: Planes, rows: jax.Array) -> list[jax.Array]:
    least, *others = counts
    return add_planes([[least, *(rows[i] for i in range(rows.shape[0]))], *([p] for p in others)])


def _mask(condition: jax.Array) -> jax.Array:
    """All ones where true: a scalar condition as a word."""
    return jnp.where(condition, jnp.uint8(255), jnp.uint8(0))
