"""Five ternary digits in a byte: a coordinate that says -1, 0 or +1 in 1.6 bits instead of 2.

Three to the fifth is 243, so a byte holds five digits 0, 1, 2: a sign + 1. They come as two planes
whose bits add up to the digit, and leave as bytes x = sum_k 3^k digit_k; five words of both planes
(40 coordinates, 10 bytes) are 8 bytes then. Digit k is from the k-th fifth of the words and byte
row b from bit b of each, so that every step is arithmetic on long vectors and nothing is gathered.
The barriers keep XLA from computing bytes and words anew for each of their readers.

    words    | fifth 0 | fifth 1 | fifth 2 | fifth 3 | fifth 4 |       V words each
                  |         |         |         |         |
    bit b      digit 0 + 3 digit 1 + 9 digit 2 + 27 digit 3 + 81 digit 4   ->  row b of V bytes
"""

import jax
import jax.numpy as jnp

_DIGITS = 5  # 3^5 = 243 <= 256
_BITS = 8


def encode(planes: jax.Array) -> jax.Array:
    """uint8[..., 2, S], of which no coordinate has only the first bit set, -> uint8[..., T]."""
    fifth = _fifth(planes.shape[-1])
    padding = [(0, 0)] * (planes.ndim - 1) + [(0, _DIGITS * fifth - planes.shape[-1])]
    fifths = jnp.pad(planes, padding).reshape(*planes.shape[:-1], _DIGITS, 1, fifth)
    is_set = (fifths & _masks(fifths.ndim)) != 0  # [..., 2, 5, 8, V]
    byte = jnp.zeros((), jnp.uint8)
    for k in range(_DIGITS):
        for plane in range(2):
            byte += jnp.where(is_set[..., plane, k, :, :], jnp.uint8(3**k), jnp.uint8(0))
    return jax.lax.optimization_barrier(byte.reshape(*planes.shape[:-2], _BITS * fifth))


def decode(received: jax.Array, num_words: int) -> jax.Array:
    """The inverse: uint8[..., T] -> uint8[..., 2, S]."""
    rows = received.reshape(*received.shape[:-1], _BITS, _fifth(num_words))  # [..., 8, V]
    planes, masks = [[], []], _masks(rows.ndim)
    for k in range(_DIGITS):
        digit = (rows // jnp.uint8(3**k)) % jnp.uint8(3)
        for plane, is_set in enumerate((digit == 2, digit >= 1)):
            bits = jnp.where(is_set, masks, jnp.uint8(0))
            planes[plane].append(jnp.sum(bits, axis=-2, dtype=jnp.uint8))
    words = jnp.stack([jnp.concatenate(p, axis=-1)[..., :num_words] for p in planes], axis=-2)
    return jax.lax.optimization_barrier(words)


def _fifth(num_words: int) -> int:
    return -(-num_words // _DIGITS)


def _masks(ndim: int) -> jax.Array:
    """uint8[..., 8, 1]: bit b of a word."""
    masks = jnp.uint8(1) << jnp.arange(_BITS, dtype=jnp.uint8)
    return masks.reshape([1] * (ndim - 2) + [_BITS, 1])
