"""A state that was saved and restored goes on bit for bit, for every named algorithm."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import signax
from daily import daily
from named_algorithms import OPTIMIZERS, params
from workers import WORKERS, worker_mesh

M = 2
# One for each kind of memory: none but a count and a key; a momentum; residuals, also on the
# servers; estimates on both sides of the link.
EVERY_DAY = ("sign_sgd coins", "ssdm", "double_squeeze", "ef21")


def noisy_loss(params: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, params["kernel"].shape)
    pull = jnp.sum((params["kernel"] - batch[0] + 0.1 * noise) ** 2)
    return (pull + (params["bias"] - batch[0, 0, 0]) ** 2) / 2


def batches(step: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(step).normal(size=(M, 3, 2)), jnp.float32)


def bits(tree: Any) -> list[np.ndarray]:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x).view(np.uint8) for x in map(np.atleast_1d, map(np.asarray, leaves))]


def saved_and_restored(state: signax.TrainState, like: Any, path: Path) -> signax.TrainState:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, like)


@pytest.mark.parametrize(
    "name",
    daily(OPTIMIZERS, EVERY_DAY),
)
@pytest.mark.parametrize("kind", daily(["key", "PRNGKey"], ["key"]))
def test_a_restored_state_goes_on_bit_for_bit(name: str, kind: str, tmp_path: Path):
    mesh, row, make_key = worker_mesh(M), OPTIMIZERS[name], getattr(jax.random, kind)
    tx = row.make(row.learning_rate, axis_name=WORKERS)
    first = lambda: signax.init_train_state(params(), tx, mesh, key=make_key(7))  # noqa: E731
    step = signax.make_train_step(noisy_loss, tx, mesh)
    state = first()
    for k in range(3):
        state, _ = step(state, batches(k))  # donated: what is saved is what a step returned
    restored = saved_and_restored(state, first(), tmp_path / "state")
    for k in range(3, 6):
        (state, _), (restored, _) = step(state, batches(k)), step(restored, batches(k))
    for want, got in zip(bits(state), bits(restored), strict=True):
        np.testing.assert_array_equal(got, want)
