"""Draws: each worker's gradient of each batch, as one row of one matrix.

A *draw* is what one worker would send at one step: the gradient of its own mini-batch. M workers
and T batches are M T draws, and every statistic here is about draws, so about the mini-batch size
that the batches have.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signax.signs import _sign

LEAST_BATCHES = 8


class Tree(NamedTuple):
    """How a tree of parameters lies in a vector of d coordinates."""

    names: tuple[str, ...]  # the path of each leaf that has coordinates
    bounds: tuple[int, ...]  # leaf l is coordinates bounds[l] to bounds[l + 1]
    shapes: tuple[tuple[int, ...], ...]  # of all leaves
    treedef: Any

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in itertools.pairwise(self.bounds))

    def unflatten(self, vector: np.ndarray) -> Any:
        """A vector of d values as a tree like the parameters."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = np.split(vector, ends[:-1]) if self.shapes else []
        leaves = [part.reshape(s) for part, s in zip(parts, self.shapes, strict=True)]
        return self.treedef.unflatten(leaves)

    def spread(self, values: jax.Array) -> jax.Array:
        """Each leaf's value at each of its coordinates: [..., L] -> [..., d]."""
        return jnp.concatenate(
            [
                jnp.broadcast_to(values[..., i : i + 1], (*values.shape[:-1], size))
                for i, size in enumerate(self.sizes)
            ],
            axis=-1,
        )

    def per_leaf(self, values: jax.Array, reduce: Callable = jnp.sum) -> jax.Array:
        """`reduce` of each leaf's part of the last axis: [..., d] -> [..., L]."""
        parts = [values[..., a:b] for a, b in itertools.pairwise(self.bounds)]
        return jnp.stack([reduce(part, axis=-1) for part in parts], axis=-1)


def tree_of(params: Any) -> Tree:
    """Reads the layout; refuses a tree without coordinates, or with leaves that have no sign."""
    _sign.require_real(params, "diagnostics.examine")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    filled = [(p, x) for p, x in paths_and_leaves if jnp.size(x)]
    if not filled:
        raise ValueError(
            "signax.diagnostics.examine: the parameters hold no coordinate, so nothing"
            " to examine. Pass the tree that you differentiate, such as nnx.state(model)."
        )
    names = tuple(_name(path) for path, _ in filled)
    bounds = tuple(int(n) for n in np.cumsum([0, *(jnp.size(x) for _, x in filled)]))
    shapes = tuple(jnp.shape(x) for _, x in paths_and_leaves)
    return Tree(names, bounds, shapes, treedef)


def _name(path: Any) -> str:
    name = jax.tree_util.keystr(path)
    return name.removesuffix(".value") or "(the whole tree)"  # `.value`: a Flax variable's array


def rows_of(tree: Any, num_workers: int) -> jax.Array:
    """Leaves [M, ...] -> one matrix [M, d], float32."""
    leaves = [x.reshape(num_workers, -1).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=1)


def make_draw(loss_fn: Callable, num_workers: int, has_aux: bool) -> Callable:
    """`draw(params, batch)`: the gradients of M workers on their parts of a batch, [M, d]."""
    gradient = jax.grad(loss_fn, has_aux=has_aux)

    def draw(params: Any, batch: Any) -> jax.Array:
        rows = jax.tree.map(lambda x: jnp.asarray(x), batch)
        rows = jax.tree.map(lambda x: x.reshape(num_workers, -1, *x.shape[1:]), rows)
        gradients = jax.vmap(gradient, (None, 0))(params, rows)
        return rows_of(gradients[0] if has_aux else gradients, num_workers)

    return draw


def num_to_read(batches: Iterable, wanted: int) -> int:
    """How many batches there will be, where that can be known."""
    known = len(batches) if isinstance(batches, Sized) else wanted
    require_enough(known, wanted)
    return min(known, wanted)


def read(batches: Iterable, num_batches: int, num_workers: int) -> Iterator[Any]:
    """The first batches of a stream, each checked."""
    for index, batch in enumerate(itertools.islice(batches, num_batches)):
        require_divisible(batch, index, num_workers)
        yield batch


def require_divisible(batch: Any, index: int, num_workers: int) -> None:
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not paths_and_leaves:
        raise ValueError(f"signax.diagnostics.examine: batch {index} holds no array.")
    for path, leaf in paths_and_leaves:
        shape = jnp.shape(leaf)
        if not shape or shape[0] % num_workers or not shape[0]:
            raise ValueError(
                f"signax.diagnostics.examine: batch {index}, leaf"
                f" {jax.tree_util.keystr(path) or '(the whole batch)'} has shape {shape}, whose"
                f" first axis {num_workers} worker(s) cannot divide. A batch is that of"
                " signax.make_train_step: examples on the leading axis, worker n gets the n-th of"
                " num_workers equal parts."
            )


def first_part(batch: Any, num_workers: int) -> Any:
    """The first worker's mini-batch."""
    return jax.tree.map(lambda x: jnp.asarray(x)[: jnp.shape(x)[0] // num_workers], batch)


def require_enough(num_read: int, wanted: int) -> None:
    if num_read < LEAST_BATCHES:
        raise ValueError(
            f"signax.diagnostics.examine: the stream ended after {num_read} batches. A probability"
            f" cannot be told from a half with fewer than {LEAST_BATCHES}; {wanted} were asked for"
            " (num_batches). Draw them with replacement from the data, or repeat the stream over"
            " several epochs."
        )
