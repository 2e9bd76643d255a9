"""The packed buffer cut into one slice for each server, and which leaves lie in which slice.

    leaves                    a a a a a|b|c c c c c c c
    slices of S = 5 words     a a a a a | b c c c c | c c c - -
    leaves in each            a         | b, c      | c

A server needs the scales of the leaves in its own slice and no others, and what only pads a word or
the last slice must enter no mean. All of this is known from the leaves' sizes before anything runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Slices(NamedTuple):
    """M slices of S words; at most K leaves lie in one of them. Arrays of NumPy integers."""

    num_words: int  # S
    leaf: np.ndarray  # [M, K]: which leaf; 0 where a slice has fewer than K
    words: np.ndarray  # [M, K]: how many of the slice's words are this leaf's
    coordinates: np.ndarray  # [M, K]: how many coordinates these words hold, padding left out
    last_word: np.ndarray  # [L]: where in the buffer each leaf's last word stands
    last_bits: np.ndarray  # [L]: how many coordinates that word holds, 1 to 8


def cut(sizes: Sequence[int], num_workers: int) -> Slices:
    """Cuts the buffer of leaves of these sizes into M equal slices."""
    size = np.asarray(sizes, np.int64)
    words = -(-size // 8)
    stop = np.cumsum(words)
    start = stop - words
    num_words = -(-int(words.sum()) // num_workers)
    left = num_words * np.arange(num_workers)[:, None]
    overlap = np.minimum(stop, left + num_words) - np.maximum(start, left)  # [M, L]
    inside = [np.flatnonzero(row > 0) for row in overlap]
    width = max(1, *map(len, inside))
    leaf, count, coordinates = (np.zeros((num_workers, width), np.int64) for _ in range(3))
    for j, found in enumerate(inside):
        leaf[j, : len(found)] = found
        count[j, : len(found)] = overlap[j, found]
        is_last = stop[found] <= left[j] + num_words
        padding = np.where(is_last, 8 * words[found] - size[found], 0)
        coordinates[j, : len(found)] = 8 * overlap[j, found] - padding
    return Slices(
        num_words, leaf, count, coordinates, stop - 1, size - 8 * np.maximum(words - 1, 0)
    )


def leaf_of_words(slices: Slices, worker: jax.Array) -> jax.Array:
    """Which of a slice's K leaves each of its S words belongs to: int32[S], in order."""
    # Behind the barrier they are no constant, of which XLA would take minutes to fold the sums.
    counts = jax.lax.optimization_barrier(jnp.asarray(slices.words, jnp.int32)[worker])
    index = jnp.arange(counts.size, dtype=jnp.int32)
    return jnp.repeat(index, counts, total_repeat_length=slices.num_words)


def is_coordinate(slices: Slices, worker: jax.Array, leaf: jax.Array) -> jax.Array:
    """Which bits of a slice are coordinates and not padding: bool[S, 8]."""
    leaf = jnp.asarray(slices.leaf, jnp.int32)[worker][leaf]
    word = worker * slices.num_words + jnp.arange(slices.num_words, dtype=jnp.int32)
    last_word = jnp.asarray(slices.last_word, jnp.int32)[leaf]
    last_bits = jnp.asarray(slices.last_bits, jnp.int32)[leaf]
    num_bits = jnp.where(word < last_word, 8, jnp.where(word == last_word, last_bits, 0))
    return jnp.arange(8, dtype=jnp.int32)[None] < num_bits[:, None]


def of_leaves(values: jax.Array, slices: Slices) -> list[jax.Array]:
    """One value for each leaf in each slice, [M, K], as one for each word of each leaf."""
    servers, places = np.nonzero(slices.words)
    leaf = slices.leaf[servers, places]
    results, start = [], 0
    for i, last_word in enumerate(slices.last_word):
        own = leaf == i  # in slices that follow one another
        parts = values[servers[own], places[own]]
        server = jnp.arange(start, last_word + 1) // max(slices.num_words, 1)
        few = parts[server - servers[own][0]] if own.sum() > 1 else parts
        results.append(jnp.broadcast_to(few, server.shape))
        start = last_word + 1
    return results
