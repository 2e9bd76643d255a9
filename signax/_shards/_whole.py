"""From shards to what belongs to the whole leaf, and to the whole worker."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from signax import _workers
from signax._shards import _cut


class Shard(NamedTuple):
    """How one leaf is cut."""

    axes_of_dims: tuple[tuple[str, ...], ...]  # for each dimension, from the slowest axis
    copies: tuple[str, ...]  # the fast axes over which the leaf is not cut: one copy on each

    @property
    def is_whole(self) -> bool:
        return not any(self.axes_of_dims)


Shards = Sequence[Shard] | None  # one for each leaf; None: every leaf is here as a whole


def shards_of(tree: Any) -> Shards:
    """How the leaves of a tree are cut where only one shard of each is here; else None."""
    axes, cut = _cut.fast_axes(), _cut.current()
    if not axes or cut is None:
        return None
    return [
        _shard(_cut.spec_at(cut, path), jnp.ndim(x), axes)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _shard(spec: PartitionSpec, ndim: int, axes: tuple[str, ...]) -> Shard:
    dims = [tuple(str(a) for a in _workers.axes_of(entry) if a in axes) for entry in spec]
    named = {axis for dim in dims for axis in dim}
    dims += [()] * (ndim - len(dims))
    return Shard(tuple(dims), tuple(axis for axis in axes if axis not in named))


def whole_shape(leaf: jax.Array, shard: Shard) -> tuple[int, ...]:
    """The shape of the leaf of which `leaf` is one shard."""
    return tuple(
        size * _workers.num_workers(axes)
        for size, axes in zip(leaf.shape, shard.axes_of_dims, strict=True)
    )


def positions(leaf: jax.Array, shard: Shard | None) -> jax.Array:
    """Where in its whole leaf each coordinate stands, in C order: uint32[leaf.size]."""
    if shard is None or shard.is_whole:
        return jax.lax.iota(jnp.uint32, leaf.size)
    whole, position = whole_shape(leaf, shard), jnp.zeros((), jnp.uint32)
    for dim, axes in enumerate(shard.axes_of_dims):
        index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
        first = _workers.worker_index(axes).astype(jnp.uint32) * jnp.uint32(leaf.shape[dim])
        position += (index + first) * jnp.uint32(math.prod(whole[dim + 1 :]) % 2**32)
    return position.reshape(-1)


def all_of(*flags: jax.Array) -> tuple[jax.Array, ...]:
    """Whether each flag is set on all shards of this worker: one reduction of a few bytes."""
    axes = _cut.fast_axes()
    if not axes:
        return flags
    flags_here = jnp.stack(flags).astype(jnp.int32)
    agreed = jax.lax.pmin(_workers.as_varying(flags_here, axes), axes) > 0
    return tuple(agreed[i] for i in range(len(flags)))


def largest(values: jax.Array) -> jax.Array:
    """Each value's maximum over the shards of this worker; what is the same, typed as the same."""
    axes = _cut.fast_axes()
    return jax.lax.pmax(_workers.as_varying(values, axes), axes) if axes else values


def totals(values: jax.Array, shards: Sequence[Shard]) -> jax.Array:
    """Sums over the shards of each leaf, float32[L]; of a leaf with copies, over one of them."""
    is_first = [_workers.worker_index(shard.copies) == 0 for shard in shards]
    counted = jnp.where(jnp.array(is_first), values, 0.0)
    axes = _cut.fast_axes()
    return jax.lax.psum(_workers.as_varying(counted, axes), axes)


def as_copies(tree: Any, shards: Shards) -> Any:
    """Types the leaves that have copies inside a worker as equal on all of them, which they are."""
    if shards is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)

    def same(x, shard):
        axes = tuple(axis for axis in shard.copies if axis in _workers.varying_axes(x))
        return jax.lax.pmax(x, axes) if axes else x

    return treedef.unflatten([same(x, shard) for x, shard in zip(leaves, shards, strict=True)])


def require_whole(updates: Any, function: str, instead: str) -> None:
    """Raises a `ValueError` where a leaf is cut: this link works on whole leaves only."""
    paths = jax.tree_util.tree_leaves_with_path(updates)
    for (path, _), shard in zip(paths, shards_of(updates) or (), strict=False):
        if not shard.is_whole:
            raise ValueError(
                f"signax.{function}: the leaf {jax.tree_util.keystr(path) or '(the whole tree)'} is"
                f" cut over {tuple(a for axes in shard.axes_of_dims for a in axes)} inside each"
                f" worker, and this works on whole leaves only. {instead}"
            )


def require_told(updates: Any, axis_name: _workers.AxisName | None, function: str) -> None:
    """Raises a `ValueError` where leaves differ over axes of which the chain was told nothing."""
    known = {*_workers.axes_of(axis_name), *_cut.fast_axes()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates) if axis_name else ():
        if unknown := tuple(map(str, _workers.varying_axes(leaf) - known)):
            raise ValueError(
                f"signax.{function} over the axis {axis_name!r} was given an update that also"
                f" differs over {unknown} (leaf"
                f" {jax.tree_util.keystr(path) or '(the whole tree)'}). If the parameters are cut"
                " over these axes, each shard would abstain, scale and draw its random numbers on"
                " its own: write tx = signax.sharded(tx, param_specs). If they are workers too,"
                " name all axes, axis_name=(..., ...), or put signax.average_gradients over the"
                " inner ones first. Runs that have nothing to do with each other belong in"
                " jax.vmap, or in jax.shard_map(..., check_vma=False)."
            )
