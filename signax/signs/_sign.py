r"""The sign of a gradient: what a worker says when it says one bit per coordinate.

The paper's sign is ternary, $\operatorname{sign}(0) = 0$, and so is `jnp.sign`. This file holds
what all signs share: which leaves have a sign at all, and whether a worker has anything to say.

Source: Safaryan and Richtarik, "Stochastic Sign Descent Methods", ICML 2021, arXiv:1905.12938, (2).
"""

from typing import Any

import jax
import jax.numpy as jnp


def require_real(updates: Any, link: str) -> None:
    """Raises a `TypeError` naming the first leaf that is not of a real floating dtype."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        dtype = jax.dtypes.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"signax.{link}: the update at {jax.tree_util.keystr(path) or '(the whole tree)'}"
                f" has dtype {dtype}. A vote needs the sign of a real number, so only"
                " floating-point leaves can take part. Leave integer and complex leaves out of"
                " the differentiated parameters (jax.grad's argnums, nnx.Param, optax.partition),"
                " or cast them to a float."
            )


def all_finite(*trees: Any) -> jax.Array:
    """Whether no leaf of the trees holds a NaN or an infinity: a bool scalar, True if empty."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(trees)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves], dtype=bool))
