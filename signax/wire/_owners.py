"""A vote whose result is needed only where the parameters live: the way down is not sent.

Where the workers share the parameters out among themselves (ZeRO, FSDP over the voting axis), a
leaf that `out_specs` cuts along one dimension belongs to M owners. Each is the server of its own
shard, so the words are sent in the order of the owners and the decisions stay there:

    leaf [4, 2], P("workers"), M = 2    words by coordinate    a b | c d
                                        words by owner         row 0: a b    row 1: c d

A leaf that no owner has for itself travels as always, in slices up and whole down.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from signax import _workers
from signax.wire import _server


class Shard(NamedTuple):
    """How one leaf is shared out."""

    shape: tuple[int, ...]  # of the leaf
    dim: int | None  # along which it is cut into M shards; None: everyone has all of it
    num_workers: int

    @property
    def num_words(self) -> int:
        return -(-math.prod(self.shape) // 8)

    @property
    def own_shape(self) -> tuple[int, ...]:
        if self.dim is None:
            return self.shape
        own = self.shape[self.dim] // self.num_workers
        return (*self.shape[: self.dim], own, *self.shape[self.dim + 1 :])

    @property
    def own_words(self) -> int:
        return -(-math.prod(self.own_shape) // 8)


def shards_of(
    updates: Any, out_specs: Any, axis_name: _workers.AxisName | None, link: str
) -> list[Shard]:
    """The leaves' shards, from a tree of `PartitionSpec` that may be a prefix of the updates'.

    An empty list if everyone needs all: `out_specs` is None, or there is one worker.
    """
    if out_specs is None or axis_name is None:
        return []
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    specs = jax.tree.leaves(
        jax.tree.broadcast(out_specs, updates, is_leaf=is_spec), is_leaf=is_spec
    )
    paths = jax.tree_util.tree_leaves_with_path(updates)
    return [
        _shard(jax.tree_util.keystr(path), jnp.shape(leaf), spec, axis_name, link)
        for (path, leaf), spec in zip(paths, specs, strict=True)
    ]


def _shard(path, shape, spec, axis_name, link):
    axes, num_workers = _workers.axes_of(axis_name), _workers.num_workers(axis_name)
    named = [tuple(a for a in _workers.axes_of(entry) if a in axes) for entry in spec]
    cut = [dim for dim, found in enumerate(named) if found]
    if not cut:
        return Shard(shape, None, num_workers)
    where = f"signax.{link}: out_specs has {spec} for the leaf {path or '(the whole tree)'}"
    if len(cut) > 1 or named[cut[0]] != axes:
        raise ValueError(
            f"{where}, but one dimension must be cut over all of the voting axes {axes}, in this"
            " order: each worker then owns one piece of the leaf."
        )
    dim = cut[0]
    if dim >= len(shape) or shape[dim] % num_workers:
        size = f"{shape[dim]} rows" if dim < len(shape) else f"no dimension {dim}"
        raise ValueError(
            f"{where} of shape {shape}, which has {size} for {num_workers} owners. Only equal"
            " pieces can be owned: pad the parameter, or write PartitionSpec() for a leaf that"
            " every worker keeps whole."
        )
    return Shard(shape, dim, num_workers)


def tally(
    planes: Sequence[jax.Array],
    is_voting: jax.Array,
    updates: Any,
    shards: Sequence[Shard],
    coins: Callable[[int], jax.Array],
    decide: Callable[..., Sequence[jax.Array]],
    decode: Callable[..., jax.Array],
    axis_name: _workers.AxisName,
    radices: _server.Radices,
) -> tuple[Any, jax.Array]:
    """Counts each leaf where it is owned, and tells everyone only of the leaves that nobody owns.

    Args:
      planes: This worker's bits, uint8[W], in the order of the leaves.
      is_voting: bool scalar.
      updates: What was packed.
      shards: How each leaf is shared out.
      coins: `coins(W)` are the random words for ties, uint8[W].
      decide: From the counts' planes, the number of voters and coins to result planes.
      decode: `decode(planes, size, dtype, voters)` gives the values of a leaf.
      axis_name: The workers' axis or axes.
      radices: How values travel.

    Returns:
      The results, of an owned leaf this worker's shard; and the number of voters.
    """
    num_workers, num_words = _workers.num_workers(axis_name), planes[0].size
    planes = jax.lax.optimization_barrier(tuple(planes))

    def by_server(plane):  # uint8[W] -> what each server needs, uint8[M, A + S]
        owned, rest = [jnp.zeros((num_workers, 0), jnp.uint8)], [jnp.zeros(0, jnp.uint8)]
        for words, shard in zip(_cut(plane, [s.num_words for s in shards]), shards, strict=True):
            if shard.dim is None:
                rest.append(words)
            else:
                owned.append(_rows(words, shard))
        rest = jnp.concatenate(rest)
        rest = jnp.pad(rest, (0, -rest.size % num_workers)).reshape(num_workers, -1)
        return jnp.concatenate([*owned, rest], axis=1)

    def own_coins():
        return by_server(coins(num_words))[_workers.worker_index(axis_name)]

    rows = [by_server(plane) for plane in planes]  # [M, A + S] each
    counts, voters_here = _server.counts_of_slice(rows, is_voting, axis_name, radices)
    decided = jnp.stack(list(decide(counts, voters_here, own_coins)))  # [R, A + S]
    sizes = [s.own_words for s in shards if s.dim is not None]
    owned, rest = jnp.split(decided, [sum(sizes)], axis=1)
    rest, voters = _server.gather_slices(list(rest), voters_here, axis_name, radices)
    owned = iter(_cut(owned, sizes))
    rest = iter(_cut(jnp.stack(rest), [s.num_words for s in shards if s.dim is None]))

    def result(leaf, shard):
        words, counted = (next(rest), voters) if shard.dim is None else (next(owned), voters_here)
        size = math.prod(shard.own_shape)
        return decode(list(words), size, leaf.dtype, counted).reshape(shard.own_shape)

    leaves, treedef = jax.tree.flatten(updates)
    results = [result(jnp.asarray(x), s) for x, s in zip(leaves, shards, strict=True)]
    return treedef.unflatten(results), voters


def own_parts(tree: Any, shards: Sequence[Shard], axis_name: _workers.AxisName | None) -> Any:
    """This worker's shards of leaves that it knows as a whole."""
    if not shards:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        [_own_part(leaf, shard, axis_name) for leaf, shard in zip(leaves, shards, strict=True)]
    )


