"""Going on with another number of workers: M momenta become M'.

The links average over workers, so what the workers' memories stand for together is their mean. It
is kept: every new worker starts with the mean of the old memories.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from signax import _choices, _layout, _mesh, _specs, _worker_step
from signax._shards import _cut

How = Literal["mean", "zero"]


def change_num_workers(
    state: _worker_step.TrainState,
    tx: optax.GradientTransformation,
    mesh: _mesh.AnyMesh,
    how: How = "mean",
    *,
    axis_names: tuple[str, ...] | None = None,
    param_specs: Any = None,
) -> _worker_step.TrainState:
    r"""Lays out a training state for another number of workers.

    $$ m'_1 = \dots = m'_{M'} = \frac{1}{M} \sum_{n=1}^{M} m_n $$

    Args:
      state: A `TrainState` of M workers, such as one restored from a checkpoint.
      tx: The optimizer that made it.
      mesh: The mesh of M' workers, or the number M' of simulated workers.
      how: What the new workers remember: "mean", the mean over the old workers of each momentum and
        residual (so the pending update is kept), or "zero", nothing. A server's memory, which lies
        in slices on the workers, is kept as it is and cut anew. The mean of the workers' estimates
        (`ef21`, `diana`) stays their mean: "zero" forgets it, too.
      axis_names: The workers' axes of the mesh; None is all of them.
      param_specs: How the parameters are cut over its other axes, a tree of `PartitionSpec`; None
        is as the state's parameters lie, by the names of the axes: a state on 2 hosts of 4 devices
        goes to 4 hosts of 2 as it is.

    Returns:
      The state for M' workers on the mesh. Leaves that are the same on all workers (parameters,
      counts, keys) are copied as they are. With M' = M and `how="mean"` the workers' memories are
      still averaged.

    Raises:
      ValueError: For an unknown `how`, or a state that is not one of `tx`; with `how="mean"`, if
        a server's memory lies on another number of devices inside each worker than before.
      TypeError: If `tx` is no transformation.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> state = signax.init_train_state(jnp.zeros(3), tx, 8)
      >>> signax.change_num_workers(state, tx, 4).opt_state[0].ema.shape
      (4, 3)
    """
    _choices.require(how, How, "change_num_workers", "how")
    _choices.require_transformation(tx, "change_num_workers(state, tx, mesh)")
    layout = _layout.infer_layout(tx, state.params, mesh, None, axis_names, param_specs)
    if jax.tree.structure(state.opt_state) != jax.tree.structure(layout.state):
        raise ValueError(
            "signax.change_num_workers: the optimizer state does not belong to this optimizer. Its"
            f" structure is {jax.tree.structure(state.opt_state)}; the optimizer's is"
            f" {jax.tree.structure(layout.state)}."
        )
    new_mesh = _mesh.as_mesh(mesh)

    def convert(path, spec, want, leaf):
        if not _specs.is_local(spec, layout.axes):
            is_mean = ".mean_estimate" in jax.tree_util.keystr(path)
            return np.zeros_like(leaf) if is_mean and how == "zero" else leaf
        leaf = np.asarray(leaf)
        shape = (_specs.num_rows(spec, new_mesh), *want.shape)
        if jax.tree_util.keystr(path[-1:]) == ".server_residual":
            if how == "zero":
                return np.zeros(shape, leaf.dtype)
            return _sliced_anew(leaf, shape, _num_devices(layout, new_mesh), path)
        if leaf.shape[1:] != want.shape:
            raise ValueError(
                f"signax.change_num_workers: the optimizer state at {jax.tree_util.keystr(path)}"
                f" has shape {leaf.shape}, expected one row of shape {want.shape} for each worker."
            )
        row = _merged(leaf) if how == "mean" else np.zeros_like(leaf[0])
        return np.broadcast_to(row, shape)

    opt_state = jax.tree_util.tree_map_with_path(
        convert, layout.specs, layout.state, state.opt_state, is_leaf=_specs.is_spec
    )
    replicated: Any = PartitionSpec()
    params = replicated
    if layout.cut is not None:
        params = _cut.specs_of(layout.cut, state.params)
    specs = _worker_step.TrainState._make(
        (replicated, params, layout.specs, replicated, replicated)
    )
    return _place(state._replace(opt_state=opt_state), specs, mesh)


def _num_devices(layout: _layout.Layout, mesh: Any) -> int:
    """How many devices a worker has."""
    return math.prod(mesh.shape[axis] for axis in layout.cut.axes) if layout.cut else 1


def _sliced_anew(rows: np.ndarray, shape: tuple[int, ...], num_devices: int, path: Any) -> Any:
    """Buffers that lie in slices on the workers, cut again; what fills a last slice is zero.

    Each device of a worker has a buffer of its own, [M, D * S, 8] -> [M', D * S', 8].
    """
    old, new = len(rows), shape[0]
    size = shape[1] // num_devices
    if rows.shape[1] % num_devices or abs(rows.shape[1] // num_devices * old - size * new) >= max(
        old, new
    ):
        raise ValueError(
            "signax.change_num_workers: the servers' memory at"
            f" {jax.tree_util.keystr(path)} has shape {rows.shape}; it is not that of {old} workers"
            f" of {num_devices} devices. It is kept by device, in the order of its shards, and"
            " cannot be moved to another number of devices inside each worker. Write"
            ' how="zero" to forget it, with the workers\' residuals, or keep that number.'
        )
    by_device = rows.reshape(old, num_devices, -1, *shape[2:]).swapaxes(0, 1)
    buffers = by_device.reshape(num_devices, -1, *shape[2:])[:, : new * size]
    padding = [(0, 0), (0, new * size - buffers.shape[1]), *[(0, 0)] * (buffers.ndim - 2)]
    cut = np.pad(buffers, padding).reshape(num_devices, new, size, *shape[2:])
    return cut.swapaxes(0, 1).reshape(shape)


def _merged(rows: np.ndarray) -> np.ndarray:
    """The mean over workers in float64; for integers and flags, the largest."""
    if np.issubdtype(rows.dtype, np.integer) or rows.dtype == bool:
        return rows.max(axis=0)
    return rows.astype(np.float64).mean(axis=0).astype(rows.dtype)


def _place(state: Any, specs: Any, mesh: _mesh.AnyMesh) -> Any:
    """Fresh buffers, laid out as `specs` say: the old state may then be donated or deleted."""
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    if not isinstance(mesh, Mesh):
        return copy(state)
    place = lambda x, spec: jax.device_put(x, _specs.as_shardings(spec, mesh))  # noqa: E731
    return copy(_worker_step.TrainState._make(map(place, state, specs)))
