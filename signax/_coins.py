"""The coins of a vote: for a worker's own zeros, and for ties.

A coin is addressed by its place in the packed buffer of the whole tree: which word, which bit. On
shards the places of this device's coordinates are scattered over that buffer, so each coordinate
hashes the word that it stands in and takes its own bit: eight hashes where a whole buffer needs
one. A server, who decides for 1/M of the words, then hashes for all of its device's coordinates:
M times more again. Only where leaves are cut; the coins are those of the run that is not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from signax import _workers
from signax._shards import _whole
from signax.signs import _random
from signax.wire import _bits, _dealing

# Two tags: with one, the coin of a tie would equal worker 0's own coin.
_OWN_COIN, _TIE_COIN = 0x4F574E43, 0x54494543


def make(
    state: Any,
    updates: Any,
    axis_name: _workers.AxisName | None,
    dealing: _dealing.Dealing | None = None,
) -> tuple[Callable[[int], jax.Array], Callable[..., jax.Array]]:
    """Own coins, `coins(size)`, and coins for ties, `coins(size, offset)`: uint8[size] words.

    With a `dealing`, the words of ties are those that this device sends, the own ones all it has.
    """
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    shards = _whole.shards_of(updates)

    def words(tag, worker):
        # The paths make the coins of two votes over parts of one tree independent.
        link = _random.link_words(state.key, tag, state.count, worker)
        return _random.leaf_words(link, ["\n".join(paths)])[0]

    def coins(tag, worker, size, offset=0):
        return (_random.random_words(words(tag, worker), size, offset) >> 24).astype(jnp.uint8)

    def own_of_shards(size):
        del size
        return _of_shards(words(_OWN_COIN, _workers.worker_index(axis_name)), updates, shards)

    def ties_of_shards(size, offset=0):
        here = _of_shards(words(_TIE_COIN, 0), updates, shards)
        here = dealing.deal([here])[0] if dealing else here
        padded = jnp.pad(here, (0, size * _workers.num_workers(axis_name)))
        return jax.lax.dynamic_slice_in_dim(padded, offset, size)

    if shards is not None:
        return own_of_shards, ties_of_shards
    own = functools.partial(coins, _OWN_COIN, _workers.worker_index(axis_name))
    return own, functools.partial(coins, _TIE_COIN, 0)


def _of_shards(words: jax.Array, updates: Any, shards: Any) -> jax.Array:
    """The coins of this device's coordinates, packed as its leaves are: uint8[W]."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(updates)]
    sizes = [int(np.prod(_whole.whole_shape(*pair))) for pair in zip(leaves, shards, strict=True)]
    starts = np.cumsum([0, *(-(-size // 8) for size in sizes)])  # words, in the whole buffer

    def packed(leaf, shard, start):
        place = _whole.positions(leaf, shard)
        word = _random.words_at(words, place // 8 + jnp.uint32(start % 2**32)) >> 24
        return _bits.pack_bits((word >> (place % 8)) & 1)

    own = zip(leaves, shards, starts[:-1], strict=True)
    return jnp.concatenate([packed(*leaf) for leaf in own])
