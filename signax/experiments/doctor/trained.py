"""A subject from a config of `signax train`: its data, its workers, its network after some steps.

All examples are at hand, so the reference is exact: each worker's gradient over all that it owns.
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
from signax.experiments.feed import PADDING

_CHUNK = 4096  # examples whose gradient is taken at once


def trained(config: Config, num_steps: int, name: str) -> Subject:
    """Trains `config` for `num_steps` steps and returns what to examine there."""
    experiment = make_experiment(config)
    params = _train(experiment, num_steps) if num_steps else experiment.first_params
    device = jax.devices("cpu")[0] if jax.default_backend() == "cpu" else jax.devices()[0]
    params, images, labels = jax.device_put(
        jax.device_get((params, experiment.train.images, experiment.train.labels)), device
    )

    def loss_fn(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return experiment.model.loss(params, batch)[0]

    reference = _exact_gradients(loss_fn, params, images, labels)
    stream = _batches(images, labels, config.batch_size // experiment.num_workers, config.seed)
    return Subject(name, loss_fn, params, stream, experiment.num_workers, reference)


def _train(experiment: Experiment, num_steps: int) -> Any:
    state, run_steps = experiment.first_state(), make_run_steps(experiment)
    every, step = experiment.config.eval_every, 0
    with tqdm(total=num_steps, unit="step", desc="training", dynamic_ncols=True) as bar:
        while step < num_steps:
            count = min(every, num_steps - step)
            state, _ = run_steps(state, experiment.train, experiment.rows(step, count))
            step += count
            bar.update(count)
    return state.params


def _exact_gradients(loss_fn: Any, params: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Each worker's gradient over all of its examples, [M, ...]: in chunks, for memory."""

    @jax.jit
    def weighted(params, images, labels):
        """The sum over the examples of a chunk that are no padding."""

        def total(params):
            losses = jax.vmap(lambda x, y: loss_fn(params, {"image": x[None], "label": y[None]}))
            is_example = labels != PADDING
            return jnp.sum(jnp.where(is_example, losses(images, jnp.maximum(labels, 0)), 0.0))

        return jax.grad(total)(params)

    workers = []
    for mine, their_labels in zip(images, labels, strict=True):
        size = int(jnp.sum(their_labels != PADDING))
        padding = -len(mine) % _CHUNK if len(mine) > _CHUNK else 0
        mine = jnp.pad(mine, ((0, padding), (0, 0)))
        their_labels = jnp.pad(their_labels, (0, padding), constant_values=PADDING)
        total = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, len(mine), _CHUNK):
            part = slice(start, start + _CHUNK)
            gradient = weighted(params, mine[part], their_labels[part])
            total = jax.tree.map(jnp.add, total, gradient)
        workers.append(jax.tree.map(lambda x, n=size: x / n, total))
    return jax.tree.map(lambda *rows: jnp.stack(rows), *workers)


def _batches(
    images: jax.Array, labels: jax.Array, per_worker: int, seed: int
) -> Iterator[dict[str, jax.Array]]:
    """Each worker's mini-batch from its own examples, one after another."""
    sizes = np.sum(np.asarray(labels) != PADDING, axis=1)
    random = np.random.default_rng((seed, 0xD0C))
    worker = np.repeat(np.arange(len(sizes)), per_worker)
    while True:
        row = np.concatenate([random.integers(0, size, per_worker) for size in sizes])
        yield {"image": images[worker, row], "label": labels[worker, row]}
