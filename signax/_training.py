"""One jitted step for M workers: local gradients, one exchange, the same update everywhere.

    state ──┬── worker 0: batch[0] -> gradient ── tx: signs ──┐             ┌── the same new
            ├── worker 1: batch[1] -> gradient ── tx: signs ──┼── votes ────┼── parameters on
            └── worker M-1: ...                               ┘             └── every worker

The parameters leave the step typed as replicated, so the compiler has proved that they cannot
drift.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from signax import _layout, _workers
from signax.wire import _server

Metrics = dict[str, jax.Array]
Step = Callable[["TrainState", Any], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """What a step takes and gives back; save all of it and training resumes bit for bit."""

    step: jax.Array  # int32[]
    params: Any  # equal on all workers
    opt_state: Any  # worker-local leaves stacked: `state_specs`
    model_state: Any = None  # such as BatchNorm statistics: float leaves are averaged over workers
    key: jax.Array | None = None  # for dropout: each step and worker gets a key of its own


def local_value_and_grad(
    loss_fn: Callable, axis_name: _workers.AxisName, *, has_aux: bool = False
) -> Callable:
    """`jax.value_and_grad` of this worker's own loss, in any mapping.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)`, the worker's own loss (no `pmean` inside), or
        with `has_aux` a pair of it and anything.
      axis_name: The workers' axis or a tuple of axes.
      has_aux: As for `jax.value_and_grad`.

    Returns:
      A function like `loss_fn` that returns its value and the gradient of this worker alone.

    Raises:
      ValueError: When called, if an axis is not bound.

    Example:
      >>> loss = lambda x, target: (x - target) ** 2 / 2
      >>> grad = signax.local_value_and_grad(loss, "workers")
      >>> _, g = jax.vmap(grad, (None, 0), axis_name="workers")(0.0, jnp.array([1.0, -3.0]))
      >>> print(g)
      [-1.  3.]
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def local(params, *args, **kwargs):
        value, gradient = value_and_grad(_workers.as_varying(params, axis_name), *args, **kwargs)
        # A parameter that the loss does not use has a zero that JAX types as the same everywhere.
        return value, _workers.as_varying(gradient, axis_name)

    return local


