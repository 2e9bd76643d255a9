"""From a config to the parts of a run: data on its workers, a model, an optimizer, one step."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from signax import _drift
from signax.experiments import agreement, cluster
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError
from signax.experiments.feed import Order, Shards, place, place_rows, take_batch
from signax.experiments.metric import Metric
from signax.experiments.optimizers import make_optimizer
from signax.experiments.partition import split_examples
from signax.experiments.task import Part, make_task
from signax.experiments.workers import make_mesh


class Experiment(NamedTuple):
    """Everything that training needs and that does not change while it runs."""

    config: Config
    mesh: Mesh
    metric: Metric
    model: Any  # as `signax.experiments.task.Task` says
    first_params: Any
    optimizer: Any
    step: Any  # (state, batch) -> (state, metrics)
    order: Order
    train: Shards
    test: Shards
    scored_train: Shards  # of `train`, what is judged at the end of a run

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
        """Tells each worker which of its examples to take: int32 [num_rounds, M, k B/M].

        A round is k = `config.local_steps` steps, of which each has its own B/M examples.
        """
        rows, k = self.order.rows(first_step, num_steps), self.config.local_steps
        rows = rows.reshape(-1, k, *rows.shape[1:]).swapaxes(1, 2)
        return place_rows(rows.reshape(*rows.shape[:2], -1), self.mesh)

    @property
    def num_dense_steps(self) -> int:
        """How many of the first exchanges are not compressed."""
        return self.config.optimizer.dense.steps or self.config.optimizer.freeze_steps or 0

    def wire_report(self, state: signax.TrainState) -> signax.WireReport:
        """Reads from the compiled step what one worker sends at an exchange."""
        num_rows = self.config.batch_size * self.config.local_steps
        sharding = NamedSharding(self.mesh, P(*self.mesh.axis_names))
        batch = {
            name: jax.ShapeDtypeStruct((num_rows, *x.shape[2:]), x.dtype, sharding=sharding)
            for name, x in self.train.examples.items()
        }
        return signax.wire_bits(self.step, state, batch, num_coordinates=self.num_coordinates)


def make_experiment(config: Config) -> Experiment:
    """Builds the parts that `config` names; what cannot be built raises `UsageError`."""
    _check_positive(config, *_POSITIVE)
    mesh = make_mesh(config.num_workers)
    optimizer = make_optimizer(config, *mesh.axis_names)
    task = cluster.first_before_others(lambda: make_task(config))
    agreement.require_same({"the data": task.fingerprint})
    split = partial(split_examples, num_workers=mesh.size, seed=config.seed)
    owned = split(config.partition, task.train.labels)
    order = Order([len(examples) for examples in owned], config.batch_size, config.seed)

    def dealt_out(part: Part) -> Shards:
        return place(part.examples, split("iid", part.labels), mesh)

    with jax.default_device(mesh.local_devices[0]):  # not an accelerator that takes no part
        model, params = task.make_model(config.seed)
    train = place(task.train.examples, owned, mesh)
    is_small = task.scored_train is task.train
    return Experiment(
        config=config,
        mesh=mesh,
        metric=task.metric,
        model=model,
        first_params=jax.device_get(params),  # each process has them: drawn from the seed
        optimizer=optimizer,
        step=signax.make_train_step(
            model.loss, optimizer, mesh, has_aux=True, local_steps=config.local_steps
        ),
        order=order,
        train=train,
        test=dealt_out(task.test),
        scored_train=train if is_small else dealt_out(task.scored_train),
    )


_POSITIVE = ("batch_size", "num_steps", "hidden_size", "eval_every", "checkpoint_every",
             "local_steps", "text.sequence_length", "text.num_layers", "text.num_heads",
             "text.scored_bytes")  # fmt: skip


def _check_positive(config: Config, *names: str) -> None:
    fields = agreement.flat(config.to_dict())
    for name in names:
        if fields[name] < 1:
            raise UsageError(f"config.{name}={fields[name]}: must be 1 or more.")


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


def make_score(experiment: Experiment) -> Any:
    """Returns a jitted function from parameters and shards to the task's metric."""

    @jax.jit
    def score(params: Any, shards: Shards) -> jax.Array:
        return experiment.model.score(params, shards.examples, shards.is_example)

    return score
