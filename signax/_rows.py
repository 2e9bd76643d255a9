"""Where a long vector is cut, so that loops over it are fast: rows of 512, and what is left.

XLA cuts a loop over words into one piece per thread. If the pieces are unequal the bounds check
lands in the innermost loop and keeps it from being vectorised (3 to 10 times slower on CPU), as
does padding a last word. So words are made in rows of 64, and what is left is packed apart; below
4096 coordinates the loop stays whole, and a second kernel would cost more than it saves.

What is dear to make, as the error function of a noisy sign, XLA does not fuse into two readers but
writes out, a model at every step. Made in the same two pieces it has one reader for each.
"""

import jax

ROW = 512  # coordinates: 64 words
_SMALL = 4096  # coordinates


def cut(x: jax.Array) -> list[jax.Array]:
    """A vector in one or two pieces: what makes whole rows, if it is long, and what is left."""
    whole = x.size - x.size % ROW if x.size >= _SMALL else 0
    return [x[:whole], x[whole:]] if 0 < whole < x.size else [x]
