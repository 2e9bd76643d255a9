"""Batches that never leave the devices.

Every worker keeps its own examples in its own memory, as bytes. The host sends only *which*
example each worker takes at each step, for many steps at once, so a jitted scan never waits.

Of several processes, each copies only its own workers' examples.

The order is an address, not a stream: worker n's order in an epoch is a permutation drawn from
(seed, epoch, n). Any step can be replayed, and a resumed run sees the batches it would have seen.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from signax.experiments.errors import UsageError
from signax.experiments.task import Examples
from signax.experiments.workers import AXIS_NAME


class Shards(NamedTuple):
    """Row n belongs to worker n and lies in its memory; short rows are padded with zeros."""

    examples: dict[str, jax.Array]  # [M, num_rows, ...]
    is_example: jax.Array  # bool [M, num_rows]; False where there is only padding


def place(examples: Examples, owned: list[np.ndarray], mesh: Mesh) -> Shards:
    """Copies to each worker the examples that it owns."""
    num_rows = max(map(len, owned))
    sharding = NamedSharding(mesh, P(AXIS_NAME))

    def put(values: np.ndarray, owned: list[np.ndarray]) -> jax.Array:
        def of(index: Any) -> np.ndarray:  # of one worker, as its device asks for them
            return _padded(values, owned[index[0]], num_rows)

        shape = (len(owned), num_rows, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, of)

    sizes = [np.arange(len(mine)) for mine in owned]
    return Shards(
        {name: put(values, owned) for name, values in examples.items()},
        put(np.ones(num_rows, bool), sizes),
    )


def _padded(values: np.ndarray, owned: list[np.ndarray], num_rows: int) -> np.ndarray:
    rows = np.zeros((len(owned), num_rows, *values.shape[1:]), values.dtype)
    for row, examples in zip(rows, owned, strict=True):
        row[: len(examples)] = values[examples]
    return rows


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Tells each worker which of its examples to take: int32 [num_steps, M, B/M]."""
    sharding = NamedSharding(mesh, P(None, AXIS_NAME))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def take_batch(shards: Shards, rows: jax.Array, mesh: Mesh) -> dict[str, jax.Array]:
    """Gathers, on each worker, the rows it was told: rows [M, B/M] -> a batch of B examples."""

    @partial(jax.shard_map, mesh=mesh, in_specs=P(AXIS_NAME), out_specs=P(AXIS_NAME))
    def gather(mine: dict[str, jax.Array], mine_rows: jax.Array) -> dict[str, jax.Array]:
        return jax.tree.map(lambda array: jnp.take(array[0], mine_rows[0], axis=0), mine)

    batch = gather(shards.examples, rows)
    if len(mesh.axis_names) == 1:
        return batch
    # Each device of a worker sees examples of its own.
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P(mesh.axis_names)))


class Order:
    """Which row each worker takes at each step."""

    def __init__(self, sizes: list[int], batch_size: int, seed: int):
        """Checks that the batch fits.

        Args:
          sizes: number of examples that each worker owns.
          batch_size: examples per step, all workers together.
          seed: of the permutations.
        """
        num_workers = len(sizes)
        if batch_size < 1 or batch_size % num_workers:
            raise UsageError(
                f"config.batch_size={batch_size} is not divisible by {num_workers} workers: "
                f"{_nearest_multiple(batch_size, num_workers)} is."
            )
        self._per_worker = batch_size // num_workers
        self.steps_per_epoch = min(sizes) // self._per_worker
        if not self.steps_per_epoch:
            raise UsageError(
                f"config.batch_size={batch_size} takes {self._per_worker} examples of each worker "
                f"and one has only {min(sizes)}: lower it to {min(sizes) * num_workers} or less."
            )
        self._sizes, self._seed = sizes, seed
        self._epoch_rows = lru_cache(maxsize=1)(self._draw_epoch)

    def rows(self, first_step: int, num_steps: int) -> np.ndarray:
        """Returns the rows for `num_steps` steps: int32 [num_steps, M, B/M]."""
        steps = range(first_step, first_step + num_steps)
        return np.stack([self._step_rows(step) for step in steps])

    def _step_rows(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch_rows(epoch)[position]

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        used = self.steps_per_epoch * self._per_worker  # the rest sits out: another one each epoch
        orders = [
            np.random.default_rng((self._seed, epoch, worker)).permutation(size)[:used]
            for worker, size in enumerate(self._sizes)
        ]
        by_worker = np.asarray(orders, np.int32).reshape(len(orders), -1, self._per_worker)
        return by_worker.swapaxes(0, 1)


def _nearest_multiple(value: int, factor: int) -> int:
    return max(1, round(value / factor)) * factor
