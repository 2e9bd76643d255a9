"""A tree of updates as one buffer of packed signs, and back.

Leaves are packed one by one and only their words are laid end to end, so that the whole model costs
one exchange and no float array is ever concatenated. Each leaf starts at a word of its own:

    leaf a (11 coordinates)   leaf b (3)         words:  [a a | b],  W = 2 + 1
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signax import _reductions
from signax.wire import _bits


class ScaledBallot(NamedTuple):
    """What one worker has to say about a tree whose leaves hold +c and -c."""

    bits: jax.Array  # uint8[W]: set where the value is positive
    scales: jax.Array  # float32[L]: c of each leaf
    is_finite: jax.Array  # bool[]: no value is a NaN or an infinity


class Ballot(NamedTuple):
    """What one worker has to say about the whole tree."""

    positive: jax.Array  # uint8[W]
    negative: jax.Array  # uint8[W]
    is_finite: jax.Array  # bool[]: no value is a NaN or an infinity
    is_zero: jax.Array  # bool[]: every value is zero


def pack(updates: Any) -> Ballot:
    """The signs of all leaves in one buffer."""
    positive, negative = _bits.pack_leaves([jnp.asarray(u) for u in jax.tree.leaves(updates)])
    is_finite = ~jnp.any(positive & negative)  # both bits set: a NaN or an infinity
    return Ballot(positive, negative, is_finite, ~jnp.any(positive | negative))


def pack_scaled(updates: Any) -> ScaledBallot:
    """The bits of all leaves in one buffer, and one scale for each leaf."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(updates)]
    bits = _bits.pack_masks([leaf > 0 for leaf in leaves])
    scales = jnp.stack([_reductions.largest([leaf.astype(jnp.float32)]) for leaf in leaves])
    return ScaledBallot(bits, scales, jnp.all(jnp.isfinite(scales)))


def unpack(
    planes: Sequence[jax.Array], updates: Any, decode: Callable[[list[jax.Array], int, Any], Any]
) -> Any:
    """Cuts the buffer into leaves: `decode(planes, size, dtype)` gives the values of each.

    A plane has one row for each word; `decode` is given the rows of one leaf.
    """
    leaves, treedef = jax.tree.flatten(updates)
    results, start = [], 0
    for leaf in map(jnp.asarray, leaves):
        stop = start + -(-leaf.size // 8)
        results.append(_decoded([plane[start:stop] for plane in planes], leaf, decode))
        start = stop
    return treedef.unflatten(results)


def unpack_leaves(
    planes: Sequence[Sequence[jax.Array]],
    updates: Any,
    decode: Callable[[list[jax.Array], int, Any], Any],
) -> Any:
    """`unpack` of planes that are cut already: for each leaf, its own."""
    leaves, treedef = jax.tree.flatten(updates)
    pairs = zip(planes, map(jnp.asarray, leaves), strict=True)
    return treedef.unflatten([_decoded(list(own), leaf, decode) for own, leaf in pairs])


def _decoded(planes: list[jax.Array], leaf: jax.Array, decode: Callable) -> jax.Array:
    return decode(planes, leaf.size, leaf.dtype).reshape(leaf.shape)
