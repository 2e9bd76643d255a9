"""What is stepped: a tree of so many leaves, and a network of so many parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NUM_LAYERS = 4  # with their biases, eight leaves


def tree(num_coordinates: int, num_leaves: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Flat leaves of a deep network's sizes: large ones, and as many that are far smaller."""
    weight = np.where(np.arange(num_leaves) % 2 == 0, 100.0, 1.0)
    sizes = (weight * num_coordinates / weight.sum()).astype(int)
    sizes = np.maximum(1, np.where(sizes < 64, sizes, sizes // 64 * 64))  # widths are multiples
    sizes[-1] += num_coordinates - sizes.sum()  # but not that of the last layer
    normal = np.random.default_rng(seed).standard_normal
    return {f"leaf{i:04d}": normal(size, np.float32) for i, size in enumerate(sizes)}


def network(num_parameters: int) -> dict[str, np.ndarray]:
    """Four square layers with biases, of about so many parameters."""
    width = max(1, round(math.sqrt(num_parameters / _NUM_LAYERS + 0.25) - 0.5))
    normal = np.random.default_rng(0).standard_normal
    layers = {}
    for i in range(_NUM_LAYERS):
        layers[f"kernel{i}"] = normal((width, width), np.float32) / np.float32(math.sqrt(width))
        layers[f"bias{i}"] = np.zeros(width, np.float32)
    return layers


def batch(params: dict[str, np.ndarray], num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets."""
    shape = (2, num_examples, params["bias0"].size)
    x, y = np.random.default_rng(1).standard_normal(shape, np.float32)
    return x, y


def loss(params: Any, batch: Any) -> jax.Array:
    """Mean squared error of the network."""
    x, y = batch
    for i in range(_NUM_LAYERS):
        x = x @ params[f"kernel{i}"] + params[f"bias{i}"]
        x = jax.nn.relu(x) if i < _NUM_LAYERS - 1 else x
    return jnp.mean((x - y) ** 2)


def size_of(tree: Any) -> int:
    """How many coordinates a tree has."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
