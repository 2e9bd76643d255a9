"""From a config to the parts of a run: data on its workers, a model, an optimizer, one step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from signax import _drift
from signax.experiments import cluster
from signax.experiments.data import load_dataset
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError
from signax.experiments.feed import PADDING, Order, Shards, place, place_rows, take_batch
from signax.experiments.model import Model, make_model
from signax.experiments.optimizers import make_optimizer
from signax.experiments.partition import split_examples
from signax.experiments.workers import make_mesh


class Experiment(NamedTuple):
    """Everything that training needs and that does not change while it runs."""

    config: Config
    mesh: Mesh
    model: Model
    first_params: Any
    optimizer: Any
    step: Any  # (state, batch) -> (state, metrics)
    order: Order
    train: Shards
    test: Shards

    @property
    def num_workers(self) -> int:
        return self.mesh.size

    @property
    def num_coordinates(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.first_params))

    def first_state(self) -> signax.TrainState:
        """The state before the first step."""
        return signax.init_train_state(self.first_params, self.optimizer, self.mesh)

    def state_of(self, num_workers: int) -> signax.TrainState:
        """Shapes of a state of another number of workers, all of it on every device."""
        state = jax.eval_shape(
            lambda: signax.init_train_state(self.first_params, self.optimizer, num_workers)
        )
        everywhere = NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
        )

    def rows(self, first_step: int, num_steps: int) -> jax.Array:
        """Tells each worker which of its examples to take: int32 [num_steps, M, B/M]."""
        return place_rows(self.order.rows(first_step, num_steps), self.mesh)

    @property
    def num_dense_steps(self) -> int:
        """How many of the first steps are not compressed."""
        return self.config.optimizer.dense.steps or self.config.optimizer.freeze_steps or 0

    def wire_report(self, state: signax.TrainState) -> signax.WireReport:
        """Reads from the compiled step what one worker sends."""
        batch_size, num_pixels = self.config.batch_size, self.train.images.shape[-1]
        array = partial(
            jax.ShapeDtypeStruct, sharding=NamedSharding(self.mesh, P(*self.mesh.axis_names))
        )
        batch = {
            "image": array((batch_size, num_pixels), np.uint8),
            "label": array((batch_size,), np.int32),
        }
        return signax.wire_bits(self.step, state, batch, num_coordinates=self.num_coordinates)


def make_experiment(config: Config) -> Experiment:
    """Builds the parts that `config` names; what cannot be built raises `UsageError`."""
    _check_positive(
        config, "batch_size", "num_steps", "hidden_size", "eval_every", "checkpoint_every"
    )
    mesh = make_mesh(config.num_workers)
    optimizer = make_optimizer(config, *mesh.axis_names)
    data = cluster.first_before_others(lambda: load_dataset(config))
    split = partial(split_examples, num_workers=mesh.size, seed=config.seed)
    owned = split(config.partition, data.train.labels)
    order = Order([len(examples) for examples in owned], config.batch_size, config.seed)
    with jax.default_device(mesh.local_devices[0]):  # not an accelerator that takes no part
        num_pixels = data.train.images.shape[1]
        model, params = make_model(
            num_pixels, config.hidden_size, data.num_classes, data.max_pixel, config.seed
        )
    return Experiment(
        config=config,
        mesh=mesh,
        model=model,
        first_params=jax.device_get(params),  # each process has them: drawn from the seed
        optimizer=optimizer,
        step=signax.make_train_step(model.loss, optimizer, mesh, has_aux=True),
        order=order,
        train=place(data.train, owned, mesh),
        test=place(data.test, split("iid", data.test.labels), mesh),
    )


def _check_positive(config: Config, *names: str) -> None:
    for name in names:
        if config[name] < 1:
            raise UsageError(f"config.{name}={config[name]}: must be 1 or more.")


def make_run_steps(experiment: Experiment) -> Any:
    """Returns a jitted function that makes as many steps as it is given rows, without the host."""

    @partial(jax.jit, donate_argnums=0)
    def run_steps(
        state: signax.TrainState, shards: Shards, rows: jax.Array
    ) -> tuple[signax.TrainState, dict[str, jax.Array]]:
        def one_step(state: signax.TrainState, rows: jax.Array) -> Any:
            return experiment.step(state, take_batch(shards, rows, experiment.mesh))

        return jax.lax.scan(one_step, state, rows)

    return run_steps


def make_leaves_in_sync(mesh: Mesh) -> Any:
    """Returns a jitted function that says for each leaf whether all workers hold the same bits."""
    axes = mesh.axis_names
    return jax.jit(
        jax.shard_map(
            lambda tree: _drift.leaves_in_sync(tree, axes), mesh=mesh, in_specs=P(), out_specs=P()
        )
    )


def make_accuracy(model: Model) -> Any:
    """Returns a jitted function from parameters and shards to the share of right answers."""

    @jax.jit
    def accuracy(params: Any, shards: Shards) -> jax.Array:
        num_correct = model.num_correct(params, shards.images, shards.labels)
        return num_correct / (shards.labels != PADDING).sum()

    return accuracy
