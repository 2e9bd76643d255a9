"""Buffers laid end to end by plain copies, in memory before anything reads them.

XLA on a CPU fuses a concatenation of up to eight arrays into whatever reads it, and every element
then walks a tree of branches to find its array: the loop is not vectorised, and what should be a
copy at memory speed takes longer than packing and counting together. More than eight it copies
(`kMaxConcatenateArguments` in XLA's cpu_instruction_fusion.cc). The same holds for rows that a
collective left with a header between them: read as one vector, each element divides to find its
row. So these buffers are cut into nine pieces or more; on packed words a copy costs a thirty-second
of a pass over the model.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_PIECES = 9  # the fewest that XLA copies
_ALIGNED = 64  # elements: a piece starts where vectors are loaded fastest
_SMALL = 16 * 1024  # elements: below, branches cost less than the copies' kernels
_MOST_ROWS = 64  # more are left to XLA: a program as long as the workers are many compiles for ever


def concatenate(pieces: Sequence[jax.Array]) -> jax.Array:
    """`jnp.concatenate` of vectors."""
    size = sum(piece.size for piece in pieces)
    if size < _SMALL:
        return jnp.concatenate(pieces)
    longest = size // _PIECES // _ALIGNED * _ALIGNED
    # The barriers keep XLA from moving slices into what made them, and from joining neighbours.
    pieces = jax.lax.optimization_barrier(list(pieces))
    parts = [x[i : i + longest] for x in pieces for i in range(0, x.size, longest)]
    return jax.lax.optimization_barrier(jnp.concatenate(jax.lax.optimization_barrier(parts)))


def side_by_side(blocks: Sequence[jax.Array]) -> jax.Array:
    """`jnp.concatenate` of matrices along the rows: [M, A], [M, B] -> [M, A + B]."""
    num_rows = len(blocks[0])
    if num_rows > _MOST_ROWS:
        return jnp.concatenate(blocks, axis=1)
    return concatenate([x[n] for n in range(num_rows) for x in blocks]).reshape(num_rows, -1)


def flat(rows: jax.Array) -> jax.Array:
    """`rows.reshape(-1)` of a matrix whose rows are slices of longer ones."""
    return rows.reshape(-1) if len(rows) > _MOST_ROWS else concatenate(list(rows))
