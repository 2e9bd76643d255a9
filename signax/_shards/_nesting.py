"""A link runs where the shards are: it opens a `jax.shard_map` over what the compiler cuts.

jax.shard_map over {"hosts"}          the loss, its gradient, Optax's links: whole arrays, which
|                                     the compiler cuts, so that their norms are of all shards
+-- jax.shard_map over {"devices"}    one link of ours: one shard, packed and exchanged here
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from signax import _workers
from signax._shards import _cut


def on_shards(update: Callable) -> Callable:
    """`update(updates, state, params=None)` of a link, made to run where the shards are."""
    return on_shards_with()(update)


def on_shards_with(*given: Any) -> Callable[[Callable], Callable]:
    """`on_shards` of an `update(updates, state, *given)`, whose hyperparameters may be traced.

    A traced value belongs to the program around the map; inside it must be an argument of the map.
    """
    return functools.partial(_on_shards, given=given)


def _on_shards(update: Callable, given: tuple[Any, ...]) -> Callable:
    @functools.wraps(update)
    def on_leaves(updates, state, params=None):
        del params
        mesh = jax.sharding.get_abstract_mesh()
        left = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
        cut = _cut_here(updates, left)
        if not mesh.manual_axes or cut is None:
            _require_known(mesh, left)
            whole = lambda updates, state: update(updates, state, *given)  # noqa: E731
            return _workers.in_auto_mode(whole)(updates, state)
        specs = _cut.specs_of(cut, updates)
        state_specs = _cut.specs_like(cut, updates, state)
        is_tracked = bool(_workers.tracked_axes(mesh.manual_axes))

        is_traced = [isinstance(x, jax.Array) for x in given]
        arrays = [x for x, traced in zip(given, is_traced, strict=True) if traced]

        def on_shard(updates, state, arrays):
            own = iter(arrays)
            here = [next(own) if t else x for x, t in zip(given, is_traced, strict=True)]
            with _cut.cut_as(cut):
                return update(updates, state, *here)

        return jax.shard_map(
            on_shard,
            in_specs=(specs, state_specs, PartitionSpec()),
            out_specs=(specs, state_specs),
            axis_names={*left},
            check_vma=is_tracked,
        )(updates, state, arrays)

    return on_leaves


def _cut_here(updates: Any, left: tuple[str, ...]) -> _cut.Cut | None:
    """How `updates` are cut over the axes that no mapping around binds, if that is known."""
    cut, paths_and_leaves = _cut.current(), jax.tree_util.tree_leaves_with_path(updates)
    if any(_workers.is_explicitly_sharded(x) for _, x in paths_and_leaves):
        specs = {jax.tree_util.keystr(p): jax.typeof(x).sharding.spec for p, x in paths_and_leaves}
        return _cut.Cut(specs, left)
    return _cut.Cut(cut.specs, left) if cut and left else None


def _require_known(mesh: Any, left: tuple[str, ...]) -> None:
    """Refuses to pack leaves of which only the compiler knows where their pieces are."""
    if mesh.manual_axes and any(mesh.shape[axis] > 1 for axis in left):
        raise ValueError(
            f"signax: the mesh axes {left} are left to the compiler, and this chain does not know"
            " how the parameters are cut over them: every device would gather the whole model and"
            " send all of it. Write tx = signax.sharded(tx, param_specs) with the PartitionSpec of"
            " each parameter, P() for one that is not cut, or use signax.make_train_step(...,"
            " axis_names=...), which does."
        )
