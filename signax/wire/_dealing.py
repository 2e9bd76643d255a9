"""Words of which a worker holds a copy on each of its devices: each device sends a part of them.

Without this, four devices of a host that all hold the same bias would send its bits four times.

    device 0   [own words | b0 b1 b2 b3]   ->   [own words | b0]   ->  the exchange  ->  gathered
    device 1   [own words | b0 b1 b2 b3]   ->   [own words | b1]       across hosts      inside
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from signax import _alike, _workers
from signax._shards import _whole
from signax.wire import _bits, _server


class Dealing:
    """How buffers of packed leaves are dealt out to the devices of a worker."""

    def __init__(self, leaves: Sequence[Any], shards: _whole.Shards):
        self._sizes = [-(-jnp.size(leaf) // 8) for leaf in leaves]
        copies = [shard.copies for shard in shards] if shards else [()] * len(leaves)
        self._groups = {axes: [i for i, c in enumerate(copies) if c == axes] for axes in copies}

    def deal(self, planes: _bits.Planes) -> _bits.Planes:
        """What this device sends of its buffers: uint8[W] each -> uint8[W'] each."""
        if not any(self._groups):
            return planes
        leaves = _split(jnp.stack(planes), self._sizes)
        parts = []
        for axes, members in self._groups.items():
            own = jnp.concatenate([leaves[i] for i in members], axis=1)
            if axes:
                size = self._size(axes)
                own = jnp.pad(own, ((0, 0), (0, size * _workers.num_workers(axes) - own.shape[1])))
                start = _workers.worker_index(axes) * size
                own = jax.lax.dynamic_slice_in_dim(own, start, size, axis=1)
            parts.append(own)
        return list(jnp.concatenate(parts, axis=1))

    def collect(self, planes: _bits.Planes, seed: jax.Array) -> list[_bits.Planes]:
        """The planes of each leaf, once this device has the results for what it sent.

        The `seed` is that of `_alike.cut`.
        """
        if not any(self._groups):
            return list(_alike.cut(planes, self._sizes, seed))
        leaves: dict[int, _bits.Planes] = {}
        sizes = [self._size(axes) for axes in self._groups]
        parts = _split(jnp.stack(planes), sizes)
        for (axes, members), part in zip(self._groups.items(), parts, strict=True):
            if axes:
                every = _server.gather(part.reshape(-1), axes).reshape(-1, *part.shape)
                part = every.swapaxes(0, 1).reshape(len(planes), -1)
            cut = _split(part, [self._sizes[i] for i in members])
            leaves |= {i: list(words) for i, words in zip(members, cut, strict=True)}
        return [leaves[i] for i in range(len(self._sizes))]

    def _size(self, axes: tuple[str, ...]) -> int:
        """How many words of the leaves with copies over these axes each device sends."""
        return -(-sum(self._sizes[i] for i in self._groups[axes]) // _workers.num_workers(axes))


def _split(rows: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts the columns of `rows` into pieces of these sizes; what is left over is padding."""
    ends = np.cumsum(sizes, dtype=int)
    return [rows[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]
