"""From a config to the parts of a run: data on its workers, a model, an optimizer, one step."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from signax.experiments.workers import AXIS_NAME, INSIDE, make_mesh


class Experiment(NamedTuple):
    """Everything that training needs and that does not change while it runs."""

    config: Config
    mesh: Mesh
    metric: Metric
    model: Any  # as `signax.experiments.task.Task` says
    first_params: Any
    param_specs: Any  # how they are cut over the devices of each worker; None: they are not
    optimizer: Any
    step: Any  # (state, batch) -> (state, metrics)
    order: Order
    train: Shards
    test: Shards
    scored_train: Shards  # of `train`, what is judged at the end of a run

    @property
    def num_workers(self) -> int:
        return self.mesh.shape[AXIS_NAME]

    @property
    def num_coordinates(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.first_params))

    def first_state(self) -> signax.TrainState:
        """The state before the first step."""
        return signax.init_train_state(
            self.first_params, self.optimizer, self.mesh, **_cut(self.param_specs)
        )

    def changed(self, state: signax.TrainState, how: Any) -> signax.TrainState:
        """A state of another number of workers, as one of this experiment's."""
        return signax.change_num_workers(
            state, self.optimizer, self.mesh, how, **_cut(self.param_specs)
        )

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
        """Reads from the compiled step what one worker sends to others at an exchange."""
        num_rows = self.config.batch_size * self.config.local_steps
        sharding = NamedSharding(self.mesh, P(self.mesh.axis_names))
        batch = {
            name: jax.ShapeDtypeStruct((num_rows, *x.shape[2:]), x.dtype, sharding=sharding)
            for name, x in self.train.examples.items()
        }
        report = signax.wire_bits(self.step, state, batch, num_coordinates=self.num_coordinates)
        return report if self.param_specs is None else report.across(AXIS_NAME, self.mesh)


def _cut(param_specs: Any) -> dict[str, Any]:
    return {} if param_specs is None else {"axis_names": (AXIS_NAME,), "param_specs": param_specs}


def make_experiment(config: Config) -> Experiment:
    """Builds the parts that `config` names; what cannot be built raises `UsageError`."""
    _check_numbers(config)
    mesh = make_mesh(config.num_workers, config.devices_per_worker)
    num_workers = mesh.shape[AXIS_NAME]
    optimizer = make_optimizer(config, AXIS_NAME)
    task = cluster.first_before_others(lambda: make_task(config))
    agreement.require_same({"the data": task.fingerprint})
    split = partial(split_examples, num_workers=num_workers, seed=config.seed)
    owned = split(config.partition, task.train.labels)
    order = Order([len(examples) for examples in owned], config.batch_size, config.seed)
    if config.batch_size % mesh.size:
        raise UsageError(
            f"config.batch_size={config.batch_size} is not divisible by {num_workers} workers of"
            f" {config.devices_per_worker} devices: {mesh.size} is, and its multiples."
        )

    def dealt_out(part: Part) -> Shards:
        return place(part.examples, split("iid", part.labels), mesh)

    with jax.default_device(mesh.local_devices[0]):  # not an accelerator that takes no part
        model, params = task.make_model(config.seed)
    train = place(task.train.examples, owned, mesh)
    is_small = task.scored_train is task.train
    param_specs = cut_largest_dimension(params, mesh) if INSIDE in mesh.axis_names else None
    return Experiment(
        config=config,
        mesh=mesh,
        metric=task.metric,
        model=model,
        first_params=jax.device_get(params),  # each process has them: drawn from the seed
        param_specs=param_specs,
        optimizer=optimizer,
        step=signax.make_train_step(
            model.loss,
            optimizer,
            mesh,
            has_aux=True,
            local_steps=config.local_steps,
            **_cut(param_specs),
        ),
        order=order,
        train=train,
        test=dealt_out(task.test),
        scored_train=train if is_small else dealt_out(task.scored_train),
    )


def cut_largest_dimension(params: Any, mesh: Mesh) -> Any:
    """FSDP's rule: each leaf in pieces along its largest dimension that has equal ones."""
    num_devices = mesh.shape[INSIDE]

    def spec(x: Any) -> P:
        sizes = [size if size % num_devices == 0 else 0 for size in x.shape]
        if not any(sizes):
            return P()
        return P(*[None] * sizes.index(max(sizes)), INSIDE)

    return jax.tree.map(spec, params)


_AT_LEAST_1 = ("batch_size", "devices_per_worker", "num_steps", "hidden_size", "eval_every",
               "checkpoint_every", "local_steps", "text.sequence_length", "text.num_layers",
               "text.num_heads", "text.scored_bytes")  # fmt: skip


def _check_numbers(config: Config) -> None:
    """No number is negative, infinite or NaN, and the run is longer than its dense steps."""
    for name, value in agreement.flat(config.to_dict()).items():
        least = 1 if name in _AT_LEAST_1 else 0
        if isinstance(value, (int, float)) and not least <= value < math.inf:
            raise UsageError(f"config.{name}={value}: must be {least} or more, and finite.")
    optimizer = config.optimizer
    dense = {"dense.steps": optimizer.dense.steps, "freeze_steps": optimizer.freeze_steps}
    for name, num_dense in dense.items():
        if num_dense and num_dense >= config.num_steps:
            raise UsageError(
                f"config.optimizer.{name}={num_dense} of config.num_steps={config.num_steps} leaves"
                " nothing to compress: lower the one or raise the other."
            )


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


def make_leaves_in_sync(experiment: Experiment) -> Any:
    """Returns a jitted function that says for each leaf whether all workers hold the same bits."""
    specs = experiment.param_specs

    def in_sync(tree: Any) -> jax.Array:
        is_equal = _drift.leaves_in_sync(tree, AXIS_NAME)
        if specs is None:
            return is_equal
        equal_here = signax.as_varying(is_equal.astype(jnp.int32), INSIDE)
        return jax.lax.pmin(equal_here, INSIDE) == 1  # each device answers for its own pieces

    in_specs = P() if specs is None else (specs,)
    return jax.jit(jax.shard_map(in_sync, mesh=experiment.mesh, in_specs=in_specs, out_specs=P()))


def make_score(experiment: Experiment) -> Any:
    """Returns a jitted function from parameters and shards to the task's metric."""

    @jax.jit
    def score(params: Any, shards: Shards) -> jax.Array:
        return experiment.model.score(params, shards.examples, shards.is_example)

    return score
