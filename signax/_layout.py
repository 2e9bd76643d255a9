"""Which part of an optimizer's state is each worker's own, read from JAX's types.

A momentum before the network link differs between workers; a step count, and whatever stands after
the link, does not. Nobody has to annotate which is which: `tx.update` is traced once inside
`jax.shard_map` with gradients that vary over the workers, and JAX's own types say which leaves of
the new state vary. Those are fed back as the state's types until nothing changes.

Worker-local leaves are stacked: they get a leading axis, one row for each worker, sharded over the
workers' axes. All other leaves are replicated.

    momentum  [d] on each of M workers   ->   [M, d], PartitionSpec("workers")
    count     []  the same everywhere    ->   [],     PartitionSpec()

Where the mesh has other axes than the workers', parameters may be cut over them, and what is like a
parameter is cut alike: the momentum of a parameter P("devices") is P("workers", "devices").
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from signax import _choices, _mesh, _specs, _workers
from signax._shards import _cut, _given


class Layout(NamedTuple):
    """What one worker holds, and how it is laid out over all of them."""

    state: Any  # tree of jax.ShapeDtypeStruct: the state as one worker sees it
    specs: Any  # the same tree of PartitionSpec: P(axes, ...) for worker-local leaves, else P(...)
    axes: tuple[str, ...]  # the workers' axes
    cut: _cut.Cut | None  # how the parameters are cut over the others; None: there are no others


def state_specs(
    tx: optax.GradientTransformation,
    params: Any,
    mesh: _mesh.AnyMesh,
    *,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
    workers_only: bool = False,
) -> Any:
    """Finds how an optimizer's state is laid out over the workers.

    Args:
      tx: Any chain with a network link.
      params: The parameters, or a tree of `jax.ShapeDtypeStruct`.
      mesh: The workers' mesh, or the number M of simulated workers.
      axis_names: The workers' axes of the mesh; None is all of them.
      param_specs: How the parameters are cut over the other axes, a tree of `PartitionSpec`; None
        is as they lie (their `NamedSharding`).
      workers_only: Whether to leave out the other axes, as a `jax.shard_map` over the workers' axes
        alone (`axis_names={"hosts"}`) wants its specs.

    Returns:
      A tree like the state, of `PartitionSpec`: `P(axes)` for leaves that differ between the
      workers over these axes (stacked on a leading axis), `P()` for the others; a leaf that is
      like a parameter, such as its momentum, is cut as that is over the other axes, `P(axes,
      *spec)` or `P(*spec)`. Use it as `in_specs` and `out_specs` of your own `jax.shard_map`.

    Raises:
      ValueError: If the update differs between workers, because the chain has no network link.
      TypeError: If `tx` is no transformation.

    Example:
      >>> params = jnp.zeros(3)
      >>> specs = signax.state_specs(signax.signum(0.1, axis_name="workers"), params, 8)
      >>> print(specs[0].ema == jax.P("workers"), specs[0].count == jax.P())
      True True
    """
    _choices.require_transformation(tx, "state_specs(tx, params, mesh)")
    layout = infer_layout(tx, params, mesh, None, axis_names, param_specs)
    return _specs.of_workers(layout.specs, layout.axes) if workers_only else layout.specs


def init_opt_state(
    tx: optax.GradientTransformation,
    params: Any,
    mesh: _mesh.AnyMesh,
    *,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
    state_specs: Any = None,
) -> Any:
    """Makes the optimizer's state for all workers: `tx.init`, stacked and sharded.

    Args:
      tx: Any chain with a network link.
      params: The parameters.
      mesh: The workers' mesh, or the number M of simulated workers on one device.
      axis_names: The workers' axes of the mesh; None is all of them.
      param_specs: How the parameters are cut over the other axes, as for `signax.state_specs`.
      state_specs: Overrides the layout that `signax.state_specs` infers.

    Returns:
      The state, in the layout of `state_specs`: worker-local leaves have a leading axis of M rows.
      It shares no buffer with `params`, so it can be donated.

    Raises:
      ValueError: If the update differs between workers, because the chain has no network link.
      TypeError: If `tx` is no transformation.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> signax.init_opt_state(tx, jnp.zeros(3), 8)[0].ema.shape
      (8, 3)
    """
    _choices.require_transformation(tx, "init_opt_state(tx, params, mesh)")
    layout = infer_layout(tx, params, mesh, state_specs, axis_names, param_specs)
    specs = layout.specs

    def init(params):
        params = jax.tree.map(strong, params)
        with _cut.cut_as(layout.cut):
            return _specs.from_worker(tx.init(params), specs, layout.axes)

    if isinstance(mesh, Mesh):
        init = jax.shard_map(
            init,
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=_specs.of_workers(specs, layout.axes),
            axis_names={*layout.axes},
            check_vma=False,
        )
        shardings = None if layout.cut is None else _specs.as_shardings(specs, mesh)
        return jax.jit(init, out_shardings=shardings)(params)
    axes = jax.tree.map(lambda spec: 0 if spec else None, specs, is_leaf=_specs.is_spec)
    names, sizes = _mesh.as_mesh(mesh).axis_names, _mesh.as_mesh(mesh).axis_sizes
    init = jax.vmap(tx.init, (None,), axes, axis_name=names[0], axis_size=sizes[0])
    return jax.jit(init)(jax.tree.map(strong, params))


def infer_layout(
    tx: optax.GradientTransformation,
    params: Any,
    mesh: _mesh.AnyMesh,
    specs: Any = None,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
) -> Layout:
    """The state's shapes and specs, by tracing `tx.update` until its types no longer change.

    With `specs` given, nothing is inferred and `tx.update` is not traced.
    """
    mesh = _mesh.as_mesh(mesh)
    tx = optax.with_extra_args_support(tx)
    axes = _mesh.require_axes(axis_names, mesh)
    cut = _given.cut_of(params, mesh, axes, param_specs)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), params)
    with _cut.cut_as(cut):
        state = _trace(mesh, axes, tx.init, params)
        if specs is None:
            specs = _inferred_specs(tx, params, state, mesh, axes, cut)
    return Layout(state, specs, axes, cut)


def _inferred_specs(tx, params, state, mesh, axes, cut):
    leaves, treedef = jax.tree.flatten(state)
    varying = [frozenset()] * len(leaves)
    while True:
        found, updates = _varying_after_update(tx, params, state, varying, mesh, axes)
        widened = [old | new for old, new in zip(varying, found, strict=True)]
        if widened == varying:
            break
        varying = widened
    _require_replicated(updates)
    inside = [PartitionSpec()] * len(leaves)
    if cut is not None:
        inside = jax.tree.leaves(_cut.specs_like(cut, params, state), is_leaf=_specs.is_spec)
    specs = [
        PartitionSpec(_ordered(own, mesh), *spec) if own else spec
        for own, spec in zip(varying, inside, strict=True)
    ]
    return treedef.unflatten(specs)


def _varying_after_update(tx, params, state, varying, mesh, workers):
    """The axes over which the leaves of the new state, and of the update, vary."""
    found: list[Any] = []

    def update(params, state):
        leaves, treedef = jax.tree.flatten(state)
        leaves = [_as_varying(x, axes) for x, axes in zip(leaves, varying, strict=True)]
        gradients = _workers.as_varying(optax.tree.zeros_like(params), workers)
        updates, new = tx.update(
            gradients, treedef.unflatten(leaves), params, value=jnp.zeros((), jnp.float32)
        )
        if jax.tree.structure(new) != treedef:
            raise ValueError(
                "signax: the state of this transformation changes its structure at update: from"
                f" {treedef} to {jax.tree.structure(new)}. jit and checkpoints need one structure."
            )
        found.append([_workers.varying_axes(x) for x in jax.tree.leaves(new)])
        found.append(jax.tree.map(_workers.varying_axes, updates))
        return jnp.zeros(())

    try:
        _trace(mesh, workers, update, params, state)
    except (TypeError, _workers.NotVaryingError) as error:
        is_branch = "cond branches" in str(error)
        if is_branch or isinstance(error, _workers.NotVaryingError):
            raise ValueError(f"{_UNSAFE_WRAPPER} What was found: {error}") from error
        raise
    return found


_UNSAFE_WRAPPER = (
    "signax: the layout of this transformation's state cannot be read from its types: a wrapper"
    " around the network link branches (jax.lax.cond) between what is each worker's own and what"
    " is the same on all, or hands the link constants. optax.apply_if_finite decides on one"
    " worker's gradient, so workers would wait for each other for ever: workers with non-finite"
    " gradients abstain anyway, and signax.skip_together skips a step for all. In place of"
    " optax.MultiSteps write signax.make_train_step(..., accumulate_steps=k); in place of"
    " masking, signax.freeze. A branch that every worker takes alike (on the step count) can run"
    " with state_specs=... and check_vma=False."
)


def _trace(mesh, axes, fn, *args):
    same = PartitionSpec()
    mapped = jax.shard_map(
        fn, mesh=mesh, in_specs=same, out_specs=same, axis_names={*axes}, check_vma=True
    )
    return jax.eval_shape(mapped, *args)


def _require_replicated(updates: Any) -> None:
    is_axes = lambda x: isinstance(x, frozenset)  # noqa: E731
    for path, axes in jax.tree_util.tree_leaves_with_path(updates, is_leaf=is_axes):
        if axes:
            raise ValueError(
                "signax: the update of this transformation differs between the workers (leaf"
                f" {jax.tree_util.keystr(path) or '(the whole tree)'}, over {sorted(axes)}), so"
                " their parameters would drift apart. The chain needs a network link over these"
                " axes, such as signax.majority_vote(axis_name), and every leaf must go through it:"
                " optax.masked around a link lets the other leaves' local gradients pass. To freeze"
                " leaves use signax.freeze; the zeros that optax.set_to_zero makes of them are each"
                " worker's own."
            )


def _as_varying(x, axes):
    return _workers.as_varying(x, tuple(axes)) if axes else x


def _ordered(axes, mesh):
    ordered = tuple(axis for axis in mesh.axis_names if axis in axes)
    return ordered[0] if len(ordered) == 1 else ordered


def strong(x: Any) -> jax.Array:
    """Without the weak type of jnp.full(3, 0.1): a step takes it away, and JAX compiles again."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x
