"""A vote whose result is needed only where the parameters live: the way down is not sent.

Where the workers share the parameters out among themselves (ZeRO, FSDP over the voting axis), a
leaf that `out_specs` cuts along one dimension belongs to M owners. Each is the server of its own
piece, so the words are sent in the order of the owners and the decisions stay there:

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


class Piece(NamedTuple):
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


def pieces_of(
    updates: Any, out_specs: Any, axis_name: _workers.AxisName | None, link: str
) -> list[Piece]:
    """The leaves' pieces, from a tree of `PartitionSpec` that may be a prefix of the updates'.

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
        _piece(jax.tree_util.keystr(path), jnp.shape(leaf), spec, axis_name, link)
        for (path, leaf), spec in zip(paths, specs, strict=True)
    ]


def _piece(path, shape, spec, axis_name, link):
    axes, num_workers = _workers.axes_of(axis_name), _workers.num_workers(axis_name)
    named = [tuple(a for a in _workers.axes_of(entry) if a in axes) for entry in spec]
    cut = [dim for dim, found in enumerate(named) if found]
    if not cut:
        return Piece(shape, None, num_workers)
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
    return Piece(shape, dim, num_workers)


def tally(
    planes: Sequence[jax.Array],
    is_voting: jax.Array,
    updates: Any,
    pieces: Sequence[Piece],
    coins: Callable[[int], jax.Array],
    decide: Callable[..., Sequence[jax.Array]],
    decode: Callable[..., jax.Array],
    axis_name: _workers.AxisName,
    coding: _server.Coding,
) -> tuple[Any, jax.Array]:
    """Counts each leaf where it is owned, and tells everyone only of the leaves that nobody owns.

    Args:
      planes: This worker's bits, uint8[W], in the order of the leaves.
      is_voting: bool scalar.
      updates: What was packed.
      pieces: How each leaf is shared out.
      coins: `coins(W)` are the random words for ties, uint8[W].
      decide: From the counts' planes, the number of voters and coins to result planes.
      decode: `decode(planes, size, dtype, voters)` gives the values of a leaf.
      axis_name: The workers' axis or axes.
      coding: How values travel.

    Returns:
      The results, of an owned leaf this worker's piece; and the number of voters.
    """
    num_workers, num_words = _workers.num_workers(axis_name), planes[0].size
    planes = jax.lax.optimization_barrier(tuple(planes))

    def by_server(plane):  # uint8[W] -> what each server needs, uint8[M, A + S]
        owned, rest = [jnp.zeros((num_workers, 0), jnp.uint8)], [jnp.zeros(0, jnp.uint8)]
        for words, piece in zip(_cut(plane, [p.num_words for p in pieces]), pieces, strict=True):
            if piece.dim is None:
                rest.append(words)
            else:
                owned.append(_rows(words, piece))
        rest = jnp.concatenate(rest)
        rest = jnp.pad(rest, (0, -rest.size % num_workers)).reshape(num_workers, -1)
        return jnp.concatenate([*owned, rest], axis=1)

    def own_coins():
        return by_server(coins(num_words))[_workers.worker_index(axis_name)]

    rows = [by_server(plane) for plane in planes]  # [M, A + S] each
    counts, voters_here = _server.counts_of_slice(rows, is_voting, axis_name, coding)
    decided = jnp.stack(list(decide(counts, voters_here, own_coins)))  # [R, A + S]
    sizes = [p.own_words for p in pieces if p.dim is not None]
    owned, rest = jnp.split(decided, [sum(sizes)], axis=1)
    rest, voters = _server.gather_slices(list(rest), voters_here, axis_name, coding)
    owned = iter(_cut(owned, sizes))
    rest = iter(_cut(jnp.stack(rest), [p.num_words for p in pieces if p.dim is None]))

    def result(leaf, piece):
        words, counted = (next(rest), voters) if piece.dim is None else (next(owned), voters_here)
        size = math.prod(piece.own_shape)
        return decode(list(words), size, leaf.dtype, counted).reshape(piece.own_shape)

    leaves, treedef = jax.tree.flatten(updates)
    results = [result(jnp.asarray(x), p) for x, p in zip(leaves, pieces, strict=True)]
    return treedef.unflatten(results), voters


def own_parts(tree: Any, pieces: Sequence[Piece], axis_name: _workers.AxisName | None) -> Any:
    """This worker's pieces of leaves that it knows as a whole."""
    if not pieces:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        [_own_part(leaf, piece, axis_name) for leaf, piece in zip(leaves, pieces, strict=True)]
    )


def _own_part(leaf: jax.Array, piece: Piece, axis_name: _workers.AxisName | None) -> jax.Array:
    if piece.dim is None:
        return leaf
    size = piece.own_shape[piece.dim]
    start = _workers.worker_index(axis_name) * size
    return jax.lax.dynamic_slice_in_dim(leaf, start, size, piece.dim)


def _cut(words: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Parts of these sizes along the last axis; what is left over is padding."""
    stops = np.cumsum([0, *sizes])
    return [words[..., a:b] for a, b in itertools.pairwise(stops.tolist())]


def _rows(words: jax.Array, piece: Piece) -> jax.Array:
    """A leaf's words in the order of its owners, one row for each, from a byte of its own."""
    assert piece.dim is not None
    before, own = piece.shape[: piece.dim], math.prod(piece.own_shape)
    if math.prod(before) == 1 and own % 8 == 0:
        return words.reshape(piece.num_workers, -1)
    bits = jnp.unpackbits(words, count=math.prod(piece.shape), bitorder="little")
    after = piece.own_shape[piece.dim :]
    rows = jnp.moveaxis(bits.reshape(*before, piece.num_workers, *after), piece.dim, 0)
    return jnp.packbits(rows.reshape(piece.num_workers, own), axis=1, bitorder="little")
