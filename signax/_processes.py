"""Processes that hold a copy each of what is to be one: looked at before they drift apart."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import Mesh


def share(mesh: Any) -> bool:
    """Whether all processes, more than one, work on the mesh: they are compared by all together."""
    if not isinstance(mesh, Mesh) or not mesh.is_multi_process:
        return False
    return len({device.process_index for device in mesh.devices.flat}) == jax.process_count()


def require_same_state(tree: Any) -> None:
    """Raises a `ValueError` on every process unless all of them start from the same numbers.

    JAX takes each process's word for what is replicated: parameters from a seed of its own would
    train on from there, and every process would hold another result.
    """
    where = _where_they_differ(tree)
    if where is not None:
        raise ValueError(
            f"signax.init_train_state: the processes do not pass the same numbers at {where}:"
            " training would start from another point on each of them. Make them from one seed, or"
            " take those of process 0 with"
            " jax.experimental.multihost_utils.broadcast_one_to_all(params)."
        )


def require_same_batch(batch: Any) -> None:
    """Raises a `ValueError` on every process if each passes examples of its own as the batch.

    JAX takes what a process holds alone, such as a NumPy array, for the whole batch, and each
    process would use only the rows of its own workers.
    """
    where = _where_they_differ(batch)
    if where is not None:
        raise ValueError(
            f"signax: the batch leaf {where or '(the whole batch)'} is not the same on all"
            f" processes, and of its rows each of the {jax.process_count()} would use only its own"
            " part: JAX takes an array that one process holds alone for the whole batch. Make one"
            " array of the rows of all processes:"
            " jax.make_array_from_process_local_data(NamedSharding(mesh, P(axis_name)), rows)."
        )


def _where_they_differ(tree: Any) -> str | None:
    """The path of the first leaf that differs between processes, by 32 bits of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return None
    sums = np.array([_checksum(leaf) for _, leaf in leaves], np.uint32)
    every = np.asarray(multihost_utils.process_allgather(sums)).reshape(-1, len(leaves))
    differs = (every != every[0]).any(axis=0)
    return jax.tree_util.keystr(leaves[int(differs.argmax())][0]) if differs.any() else None


def _checksum(leaf: Any) -> int:
    if isinstance(leaf, Tracer) or not getattr(leaf, "is_fully_addressable", True):
        return 0  # global already
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