def init_train_state(
    params: Any,
    tx: optax.GradientTransformation,
    mesh: _layout.AnyMesh,
    *,
    model_state: Any = None,
    key: jax.Array | None = None,
    state_specs: Any = None,
) -> TrainState:
    """Makes the state for `make_train_step`, or for `simulate_train_step` with `mesh=M`.

    Args:
      params: The parameters: any tree of arrays (a dict, a Flax `nnx.State`, ...). They are copied,
        so that donating the state leaves yours alone.
      tx: The optimizer, a chain with a network link.
      mesh: The workers' mesh, or the number M of simulated workers on one device.
      model_state: What the model carries besides parameters, such as BatchNorm statistics.
      key: A PRNG key, such as for dropout.
      state_specs: Overrides the layout that `signax.state_specs` infers.

    Returns:
      A `TrainState`: the optimizer's worker-local leaves stacked and sharded, the rest replicated.

    Raises:
      ValueError: If the chain has no network link.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> signax.init_train_state(jnp.zeros(3), tx, 8).opt_state[0].ema.shape
      (8, 3)
    """
    step = jnp.zeros((), jnp.int32)
    copies = _copy((step, params, model_state, key), mesh)
    step, params, model_state, key = copies
    opt_state = _layout.init_opt_state(tx, params, mesh, state_specs=state_specs)
    return TrainState(step, params, opt_state, model_state, key)


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    axis_names: tuple[str, ...] | None = None,
    has_aux: bool = False,
    accumulate_steps: int = 1,
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
      axis_names: The workers' axes of the mesh; None is all of them.
      has_aux: Whether `loss_fn` also returns metrics.
      accumulate_steps: k: each worker's batch is cut into k micro-batches whose gradients are
        averaged before the vote.
      state_specs: Overrides the layout that `signax.state_specs` infers.
      check_vma: Whether `jax.shard_map` checks types. Turn it off only for a loss that the check
        refuses, such as a `lax.scan` that starts from plain zeros.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted; it donates `state`. Leaves of `batch` have a
      leading axis that M * accumulate_steps divides; worker n gets the n-th part. `metrics` is a
      flat dict of float32 scalars:

      - `loss`: the mean over the workers whose loss is finite (NaN if none is);
      - `num_abstained`: how many workers did not vote at this step;
      - the entries of `aux`, each the mean over the workers where it is finite.

    Raises:
      ValueError: When called, if the batch cannot be divided, the state was not made by
        `init_train_state` or `init_opt_state`, or its M is not the mesh's.

    Example:
      >>> mesh = signax.make_worker_mesh(2)
      >>> tx = signax.sign_sgd(0.5, axis_name="workers")
      >>> step = signax.make_train_step(lambda x, b: jnp.mean((x - b) ** 2), tx, mesh)
      >>> state = signax.init_train_state(jnp.zeros(()), tx, mesh)
      >>> state, metrics = step(state, jnp.array([1.0, 3.0]))
      >>> print(state.params, metrics["loss"])
      0.5 5.0
    """
    axes = tuple(mesh.axis_names if axis_names is None else axis_names)
    worker_step = _make_worker_step(loss_fn, tx, axes, has_aux, accumulate_steps)

    def step(state, batch):
        layout = _layout.infer_layout(tx, state.params, mesh, state_specs)
        specs = layout.specs
        _require_stacked(state.opt_state, layout.state, specs, mesh)
        _require_divisible(batch, mesh, axes, accumulate_steps)
        replicated = PartitionSpec()
        state_spec = TrainState._make((replicated, replicated, specs, replicated, replicated))

        def on_worker(state, batch):
            state = state._replace(opt_state=_layout.to_worker(state.opt_state, specs))
            state, metrics = worker_step(state, batch)
            opt_state = _layout.from_worker(state.opt_state, specs)
            return state._replace(opt_state=opt_state), metrics

        return jax.shard_map(
            on_worker,
            mesh=mesh,
            in_specs=(state_spec, PartitionSpec(axes)),
            out_specs=(state_spec, replicated),
            check_vma=check_vma,
        )(state, batch)

    return jax.jit(step, donate_argnums=0)


def simulate_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    num_workers: int,
    *,
    axis_name: str = "workers",
    has_aux: bool = False,
    accumulate_steps: int = 1,
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
      axis_name: The name of the workers' axis.
      has_aux: As for `make_train_step`.
      accumulate_steps: As for `make_train_step`.
      state_specs: As for `make_train_step`.

    Returns:
      `step(state, batch) -> (state, metrics)`, jitted, with `state` from
      `init_train_state(params, tx, num_workers)`. It donates `state`.

    Raises:
      ValueError: As for `make_train_step`.

    Example:
      >>> tx = signax.sign_sgd(0.5, axis_name="workers")
      >>> step = signax.simulate_train_step(lambda x, b: jnp.mean((x - b) ** 2), tx, 1000)
      >>> state = signax.init_train_state(jnp.zeros(()), tx, 1000)
      >>> state, metrics = step(state, jnp.linspace(1.0, 3.0, 1000))
      >>> print(state.params)
      0.5
    """
    mesh = _layout.as_mesh(num_workers, axis_name)
    worker_step = _make_worker_step(loss_fn, tx, (axis_name,), has_aux, accumulate_steps)

    def step(state, batch):
        layout = _layout.infer_layout(tx, state.params, mesh, state_specs)
        specs = layout.specs
        _require_stacked(state.opt_state, layout.state, specs, mesh)
        _require_divisible(batch, mesh, (axis_name,), accumulate_steps)
        axes = jax.tree.map(lambda spec: 0 if spec else None, specs, is_leaf=_layout.is_spec)
        batch = jax.tree.map(lambda x: x.reshape(num_workers, -1, *x.shape[1:]), batch)
        on_workers = jax.vmap(
            worker_step, (TrainState._make((None, None, axes, None, None)), 0), axis_name=axis_name
        )
        with _server.traced_with_wire("float32"):
            new, metrics = on_workers(state, batch)
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731  (all rows are equal)
        opt_state = jax.tree.map(
            lambda spec, x: x if spec else x[0], specs, new.opt_state, is_leaf=_layout.is_spec
        )
        return first(new._replace(opt_state=None))._replace(opt_state=opt_state), first(metrics)

    return jax.jit(step, donate_argnums=0)


