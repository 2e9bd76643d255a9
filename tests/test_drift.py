"""A replica that has drifted by one bit is found; replicas in sync are not suspected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import signax
from workers import WORKERS, worker_mesh

MESH = worker_mesh(4)
DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "bool"]


def replicated(rows: list[np.ndarray]) -> jax.Array:
    """An array that JAX believes to be the same on all devices, whatever the rows hold."""
    buffers = [jax.device_put(r, d) for r, d in zip(rows, MESH.devices.flat, strict=True)]
    return jax.make_array_from_single_device_arrays(
        rows[0].shape, NamedSharding(MESH, jax.P()), buffers
    )


def in_sync(tree, check_vma: bool = True) -> bool:
    check = jax.shard_map(
        lambda tree: signax.replicas_in_sync(tree, WORKERS),
        mesh=MESH,
        in_specs=jax.P(),
        out_specs=jax.P(),
        check_vma=check_vma,
    )
    return bool(jax.jit(check)(tree))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_flipped_bit_on_one_replica_is_found(dtype: str, check_vma: bool):
    value = np.asarray(jnp.arange(1, 12).astype(dtype))
    drifted = value.copy()
    drifted.view(np.uint8)[-value.itemsize] ^= 1
    rows = [value, value, drifted, value]
    assert not in_sync({"a": jnp.ones(3), "b": replicated(rows)}, check_vma)
    assert in_sync({"a": jnp.ones(3), "b": replicated([value] * 4)}, check_vma)


def test_two_values_that_changed_places_are_found():
    value = np.arange(6, dtype=np.float32)
    assert not in_sync(replicated([value, value, value[::-1].copy(), value]))


def test_zeros_of_different_sign_differ_and_equal_nans_do_not():
    zero = np.zeros(3, np.float32)
    assert not in_sync(replicated([zero, -zero, zero, zero]))
    assert in_sync(replicated([zero + np.float32(np.nan)] * 4))


def test_keys_scalars_and_empty_leaves_are_compared_too():
    assert in_sync({"key": jax.random.key(0), "step": jnp.int32(3), "none": None, "e": jnp.ones(0)})
    assert in_sync({})
    scalar = [np.array(n == 2, np.float32) for n in range(4)]
    assert not in_sync({"scalar": replicated(scalar)})


def test_under_vmap_rows_are_replicas():
    check = jax.vmap(lambda x: signax.replicas_in_sync(x, WORKERS), axis_name=WORKERS)
    assert not check(jnp.array([1.0, 1.0, 2.0])).any()
    assert check(jnp.ones(3)).all()


def test_an_unbound_axis_is_named():
    with pytest.raises(ValueError, match="no axis named 'wrokers'"):
        signax.replicas_in_sync(jnp.ones(3), "wrokers")
