"""One jitted step for M workers: local gradients, one exchange, the same update everywhere.

    state ──┬── worker 0: batch[0] -> gradient ── tx: signs ──┐             ┌── the same new
            ├── worker 1: batch[1] -> gradient ── tx: signs ──┼── votes ────┼── parameters on
            └── worker M-1: ...                               ┘             └── every worker

The parameters leave the step typed as replicated, so the compiler has proved that they cannot
drift.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from signax import (
    _called_step,
    _choices,
    _layout,
    _mesh,
    _processes,
    _specs,
    _step_inputs,
    _written_last,
)
from signax._shards import _cut, _given
from signax._worker_step import Step, TrainState, make_worker_step
from signax.wire import _server


def init_train_state(
    params: Any,
    tx: optax.GradientTransformation,
    mesh: _mesh.AnyMesh,
    *,
    model_state: Any = None,
    key: jax.Array | int | None = None,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
    state_specs: Any = None,
    axis_name: str = "workers",
) -> TrainState:
    """Makes the state for `make_train_step`, or for `simulate_train_step` with `mesh=M`.

    Args:
      params: The parameters: any tree of arrays (a dict, a Flax `nnx.State`, ...). They are copied,
        so that donating the state leaves yours alone.
      tx: The optimizer, a chain with a network link.
      mesh: The workers' mesh, or the number M of simulated workers on one device.
      model_state: What the model carries besides parameters, such as BatchNorm statistics.
      key: A PRNG key or an integer seed, such as for dropout.
      axis_names: The workers' axes of the mesh; None is all of them.
      param_specs: How the parameters are cut over the other axes, inside each worker: a tree of
        `PartitionSpec`; None is as they lie (their `NamedSharding`).
      state_specs: Overrides the layout that `signax.state_specs` infers.
      axis_name: The name of the axis of simulated workers; a mesh names its own.

    Returns:
      A `TrainState`: the optimizer's worker-local leaves stacked and sharded, the rest replicated
      over the workers. Inside a worker, parameters and the memories of them are cut as
      `param_specs` says.

    Raises:
      ValueError: If the chain has no network link, a parameter is cut over the workers' axes,
        `mesh` is neither a mesh nor a number of at least 1, or the processes of a multi-process
        mesh do not pass the same numbers.
      TypeError: If `tx` is no transformation.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> signax.init_train_state(jnp.zeros(3), tx, 8).opt_state[0].ema.shape
      (8, 3)
    """
    _choices.require_transformation(tx, "init_train_state(params, tx, mesh)")
    mesh = _mesh.as_mesh(mesh, axis_name)
    step = jnp.zeros((), jnp.int32)
    keys = jax.random.key(key) if isinstance(key, int) else key
    if _processes.share(mesh):
        _processes.require_same_state({"params": params, "model_state": model_state, "key": keys})
    cut = _given.cut_of(params, mesh, _mesh.require_axes(axis_names, mesh), param_specs)
    params = _copy(params, mesh, cut)
    step, model_state, keys = _copy((step, model_state, keys), mesh)
    opt_state = _layout.init_opt_state(
        tx, params, mesh, axis_names=axis_names, param_specs=param_specs, state_specs=state_specs
    )
    return TrainState(step, params, opt_state, model_state, keys)


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    axis_names: tuple[str, ...] | None = None,
    has_aux: bool = False,
    accumulate_steps: int = 1,
    local_steps: int = 1,
    param_specs: Any = None,
    state_specs: Any = None,
    check_vma: bool = True,
) -> Step:
    """Makes one jitted training step on a mesh of workers.

    Args:
      loss_fn: The worker's own loss on its part of the batch (a mean over examples; no `pmean`):
        `loss_fn(params, batch)`. If the state has a `key`, it is called with `key=` (a key of its
        own for each step and worker); if it has a `model_state`, with `model_state=`.
        It returns the loss; with a model state `(loss, model_state)`; with `has_aux`, `(loss, aux)`
        or `(loss, (model_state, aux))`, where aux is a flat dict of scalars.
      tx: The optimizer, a chain with a network link over the workers' axes. Its `update` also gets
        `value=`, the mean loss.
      mesh: The workers' mesh (`make_worker_mesh`).
      axis_names: The workers' axes of the mesh; None is all of them. Over the others the
        parameters are cut inside each worker (FSDP, tensor parallelism): the loss is written for
        whole arrays, the compiler cuts it as the parameters and the batch lie, and the signs of
        each shard are exchanged with the same shard of the other workers.
      has_aux: Whether `loss_fn` also returns metrics.
      accumulate_steps: k: each worker's batch is cut into k micro-batches whose gradients are
        averaged before the vote.
      local_steps: k: each worker's batch is cut into k, one for each step that it takes alone
        before the exchange; `tx` is then `local_updates(inner, outer)`. A step of the state is a
        round of k, and `metrics` are means over it.
      param_specs: How the parameters are cut over the other axes, a tree of `PartitionSpec`; None
        is as they lie in the state at each call.
      state_specs: Overrides the layout that `signax.state_specs` infers.
      check_vma: Whether `jax.shard_map` checks types. Turn it off only for a loss that the check
        refuses, such as a `lax.scan` that starts from plain zeros.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted; it donates `state`. Leaves of `batch` have a
      leading axis that M * accumulate_steps * local_steps divides; worker n gets the n-th part.
      With many processes a leaf is one global array
      (`jax.make_array_from_process_local_data`), or the whole batch on each of them.
      How that part lies inside the worker is up to you and the compiler: place the batch with
      `P(("hosts", "devices"))` and each device computes on its own rows.
      `metrics` is a flat dict of float32 scalars:

      - `loss`: the mean over the workers whose loss is finite (NaN if none is);
      - `num_abstained`: how many workers did not vote at this step;
      - the entries of `aux`, each the mean over the workers where it is finite.

    Raises:
      ValueError: If `local_steps` is above 1 and `tx` is not from `local_updates`. When called, if
        the batch cannot be divided, the state was not made by `init_train_state` or
        `init_opt_state`, its M is not the mesh's, or `loss_fn` returns anything else than the above
        or a loss that it averaged over the workers; on the first call, if processes pass different
        arrays of their own as the batch.
      TypeError: If `mesh` is a number, or `tx` no transformation.
      RuntimeError: When called with a state that was given to a step before.

    Example:
      >>> mesh = signax.make_worker_mesh(2)
      >>> tx = signax.sign_sgd(0.5, axis_name="workers")
      >>> step = signax.make_train_step(lambda x, b: jnp.mean((x - b) ** 2), tx, mesh)
      >>> state = signax.init_train_state(jnp.zeros(()), tx, mesh)
      >>> state, metrics = step(state, jnp.array([1.0, 3.0]))
      >>> print(state.params, metrics["loss"])
      0.5 5.0
    """
    _choices.require_transformation(tx, "make_train_step(loss_fn, tx, mesh)")
    _step_inputs.require_steps(tx, accumulate_steps, local_steps)
    _mesh.require_devices(mesh)
    axes = _mesh.require_axes(axis_names, mesh)
    worker_step = make_worker_step(loss_fn, tx, axes, has_aux, accumulate_steps, local_steps)

    def step(state, batch, param_specs=param_specs):
        _step_inputs.require_train_state(state)
        layout = _layout.infer_layout(tx, state.params, mesh, state_specs, axes, param_specs)
        specs = layout.specs
        _step_inputs.require_stacked(state.opt_state, layout, mesh)
        _step_inputs.require_divisible(batch, mesh, axes, accumulate_steps, local_steps)
        replicated = PartitionSpec()
        of_workers = _specs.of_workers(specs, axes)
        state_spec = TrainState._make((replicated, replicated, of_workers, replicated, replicated))

        def on_worker(state, batch):
            opt_state = _specs.to_worker(state.opt_state, specs, axes)
            state, metrics = worker_step(state._replace(opt_state=opt_state), batch)
            params, opt_state = _written_last.written_last(state, specs, axes, metrics)
            opt_state = _specs.from_worker(opt_state, specs, axes)
            return state._replace(params=params, opt_state=opt_state), metrics

        mapped = jax.shard_map(
            on_worker,
            mesh=mesh,
            in_specs=(state_spec, PartitionSpec(axes)),
            out_specs=(state_spec, replicated),
            axis_names={*axes},
            check_vma=check_vma,
        )
        if mesh.explicit_axes and axes == tuple(mesh.axis_names):  # such as jax.make_mesh makes
            batch = jax.sharding.reshard(batch, NamedSharding(mesh, PartitionSpec(axes)))
        with _cut.cut_as(layout.cut):
            new, metrics = mapped(state, batch)
        return _step_inputs.as_laid_out(new, layout, mesh), metrics

    is_cut_as_it_lies = axes != tuple(mesh.axis_names) and param_specs is None
    return _called_step.CalledStep(step, mesh, axes if is_cut_as_it_lies else None)


def simulate_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    num_workers: int,
    *,
    axis_name: str = "workers",
    has_aux: bool = False,
    accumulate_steps: int = 1,
    local_steps: int = 1,
    state_specs: Any = None,
) -> Step:
    """Makes the step of `make_train_step` for M simulated workers on one device.

    The workers are the rows of a `jax.vmap`, so M may be any number, and the step itself can be
    mapped again over seeds. It takes the same signs, votes and updates as M devices do; inside, the
    votes are counted by the "float32" wire, which gives the same bits without packing.

    Args:
      loss_fn: As for `make_train_step`.
      tx: The optimizer, a chain with a network link over `axis_name`.
      num_workers: M.
      axis_name: The name of the workers' axis in `tx`; `state` is then from
        `init_train_state(params, tx, M, axis_name=...)`.
      has_aux: As for `make_train_step`.
      accumulate_steps: As for `make_train_step`.
      local_steps: As for `make_train_step`.
      state_specs: As for `make_train_step`.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted, with `state` from
      `init_train_state(params, tx, num_workers)`. It donates `state`.

    Raises:
      ValueError: As for `make_train_step`, or if M is not at least 1. (Here JAX does not type what
        differs between workers: an averaged loss passes, and its gradient is each worker's own.)
      TypeError: If `num_workers` is a mesh, or `tx` no transformation.
      RuntimeError: As for `make_train_step`.

    Example:
      >>> tx = signax.sign_sgd(0.5, axis_name="workers")
      >>> step = signax.simulate_train_step(lambda x, b: jnp.mean((x - b) ** 2), tx, 1000)
      >>> state = signax.init_train_state(jnp.zeros(()), tx, 1000)
      >>> state, metrics = step(state, jnp.linspace(1.0, 3.0, 1000))
      >>> print(state.params)
      0.5
    """
    _choices.require_transformation(tx, "simulate_train_step(loss_fn, tx, num_workers)")
    _step_inputs.require_steps(tx, accumulate_steps, local_steps)
    if isinstance(num_workers, Mesh):
        raise TypeError(
            "signax.simulate_train_step: num_workers is the number of simulated workers; for a mesh"
            " write signax.make_train_step(loss_fn, tx, mesh)."
        )
    mesh = _mesh.as_mesh(num_workers, axis_name)
    worker_step = make_worker_step(
        loss_fn, tx, (axis_name,), has_aux, accumulate_steps, local_steps
    )

    def step(state, batch):
        _step_inputs.require_train_state(state)
        layout = _layout.infer_layout(tx, state.params, mesh, state_specs)
        specs = layout.specs
        _step_inputs.require_stacked(state.opt_state, layout, mesh)
        _step_inputs.require_divisible(batch, mesh, (axis_name,), accumulate_steps, local_steps)
        axes = jax.tree.map(lambda spec: 0 if spec else None, specs, is_leaf=_specs.is_spec)
        batch = jax.tree.map(
            lambda x: x.reshape(num_workers, len(x) // num_workers, *x.shape[1:]), batch
        )
        on_workers = jax.vmap(
            worker_step, (TrainState._make((None, None, axes, None, None)), 0), axis_name=axis_name
        )
        with _server.traced_with_wire("float32"):
            new, metrics = on_workers(state, batch)
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731  (all rows are equal)
        opt_state = jax.tree.map(
            lambda spec, x: x if spec else x[0], specs, new.opt_state, is_leaf=_specs.is_spec
        )
        return first(new._replace(opt_state=None))._replace(opt_state=opt_state), first(metrics)

    return _called_step.CalledStep(step, None)


def _copy(tree: Any, mesh: _mesh.AnyMesh, cut: _cut.Cut | None = None) -> Any:
    """Fresh buffers on the mesh: the state may be donated, the originals live on."""
    copy = lambda tree: jax.tree.map(lambda x: _layout.strong(jnp.copy(x)), tree)  # noqa: E731
    if not isinstance(mesh, Mesh):
        return jax.jit(copy)(tree)
    shardings: Any = NamedSharding(mesh, PartitionSpec())
    if cut is not None:
        shardings = _specs.as_shardings(_cut.specs_of(cut, tree), mesh)
    if not mesh.is_multi_process:
        # Else an array that was committed to another device is refused. On many processes this
        # would send all of it over the network, to compare it.
        tree = jax.device_put(tree, shardings)
    return jax.jit(copy, out_shardings=shardings)(tree)