def _make_worker_step(loss_fn, tx, axes, has_aux, accumulate_steps) -> Step:
    """The step as one worker runs it."""
    tx = optax.with_extra_args_support(tx)
    gradient = local_value_and_grad(_uniform(loss_fn, has_aux), axes, has_aux=True)

    def worker_step(state, batch):
        key = state.key
        if key is not None:
            key = jax.random.fold_in(
                jax.random.fold_in(key, state.step), _workers.worker_index(axes)
            )
        model_state = _as_varying_floats(state.model_state, axes)
        (loss, (model_state, aux)), grads = _accumulate(
            gradient, state.params, model_state, batch, key, accumulate_steps, axes
        )
        metrics = _mean_over_finite({"loss": loss} | aux, axes)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=metrics["loss"])
        params = optax.apply_updates(state.params, updates)
        num_abstained = [x for _, x in optax.tree.get_all_with_path(opt_state, "num_abstained")]
        if num_abstained:
            totals = [_total_where_varying(x) for x in num_abstained]
            metrics["num_abstained"] = jnp.max(jnp.array(totals)).astype(jnp.float32)
        model_state = _average_model_state(model_state, state.model_state, axes)
        return TrainState(state.step + 1, params, opt_state, model_state, state.key), metrics

    return worker_step


def _uniform(loss_fn: Callable, has_aux: bool) -> Callable:
    """One signature: (params, batch, model_state, key) -> loss, (model_state, aux)."""

    def uniform(params, batch, model_state, key):
        given = {"model_state": model_state, "key": key}
        result = loss_fn(params, batch, **{k: v for k, v in given.items() if v is not None})
        aux = {}
        if has_aux or model_state is not None:
            loss, extra = result
            if model_state is None:
                aux = extra
            else:
                model_state, aux = extra if has_aux else (extra, {})
        else:
            loss = result
        return loss, (model_state, _require_scalars(loss, aux))

    return uniform


def _accumulate(gradient, params, model_state, batch, key, num_steps, axes):
    """The mean loss, metrics and gradient over `num_steps` micro-batches, one after the other."""
    if num_steps == 1:
        return gradient(params, batch, model_state, key)
    batches = jax.tree.map(lambda x: x.reshape(num_steps, -1, *x.shape[1:]), batch)

    def on_micro_batch(model_state, i, micro_batch):
        micro_key = None if key is None else jax.random.fold_in(key, i)
        (loss, (model_state, aux)), grads = gradient(params, micro_batch, model_state, micro_key)
        return model_state, (loss, aux, grads)

    def add(carry, item):
        model_state, total = carry
        model_state, new = on_micro_batch(model_state, *item)
        return (model_state, jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, new)), None

    first = jax.tree.map(lambda x: x[0], batches)
    like = jax.eval_shape(on_micro_batch, model_state, 0, first)[1]
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like
    )
    carry = (model_state, _workers.as_varying(zeros, axes))
    (model_state, total), _ = jax.lax.scan(add, carry, (jnp.arange(num_steps), batches))
    mean = lambda t, x: (t / num_steps).astype(x.dtype if _is_float(x) else t.dtype)  # noqa: E731
    loss, aux, grads = jax.tree.map(mean, total, like)
    return (loss, (model_state, aux)), grads


def _mean_over_finite(values: Metrics, axes: tuple[str, ...]) -> Metrics:
    """Each scalar's mean over the workers where it is finite, in one psum."""
    stacked = jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in values.values()])
    is_finite = jnp.isfinite(stacked)
    sums = jnp.concatenate([jnp.where(is_finite, stacked, 0.0), is_finite.astype(jnp.float32)])
    total, count = jnp.split(jax.lax.psum(_workers.as_varying(sums, axes), axes), 2)
    return dict(zip(values, total / count, strict=True))


def _total_where_varying(num_abstained: jax.Array) -> jax.Array:
    """After an exact mean inside each host, every host has a number of its own."""
    axes = tuple(_workers.varying_axes(num_abstained))
    return jax.lax.psum(num_abstained, axes) if axes else num_abstained


def _as_varying_floats(model_state: Any, axes: tuple[str, ...]) -> Any:
    return jax.tree.map(lambda x: _workers.as_varying(x, axes) if _is_float(x) else x, model_state)


