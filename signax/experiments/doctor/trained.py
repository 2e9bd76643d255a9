"""A subject from a config of `signax train`: its data, its workers, its network after some steps.

All examples are at hand, so unless they are too many the reference is exact: each worker's gradient
over all that it owns.
Batches are drawn with replacement, independently, as the statistics want it; training itself goes
through its examples in epochs.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from signax.experiments.default_config import Config
from signax.experiments.doctor.subject import Subject
from signax.experiments.experiment import Experiment, make_experiment, make_run_steps
from signax.experiments.feed import Shards

_CHUNK = 4096  # examples whose gradient is taken at once
# Examples times parameters. Above it the exact gradient would take an hour, and the mean over the
# batches stands in for it. MNIST has 3e9.
_MOST_FOR_EXACT = 1e11


def trained(config: Config, num_steps: int, name: str) -> Subject:
    """Trains `config` for `num_steps` steps and returns what to examine there."""
    experiment = make_experiment(config)
    params = _train(experiment, num_steps) if num_steps else experiment.first_params
    device = jax.devices("cpu")[0] if jax.default_backend() == "cpu" else jax.devices()[0]
    params, shards = jax.device_put(jax.device_get((params, experiment.train)), device)

    def loss_fn(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return experiment.model.loss(params, batch)[0]

    cost = experiment.num_coordinates * int(shards.is_example.sum())
    reference = _exact_gradients(loss_fn, params, shards) if cost <= _MOST_FOR_EXACT else None
    stream = _batches(shards, config.batch_size // experiment.num_workers, config.seed)
    return Subject(name, loss_fn, params, stream, experiment.num_workers, reference)


def _train(experiment: Experiment, num_steps: int) -> Any:
    state, run_steps = experiment.first_state(), make_run_steps(experiment)
    every, k, step = experiment.config.eval_every, experiment.config.local_steps, 0
    num_steps = -(-num_steps // k) * k
    with tqdm(total=num_steps, unit="step", desc="training", dynamic_ncols=True) as bar:
        while step < num_steps:
            count = min(every, num_steps - step)
            state, _ = run_steps(state, experiment.train, experiment.rows(step, count))
            step += count
            bar.update(count)
    return state.params


def _exact_gradients(loss_fn: Any, params: Any, shards: Shards) -> Any:
    """Each worker's gradient over all of its examples, [M, ...]: in chunks, for memory."""

    @jax.jit
    def weighted(params, examples, is_example):
        """The sum over the examples of a chunk that are no padding."""

        def total(params):
            one = lambda example: loss_fn(params, jax.tree.map(lambda x: x[None], example))  # noqa: E731
            return jnp.sum(jnp.where(is_example, jax.vmap(one)(examples), 0.0))

        return jax.grad(total)(params)

    workers = []
    for worker, is_example in enumerate(shards.is_example):
        size, num_rows = int(is_example.sum()), len(is_example)
        padding = -num_rows % _CHUNK if num_rows > _CHUNK else 0
        pad = lambda x, n=worker, p=padding: jnp.pad(x[n], ((0, p), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731
        mine = jax.tree.map(pad, shards)
        total = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, num_rows, _CHUNK):
            part = jax.tree.map(lambda x, a=start: x[a : a + _CHUNK], mine)
            gradient = weighted(params, *part)
            total = jax.tree.map(jnp.add, total, gradient)
        workers.append(jax.tree.map(lambda x, n=size: x / n, total))
    return jax.tree.map(lambda *rows: jnp.stack(rows), *workers)


def _batches(shards: Shards, per_worker: int, seed: int) -> Iterator[dict[str, jax.Array]]:
    """Each worker's mini-batch from its own examples, one after another."""
    sizes = np.sum(shards.is_example, axis=1)
    random = np.random.default_rng((seed, 0xD0C))
    worker = np.repeat(np.arange(len(sizes)), per_worker)
    while True:
        row = np.concatenate([random.integers(0, size, per_worker) for size in sizes])
        yield {name: values[worker, row] for name, values in shards.examples.items()}
