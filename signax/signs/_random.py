"""Random words that are an address: (key, link's tag, step, worker, leaf path, position).

Nothing here has a state. Whoever knows the address knows the word, so every mapping (vmap, pmap,
shard_map, one process or many) draws the same bits and any step can be replayed.

The address is hashed in two speeds. Everything up to the leaf is mixed by Threefry-2x32 on scalars
(Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), written out in jnp. The
position within the leaf is hashed by a short multiply and shift hash in whose middle and ends the
leaf's two key words are injected, so that XLA fuses it into whatever consumes the words.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from signax import _alike

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def key_words(key: jax.typing.ArrayLike) -> jax.Array:
    """The two uint32 words of a seed, a PRNG key or raw key data; always a fresh array.

    An integer seed gives the words of `jax.random.key(seed)`.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            raise ValueError(
                "signax: key must be a single PRNG key, got an array of keys of shape"
                f" {key.shape}. Pass one of them: signax folds step, worker and leaf into the key"
                " itself."
            )
        return _fold_data(jax.random.key_data(key))
    if isinstance(key, (bool, float, complex, str)) or key is None:
        raise _bad_key(key)
    if isinstance(key, int):
        return _concrete_seed(key)
    array = key if isinstance(key, jax.Array) else np.asarray(key)
    if array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer):
        return _array_seed(array) if isinstance(array, jax.Array) else _concrete_seed(int(array))
    if array.dtype == jnp.uint32 and array.shape in ((2,), (4,)):
        return _fold_data(jnp.asarray(array))
    raise _bad_key(key)


def link_words(
    words: jax.Array, tag: int, step: jax.typing.ArrayLike, worker: jax.typing.ArrayLike
) -> jax.Array:
    """Mixes a link's tag, the step and the worker into key words."""
    tagged = threefry(words, _word(tag), _word(step))
    return threefry(tagged, _word(worker), _word(0))


def leaf_words(words: jax.Array, tree_paths: Sequence[str]) -> jax.Array:
    """Key words for each leaf, uint32[L, 2], from the hash of its path."""
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in tree_paths]
    counts = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.uint32)
    mixed = threefry(words, jnp.asarray(counts[:, 0]), jnp.asarray(counts[:, 1]))
    # Without the barrier XLA fuses these hundreds of scalar operations into each leaf's loop, and
    # where that loop is not vectorised evaluates them again for every coordinate.
    return jax.lax.optimization_barrier(mixed)


def tree_words(words: jax.Array, tree: Any) -> Any:
    """A tree like `tree` that holds each leaf's own key words, uint32[2]."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    rows = leaf_words(words, [jax.tree_util.keystr(path) for path, _ in paths])
    columns = _alike.cut([rows.T], [1] * len(paths), words[0])
    return treedef.unflatten([column[:, 0] for (column,) in columns])


def random_words(words: jax.Array, size: int, offset: jax.typing.ArrayLike = 0) -> jax.Array:
    """`size` random uint32, those at positions offset, offset + 1, ... of the stream `words`."""
    return words_at(words, jax.lax.iota(jnp.uint32, size) + _word(offset))


def words_at(words: jax.Array, position: jax.Array) -> jax.Array:
    """The random uint32 at each position, uint32, of the stream `words`."""
    x = position ^ words[0]
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = x ^ words[1]
    x = (x ^ (x >> 11)) * jnp.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    return x ^ (x >> 14)


@jax.jit  # traced once for each shape: its hundred operations cost more to trace than to run
def threefry(words: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Threefry-2x32 with 20 rounds of the counter (x, y) under the key `words`; [..., 2]."""
    keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(_PARITY))
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return jnp.stack([x, y], axis=-1)


def _word(value: jax.typing.ArrayLike) -> jax.Array:
    if isinstance(value, (int, np.integer)):
        return jnp.uint32(int(value) % 2**32)
    return jnp.asarray(value).astype(jnp.uint32)


def _fold_data(data: jax.Array) -> jax.Array:
    if data.shape == (2,):
        return jnp.array(data, copy=True)
    if data.shape == (4,):
        # An rbg key repeats its two words, so xor would make every seed the same: mix instead.
        return threefry(data[:2], data[2], data[3])
    raise ValueError(
        f"signax: key data of shape {data.shape} is not supported: use a threefry or rbg key."
    )


def _concrete_seed(seed: int) -> jax.Array:
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"signax: seed {seed} has more than 64 bits: pass a smaller integer.")
    high = 0 if -(2**31) <= seed < 0 else (seed >> 32) % 2**32
    return jnp.array([high, seed % 2**32], jnp.uint32)


def _array_seed(seed: jax.Array) -> jax.Array:
    low = seed.astype(jnp.uint32)
    high = jnp.zeros_like(low)
    if seed.dtype.itemsize == 8:
        high = (seed >> 32).astype(jnp.uint32)
        if jnp.issubdtype(seed.dtype, jnp.signedinteger):
            is_int32 = (seed < 0) & (seed >= -(2**31))
            high = jnp.where(is_int32, jnp.uint32(0), high)
    return jnp.stack([high, low])


def _bad_key(key: object) -> TypeError:
    return TypeError(
        "signax: key must be an integer seed, a PRNG key from jax.random.key, or its uint32 key"
        f" data, got {key!r}. Pass for example key=0."
    )
