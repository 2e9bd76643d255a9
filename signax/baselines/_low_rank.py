r"""PowerSGD: each matrix by two thin factors, from one step of power iteration per training step.

$$ P = \frac{1}{M} \sum_n A^n Q, \quad \hat P = \operatorname{orthogonalize}(P), \quad
   Q \leftarrow \frac{1}{M} \sum_n (A^n)^\top \hat P, \quad u = \hat P Q^\top $$

Both factors are linear in the gradients, so both travel by plain all-reduce.

Source: Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019, arXiv:1905.13727.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signax import _network, _workers
from signax.baselines import _link

# Of a column outside the span of those before it: rounding of float32, about 80 ulp.
_NEGLIGIBLE = 1e-5


def average_low_rank(
    axis_name: _workers.AxisName | None,
    *,
    rank: int = 4,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""The mean of the workers' gradients to rank r, with error feedback: PowerSGD.

    $$ A^n = G^n + E^n, \quad P = \overline{A^n Q}, \quad \hat P = \operatorname{orth}(P), \quad
       Q^n = (A^n)^\top \hat P, \quad E^n \leftarrow A^n - \hat P (Q^n)^\top, \quad
       Q \leftarrow \overline{Q^n}, \quad u = \hat P Q^\top $$

    A leaf of shape (n, ...) is a matrix of n rows. Vectors and scalars, and matrices that the two
    factors would not make smaller (r(n + m) >= nm), travel dense. All P and all dense leaves share
    one float32 all-reduce, all Q a second: 64 (M - 1)/M bits for each of the sum of r(n + m) + the
    dense coordinates + 1 numbers. Q starts from the last step's (a warm start), at first from
    standard normal numbers. The residual subtracts the worker's own part, P (Q^n)^T, as in
    Algorithm 2: it stays small however much the workers' gradients differ, and the mean of the
    residuals is the same as with the averaged Q.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker (compressed all the same).
      rank: r, at least 1; the paper's are 1 to 4.
      key: An integer seed or a PRNG key for the first Q, the same on all workers.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. A
      column of P that lies in the span of those before it (a zero gradient, a matrix of lower rank)
      says nothing, and its column of Q stays for the next step. A worker whose tree holds a NaN or
      an infinity abstains and keeps its residual; without any other the update is zero and Q stays.
      An empty tree passes.

    Raises:
      ValueError: For a rank that is not a positive integer or an unknown `on_nonfinite`; at update,
        if an axis is not bound, or if the gradients were already summed over the workers.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.average_low_rank(None, rank=1)
      >>> g = jnp.outer(jnp.arange(1.0, 4.0), jnp.ones(4))  # of rank 1: nothing is lost
      >>> u, state = tx.update(g, tx.init(g))
      >>> print(bool(jnp.allclose(u, g, atol=1e-5)))
      True

    References:
      Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
      Distributed Optimization, NeurIPS 2019, arXiv:1905.13727, Algorithms 1 and 2.
    """
    name = "baselines.average_low_rank"
    _link.require_positive_integer(rank, name, "rank", "The paper uses 1 to 4.")

    def exchange(updates, is_voting, state):
        leaves, treedef = jax.tree.flatten(updates)  # below, by the number of the leaf
        found = {i: _shape_of_factor(a, rank) for i, a in enumerate(leaves)}
        shapes = {i: shape for i, shape in found.items() if shape}
        old = dict(zip(shapes, _cut(state.memory, [*shapes.values()]), strict=True))
        matrices = {i: _as_matrix(leaves[i]) for i in shapes}
        dense = {i: a for i, a in enumerate(leaves) if i not in shapes}
        sent = {i: _times(matrices[i], old[i]) for i in shapes} | dense
        sums, voters = _link.all_reduce([*sent.values()], is_voting, axis_name)
        count = jnp.maximum(voters, 1).astype(jnp.float32)
        means = {i: x / count for i, x in zip(sent, sums, strict=True)}
        p = {i: _orthogonalize(means[i]) for i in shapes}
        own = {i: _times(matrices[i].T, p[i]) for i in shapes}
        totals, _ = _link.all_reduce([*own.values()], None, axis_name) if own else ([], voters)
        q = {i: x / count for i, x in zip(own, totals, strict=True)}
        mean = means | {i: _times(p[i], q[i].T) for i in shapes}
        said = dense | {i: _times(p[i], own[i].T) for i in shapes}

        def as_tree(of_leaf):
            return treedef.unflatten([of_leaf[i].reshape(a.shape) for i, a in enumerate(leaves)])

        kept = [_warm(q[i], old[i]) for i in shapes]
        return as_tree(mean), voters, as_tree(said), _laid_end_to_end(kept)

    def init_memory(params, words):
        base = jax.random.wrap_key_data(words, impl="threefry2x32")
        shapes = [_shape_of_factor(p, rank) for p in jax.tree.leaves(params)]
        keys = [jax.random.fold_in(base, i) for i in range(len(shapes))]
        return _laid_end_to_end(
            [jax.random.normal(k, s, jnp.float32) for k, s in zip(keys, shapes, strict=True) if s]
        )

    return _link.make(
        name,
        axis_name,
        exchange,
        has_feedback=True,
        key=key,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
        init_memory=init_memory,
    )


def _shape_of_factor(leaf: Any, rank: int) -> tuple[int, int] | None:
    """Q's [m, r]; None for a leaf that travels dense."""
    shape = jnp.shape(leaf)
    size = int(np.prod(shape))
    rows = shape[0] if shape else 1
    columns = size // max(rows, 1)
    return None if len(shape) < 2 or rank * (rows + columns) >= size else (columns, rank)


def _laid_end_to_end(factors: list[jax.Array]) -> jax.Array | None:
    """All Q in one vector: a leaf of the state that does not look like parameters to Optax."""
    return jnp.concatenate([q.reshape(-1) for q in factors]) if factors else None


def _cut(vector: jax.Array | None, shapes: list[tuple[int, int]]) -> list[jax.Array]:
    if vector is None:  # every leaf travels dense
        return []
    *parts, _ = jnp.split(vector, np.cumsum([m * r for m, r in shapes], dtype=int))
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _as_matrix(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _orthogonalize(p: jax.Array) -> jax.Array:
    """Gram-Schmidt on the columns; zeros for a column in the span of those before it."""
    largest = jnp.max(jnp.abs(p))
    p = p / jnp.where(largest > 0, largest, 1.0)  # squares of 1e-30 or 1e30 leave float32
    columns = []
    for j in range(p.shape[1]):
        column = p[:, j]
        threshold = _NEGLIGIBLE * jnp.linalg.norm(column)
        for other in columns * 2:  # twice is enough (Giraud, Langou, Rozloznik 2005)
            column = column - jnp.dot(other, column, precision="highest") * other
        norm = jnp.linalg.norm(column)
        is_new = norm > threshold
        columns.append(jnp.where(is_new, column / jnp.where(is_new, norm, 1.0), 0.0))
    return jnp.stack(columns, axis=1)


def _warm(new: jax.Array, old: jax.Array) -> jax.Array:
    """The next step's Q: a column that said nothing keeps its last value."""
    said = jnp.any(new != 0, axis=0, keepdims=True)
    return jnp.where(said, new, old)
