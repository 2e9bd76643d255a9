"""What to restore a checkpoint into, when it was written on a mesh of another shape.

A checkpoint holds whole arrays, so its shapes are those of the mesh that wrote it (one momentum for
each of its workers), and where their pieces go is up to the mesh that reads it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from signax import _choices, _layout, _mesh, _specs
from signax._shards import _cut, _given
from signax._worker_step import TrainState


def abstract_train_state(
    params: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    saved_on: Mapping[str, int] | int,
    model_state: Any = None,
    key: jax.Array | None = None,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
) -> TrainState:
    """The shapes of a training state that was saved on another mesh, placed on this one.

    Restore into it, then go on with `change_num_workers`::

        target = signax.abstract_train_state(params, tx, mesh, saved_on={"workers": 8})
        state = checkpointer.restore(path, target)
        state = signax.change_num_workers(state, tx, mesh)

    Args:
      params: The parameters, or a tree of `jax.ShapeDtypeStruct`.
      tx: The optimizer of the run.
      mesh: The mesh to restore on.
      saved_on: The axes of the mesh that wrote the checkpoint and their sizes, `old_mesh.shape`; or
        the number of its workers, if they are all of the mesh.
      model_state: What was given to `init_train_state`, or its shapes.
      key: A PRNG key like the one in the state.
      axis_names: The workers' axes, the same on both meshes; None is all of them.
      param_specs: How the parameters are cut over the other axes; None is as they lie.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct` with shardings on `mesh`. Nothing is allocated. The
      rows of the old workers lie on every new worker, each row cut over its devices, until
      `change_num_workers` makes its own of them.

    Raises:
      ValueError: If the chain has no network link, or a parameter cannot be cut so on either mesh.
      TypeError: If `tx` is no transformation, or `saved_on` neither sizes of axes nor a number.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> mesh = signax.make_worker_mesh(2)
      >>> target = signax.abstract_train_state(jnp.zeros(3), tx, mesh, saved_on={"workers": 8})
      >>> target.opt_state[0].ema.shape
      (8, 3)
    """
    _choices.require_transformation(tx, "abstract_train_state(params, tx, mesh, saved_on=...)")
    axes = _mesh.require_axes(axis_names, mesh)
    cut = _given.cut_of(params, mesh, axes, param_specs)
    specs = None if cut is None else _cut.specs_of(cut, params)
    sizes = _sizes(saved_on, mesh)
    types = (AxisType.Auto,) * len(sizes)
    old = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types)
    layout = _layout.infer_layout(tx, params, old, None, axes, specs)

    def rows(spec, leaf):
        if not _specs.is_local(spec, axes):
            return _placed(leaf.shape, leaf.dtype, spec, mesh)
        shape = (_specs.num_rows(spec, old), *leaf.shape)
        return _placed(shape, leaf.dtype, PartitionSpec(None, *spec[1:]), mesh)

    opt_state = jax.tree.map(rows, layout.specs, layout.state, is_leaf=_specs.is_spec)
    everywhere = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: _placed(jnp.shape(x), x.dtype, PartitionSpec(), mesh), tree
    )
    step: Any = _placed((), jnp.int32, PartitionSpec(), mesh)
    placed_params = everywhere(params)
    if specs is not None:
        placed_params = jax.tree.map(
            lambda x, spec: _placed(x.shape, x.dtype, spec, mesh), params, specs
        )
    return TrainState(step, placed_params, opt_state, everywhere(model_state), everywhere(key))


def _sizes(saved_on: Any, mesh: Mesh) -> Mapping[str, int]:
    number = _choices.as_integer(saved_on)
    if number is not None and number > 0 and len(mesh.axis_names) == 1:
        return {mesh.axis_names[0]: number}
    if not isinstance(saved_on, Mapping):
        axes = ", ".join(f"{axis!r}: ..." for axis in mesh.axis_names)
        raise TypeError(
            "signax.abstract_train_state: saved_on must hold the axes of the mesh that wrote the"
            f" checkpoint and their sizes, old_mesh.shape or {{{axes}}}, got {saved_on!r}."
        )
    return saved_on


def _placed(shape: Any, dtype: Any, spec: PartitionSpec, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Cut as `spec` says, but for dimensions that this mesh cannot cut into equal pieces."""
    known = [[a for a in (_cut.axes_in(PartitionSpec(e))) if a in mesh.shape] for e in spec]
    parts = [math.prod(mesh.shape[axis] for axis in axes) for axes in known]
    fits = [
        tuple(axes) if axes and size % part == 0 else None
        for axes, part, size in zip(known, parts, shape, strict=False)
    ]
    sharding = NamedSharding(mesh, PartitionSpec(*fits))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