def _own_part(leaf: jax.Array, shard: Shard, axis_name: _workers.AxisName | None) -> jax.Array:
    if shard.dim is None:
        return leaf
    size = shard.own_shape[shard.dim]
    start = _workers.worker_index(axis_name) * size
    return jax.lax.dynamic_slice_in_dim(leaf, start, size, shard.dim)


def _cut(words: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Parts of these sizes along the last axis; what is left over is padding."""
    stops = np.cumsum([0, *sizes])
    return [words[..., a:b] for a, b in itertools.pairwise(stops.tolist())]


def _rows(words: jax.Array, shard: Shard) -> jax.Array:
    """A leaf's words in the order of its owners, one row for each, from a byte of its own."""
    assert shard.dim is not None
    before, own = shard.shape[: shard.dim], math.prod(shard.own_shape)
    if math.prod(before) == 1 and own % 8 == 0:
        return words.reshape(shard.num_workers, -1)
    bits = jnp.unpackbits(words, count=math.prod(shard.shape), bitorder="little")
    after = shard.own_shape[shard.dim :]
    rows = jnp.moveaxis(bits.reshape(*before, shard.num_workers, *after), shard.dim, 0)
    return jnp.packbits(rows.reshape(shard.num_workers, own), axis=1, bitorder="little")
