r"""Are the replicas still equal? A fingerprint of bits, compared over the workers.

Votes are integers and every worker applies the same update, so replicas stay equal bit for bit. If
they do not, something else is wrong (memory, a worker's own edit, a different program), and
training goes on looking healthy. The fingerprint of a leaf with bit patterns b_i is

$$ F = \sum_i \operatorname{hash}(i, b_i) \bmod 2^{32}, $$

which one flipped bit changes; equal on all workers if and only if their smallest and largest are.
"""

from typing import Any

import jax
import jax.numpy as jnp

from signax import _workers
from signax.signs import _random


def replicas_in_sync(tree: Any, axis_name: _workers.AxisName) -> jax.Array:
    """Whether all workers hold bit for bit the same tree.

    Two collectives of 32 bits per leaf. It finds a difference of one unit in the last place of one
    coordinate on one worker, whether or not types are tracked (`check_vma`); two different leaves
    pass as equal with probability 2^-32.

    Args:
      tree: The parameters, or anything that should be equal on all workers. Arrays of any dtype;
        NaNs are compared by their bits; 0.0 and -0.0 differ.
      axis_name: The workers' axis or a tuple of axes.

    Returns:
      A bool scalar, the same on all workers; True for an empty tree.

    Raises:
      ValueError: If an axis is not bound.

    Example:
      >>> check = lambda x: signax.replicas_in_sync(x, "workers")
      >>> print(jax.vmap(check, axis_name="workers")(jnp.array([1.0, 1.0, 1.0])))
      [ True  True  True]
    """
    return jnp.all(leaves_in_sync(tree, axis_name))


def leaves_in_sync(tree: Any, axis_name: _workers.AxisName) -> jax.Array:
    """For each leaf, in the order of `jax.tree.leaves`, whether all workers hold the same bits."""
    _workers.require_bound(axis_name, "replicas_in_sync")
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    fingerprints = jnp.array([_fingerprint(x) for x in leaves], jnp.uint32)
    # Typed as varying: a value that JAX believes to be replicated is just what is to be checked.
    fingerprints = _workers.as_varying(fingerprints, axis_name)
    return jax.lax.pmin(fingerprints, axis_name) == jax.lax.pmax(fingerprints, axis_name)


def _fingerprint(x: jax.Array) -> jax.Array:
    words = _bit_patterns(x)
    # The hash of a position, then of the pattern at it: two swapped values do not cancel.
    positions = _random.random_words(jnp.array([0x66696E67, 0x65727072], jnp.uint32), words.size)
    mixed = (words ^ positions) * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _bit_patterns(x: jax.Array) -> jax.Array:
    """The bits of `x` as a vector of uint32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = 8 * x.dtype.itemsize
    words = jax.lax.bitcast_convert_type(x, jnp.uint32 if bits >= 32 else f"uint{bits}")
    return words.reshape(-1).astype(jnp.uint32)
