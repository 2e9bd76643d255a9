"""A tree of four leaves with padded words, as a vector and back; gradients of unequal workers."""

import math

import jax
import jax.numpy as jnp
import numpy as np

NUM_STEPS = 20
SHAPES = {"a": (5,), "b": (3, 8), "c": (), "d": (9,)}  # words: 1, 3, 1, 2; padding in a, c and d
SIZES = [math.prod(shape) for shape in SHAPES.values()]
SIZE = sum(SIZES)
LEAVES = np.split(np.arange(SIZE), np.cumsum(SIZES)[:-1])


def to_tree(x: jax.Array) -> dict[str, jax.Array]:
    parts = jnp.split(x, np.cumsum(SIZES)[:-1])
    return {k: part.reshape(s) for part, (k, s) in zip(parts, SHAPES.items(), strict=True)}


def to_vector(tree: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([tree[k].reshape(-1) for k in SHAPES])


def random_rows(num_workers: int) -> np.ndarray:
    """Gradients of workers that differ in size; in some steps some or all workers abstain."""
    rng = np.random.default_rng(num_workers)
    rows = rng.normal(size=(NUM_STEPS, num_workers, SIZE)) * (1 + np.arange(num_workers))[:, None]
    rows = rows.astype(np.float32)
    rows[3, 0, 7] = np.nan
    rows[8, :, 2] = np.inf
    return rows
