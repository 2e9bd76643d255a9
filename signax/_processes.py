"""Processes that hold a copy each of what is to be one: looked at before they drift apart."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils


def require_same(tree: Any) -> None:
    """Raises a `ValueError` on every process unless all of them pass the same tree, bit for bit.

    JAX takes each process's word for what is replicated: parameters from a seed of its own would
    train on from there, and every process would hold another result. Compared are 32 bits a leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return
    sums = np.array([_checksum(leaf) for _, leaf in leaves], np.uint32)
    every = np.asarray(multihost_utils.process_allgather(sums)).reshape(-1, len(leaves))
    differs = (every != every[0]).any(axis=0)
    if differs.any():
        path, _ = leaves[int(differs.argmax())]
        raise ValueError(
            "signax.init_train_state: the processes do not pass the same numbers at"
            f" {jax.tree_util.keystr(path)}: training would start from another point on each of"
            " them. Make them from one seed, or take those of process 0 with"
            " jax.experimental.multihost_utils.broadcast_one_to_all(params)."
        )


def _checksum(leaf: Any) -> int:
    if isinstance(leaf, Tracer) or not getattr(leaf, "is_fully_addressable", True):
        return 0  # global already
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
