"""The specs of a state's leaves: which are stacked, and between a worker and the whole.

A worker-local leaf has a leading axis, one row for each worker, and its spec begins with the
workers' axes; any other spec is that of a leaf which all workers hold alike.

    on a worker  [d]    from_worker ->   [1, d]    shard_map with P("workers") ->   [M, d]
                        <- to_worker               <-
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from signax import _workers


def to_worker(state: Any, specs: Any, axis_names: tuple[str, ...] | None = None) -> Any:
    """Takes the leading axis off the worker-local leaves: the state as one worker sees it.

    Args:
      state: Inside `jax.shard_map`, the state as its `in_specs=specs` cut it: one row per worker.
      specs: `state_specs`.
      axis_names: The workers' axes, where `specs` name others too; None: all axes are workers'.

    Returns:
      The state for `tx.update`.

    Raises:
      ValueError: If `specs` is not the tree of this state.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> state = signax.init_opt_state(tx, jnp.zeros(3), 1)
      >>> signax.to_worker(state, signax.state_specs(tx, jnp.zeros(3), 1))[0].ema.shape
      (3,)
    """
    return _on_local_leaves(lambda x: x[0], state, specs, axis_names)


def from_worker(state: Any, specs: Any, axis_names: tuple[str, ...] | None = None) -> Any:
    """Puts the leading axis back on the worker-local leaves: the inverse of `to_worker`.

    Args:
      state: What `tx.update` returned on this worker.
      specs: `state_specs`.
      axis_names: As for `to_worker`.

    Returns:
      The state for the `out_specs=specs` of your own `jax.shard_map`: one row per worker.

    Raises:
      ValueError: If `specs` is not the tree of this state.

    Example:
      >>> tx = signax.signum(0.1, axis_name="workers")
      >>> state = tx.init(jnp.zeros(3))
      >>> signax.from_worker(state, signax.state_specs(tx, jnp.zeros(3), 1))[0].ema.shape
      (1, 3)
    """
    return _on_local_leaves(lambda x: x[None], state, specs, axis_names)


def num_rows(spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> int:
    """How many workers hold a leaf of their own with this spec."""
    return math.prod(mesh.shape[axis] for axis in _workers.axes_of(spec[0]))


def is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def is_local(spec: PartitionSpec, axis_names: tuple[str, ...] | None = None) -> bool:
    """Whether a leaf with this spec has a leading axis of workers."""
    if axis_names is None:
        return bool(spec)
    first = _workers.axes_of(spec[0]) if spec else ()
    return bool({*first} & {*axis_names})


def of_workers(specs: Any, axes: tuple[str, ...]) -> Any:
    """The workers' part of specs: what a `jax.shard_map` over their axes alone may name."""

    def part(spec):
        return PartitionSpec(spec[0]) if is_local(spec, axes) else PartitionSpec()

    return jax.tree.map(part, specs, is_leaf=is_spec)


def as_shardings(specs: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def _on_local_leaves(fn, state, specs, axis_names):
    return jax.tree.map(
        lambda spec, x: fn(x) if is_local(spec, axis_names) else x, specs, state, is_leaf=is_spec
    )
