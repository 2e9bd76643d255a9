"""Leaves of one size run through one piece of machine code.

XLA compiles a loop once for all loops that are alike, instruction by instruction. What two leaves
of one size have not in common is where their part of a buffer begins. In the program, this number
makes every leaf's loop a program of its own, and each takes 5 to 20 ms to compile: seconds, for the
two hundred leaves of a transformer. In memory it does not. So it is read from an array of two
numbers, at an index that is always 0, which XLA cannot know.
"""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def cut(
    arrays: Sequence[jax.Array], sizes: Sequence[int], seed: jax.Array
) -> list[list[jax.Array]]:
    """Each array cut into pieces of these sizes along its last axis; the rest is left over.

    Args:
      arrays: What is cut, all of one length.
      sizes: How long each piece is.
      seed: Any integer that XLA does not know, an array without axes. No piece depends on it, but
        pieces are typed as varying over the axes over which it varies.

    Returns:
      For each size the pieces of all arrays.
    """
    counts, zero = collections.Counter(sizes), _zero(seed)
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    return [
        [x[..., start : start + size] for x in arrays]
        if counts[size] == 1
        else _pieces(arrays, _in_memory(start, zero), size)
        for start, size in zip(starts, sizes, strict=True)
    ]


def _pieces(arrays: Sequence[jax.Array], start: jax.Array, size: int) -> list[jax.Array]:
    return [
        jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1, allow_negative_indices=False)
        for x in arrays
    ]


def _in_memory(number: int, zero: jax.Array) -> jax.Array:
    # Two numbers that are neither equal nor a sequence, which XLA would see through.
    pair = jnp.array([number, ~number], jnp.int32)
    return jax.lax.dynamic_index_in_dim(pair, zero, keepdims=False, allow_negative_indices=False)


@jax.custom_batching.custom_vmap
def _zero(seed: jax.Array) -> jax.Array:
    return (seed.astype(jnp.int32) & 1) >> 1


@_zero.def_vmap
def _zero_of_rows(num_rows: int, is_batched: Sequence[bool], seeds: jax.Array):
    """One for all rows: slices that begin elsewhere in each row would be gathered."""
    del num_rows
    (is_one_each,) = is_batched
    return _zero(seeds.reshape(-1)[0] if is_one_each else seeds), False
