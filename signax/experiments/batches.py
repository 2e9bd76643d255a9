"""Where the batches of a simulated run come from: arrays dealt out in epochs, or a function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Batches(NamedTuple):
    """Every random choice is an address, (seed's key, step, worker): any step can be replayed."""

    init: Callable[[jax.Array], Any]  # key -> memory
    take: Callable[..., tuple[Any, Any]]  # (arrays, memory, key, step) -> (batch, memory)
    arrays: Any  # handed to `take`, so that a jitted run has them as an argument


def in_epochs(data: Any, batch_size: int, num_workers: int) -> Batches:
    """Shared data: before each epoch the examples are shuffled, then dealt out in order.

    A step takes `num_workers * batch_size` examples, and worker n the n-th part of them. What is
    left at the end of an epoch sits out.
    """
    num_examples = len(jax.tree.leaves(data)[0])
    per_step = num_workers * batch_size
    steps_per_epoch = num_examples // per_step

    def init(key):
        del key
        return jnp.arange(num_examples, dtype=jnp.int32)

    def take(arrays, order, key, step):
        epoch, position = jnp.divmod(step, steps_per_epoch)
        shuffle = lambda order: jax.random.permutation(jax.random.fold_in(key, epoch), order)  # noqa: E731
        order = jax.lax.cond(position == 0, shuffle, lambda order: order, order)
        rows = jax.lax.dynamic_slice_in_dim(order, position * per_step, per_step)
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), arrays), order

    return Batches(init, take, jax.tree.map(jnp.asarray, data))


def from_function(sample_batch: Callable, num_workers: int) -> Batches:
    """`sample_batch(key, worker)`, mapped over the workers, with a key for each step and worker."""
    workers = jnp.arange(num_workers)

    def take(arrays, memory, key, step):
        del arrays
        key = jax.random.fold_in(key, step)
        keys = jax.vmap(lambda worker: jax.random.fold_in(key, worker))(workers)
        batch = jax.vmap(sample_batch)(keys, workers)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), memory

    return Batches(lambda key: (), take, ())