def _average_model_state(new: Any, old: Any, axes: tuple[str, ...]) -> Any:
    """Float leaves: the mean over the workers where the leaf is finite, or else the old value."""

    def average(new, old):
        if not _is_float(new):
            return new
        is_finite = jnp.all(jnp.isfinite(new))
        total, count = jax.lax.psum(
            (jnp.where(is_finite, new, jnp.zeros_like(new)), is_finite.astype(new.dtype)), axes
        )
        return jnp.where(count > 0, total / jnp.maximum(count, 1), old)

    return jax.tree.map(average, new, old)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _require_scalars(loss: Any, aux: Any) -> dict[str, Any]:
    if jnp.shape(loss) != ():
        raise ValueError(
            f"loss_fn returned a loss of shape {jnp.shape(loss)}; it must be a scalar, such as"
            " the mean over the worker's examples."
        )
    if not isinstance(aux, dict) or any(jnp.shape(x) != () for x in aux.values()):
        raise ValueError(
            "with has_aux=True, loss_fn must return (loss, aux) with aux a flat dict of scalars,"
            f' such as {{"accuracy": 0.9}}, got {jax.tree.map(jnp.shape, aux)}. Every entry becomes'
            " a metric: its mean over the workers."
        )
    for name in ("loss", "num_abstained"):
        if name in aux:
            raise ValueError(f"aux[{name!r}]: the step itself reports {name!r}; rename yours.")
    return aux


def _require_divisible(batch: Any, mesh: Any, axes: tuple[str, ...], accumulate_steps: int) -> None:
    num_workers = _layout.num_rows(PartitionSpec(axes), mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        size = jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        if size is None or size % (num_workers * accumulate_steps):
            parts = f"{num_workers} workers"
            if accumulate_steps > 1:
                parts += f" x accumulate_steps={accumulate_steps}"
            raise ValueError(
                f"the batch leaf {jax.tree_util.keystr(path) or '(the whole batch)'} has"
                f" {'no leading axis' if size is None else f'{size} rows'}, which {parts} cannot"
                " share equally. The leading axis is the global batch: drop or pad the last rows."
            )


def _require_stacked(opt_state: Any, expected: Any, specs: Any, mesh: Any) -> None:
    """Refuses a state in which worker-local leaves are not there once for each worker."""
    if jax.tree.structure(opt_state) != jax.tree.structure(expected):
        raise ValueError(
            "the optimizer state does not belong to this optimizer: it has the structure"
            f" {jax.tree.structure(opt_state)}, and the optimizer's is"
            f" {jax.tree.structure(expected)}. Make it with signax.init_train_state (or"
            " signax.init_opt_state) and the same tx."
        )
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    wanted = zip(
        jax.tree.leaves(expected), jax.tree.leaves(specs, is_leaf=_layout.is_spec), strict=True
    )
    for (path, leaf), (want, spec) in zip(leaves, wanted, strict=True):
        num_rows = _layout.num_rows(spec, mesh) if spec else None
        shape = want.shape if num_rows is None else (num_rows, *want.shape)
        if jnp.shape(leaf) == shape:
            continue
        where = f"the optimizer state at {jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}"
        if num_rows is not None and jnp.shape(leaf) == want.shape:
            raise ValueError(
                f"{where}: one copy, where each of the {num_rows} workers needs its own (shape"
                f" {shape}). tx.init alone does not know the workers: make the state with"
                " signax.init_train_state(params, tx, mesh) or signax.init_opt_state(tx, params,"
                " mesh)."
            )
        if num_rows is not None and jnp.shape(leaf)[1:] == want.shape:
            raise ValueError(
                f"{where}: the state of {jnp.shape(leaf)[0]} workers, given to {num_rows}. To go on"
                " with another number of workers use signax.change_num_workers(state, tx, mesh)."
            )
        raise ValueError(
            f"{where}, but these parameters need {shape}. Make the state with"
            " signax.init_train_state and the parameters that you train."
        )


def _copy(tree: Any, mesh: _layout.AnyMesh) -> Any:
    """Fresh buffers, replicated over the mesh: the state may be donated, the originals live on."""
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
    if not isinstance(mesh, Mesh):
        return jax.jit(copy)(tree)
    return jax.jit(copy, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
