"""The steps of the whole family are those of references written from the papers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_family
import signax
from daily import daily
from four_leaves import LEAVES, NUM_STEPS, SIZE, SIZES, random_rows, to_tree, to_vector
from workers import WORKERS, map_workers

SCHEDULE = optax.linear_schedule(0.1, 0.02, NUM_STEPS)


DETERMINISTIC: dict[str, Callable[[], optax.GradientTransformation]] = {
    "ef leaf": lambda: signax.ef_sign_sgd(SCHEDULE, axis_name=WORKERS),
    "ef global": lambda: signax.ef_sign_sgd(0.1, axis_name=WORKERS, scope="global"),
    "ef decay": lambda: signax.ef_sign_sgd(SCHEDULE, axis_name=WORKERS, weight_decay=0.5),
    "double squeeze": lambda: signax.double_squeeze(0.1, axis_name=WORKERS),
    "compressed mean": lambda: optax.chain(
        signax.compressed_mean(WORKERS), optax.scale_by_learning_rate(0.1)
    ),
    "lion majority": lambda: signax.distributed_lion(
        0.1, 0.8, 0.9, axis_name=WORKERS, weight_decay=0.5
    ),
    "lion average": lambda: signax.distributed_lion(
        0.1, 0.8, 0.9, axis_name=WORKERS, weight_decay=0.5, aggregate="average"
    ),
    "ssdm deterministic": lambda: signax.ssdm(0.1, 0.8, axis_name=WORKERS, sign="deterministic"),
    "one bit adam": lambda: signax.one_bit_adam(
        0.1, 0.8, 0.9, 1e-3, freeze_steps=7, axis_name=WORKERS
    ),
}


def expected_path(name: str, rows: np.ndarray) -> list[np.ndarray]:
    num_workers = rows.shape[1]
    x, errors, server_error = np.ones(SIZE), np.zeros(rows.shape[1:]), np.zeros(SIZE)
    momenta: Any = [None] * num_workers
    adam: Any = np.zeros(SIZE), np.zeros(SIZE)
    parts = reference_family.server_groups(SIZES, num_workers)
    path = []
    for k, row in enumerate(rows.astype(np.float64)):
        rate = float(SCHEDULE(k)) if name in ("ef leaf", "ef decay") else 0.1
        if name.startswith("ef"):
            groups = [np.arange(SIZE)] if name == "ef global" else LEAVES
            decay = rate * 0.5 * x if name == "ef decay" else 0.0
            x, errors = reference_family.ef_sign_sgd_step(x, errors, row, rate, groups)
            x = x - decay
        elif name.startswith("lion"):
            x, errors = reference_family.lion_step(
                x, errors, row, rate, 0.8, 0.9, 0.5, name.removeprefix("lion ")
            )
        elif name == "one bit adam":
            memory = *adam, errors, server_error
            x, (*adam, errors, server_error) = reference_family.one_bit_adam_step(
                x, memory, row, 0.1, 0.8, 0.9, 1e-3, k < 7, LEAVES, parts
            )
        elif name == "ssdm deterministic":
            rule = reference.momentum_from_first_gradient
            momenta = reference.next_momenta(momenta, row, 0.8, rule)
            voters = zip(momenta, reference.is_voter(row), strict=True)
            said = [m for m, votes in voters if votes and m is not None]
            x = x - rate * reference.average_signs(np.reshape(said, (-1, SIZE)))
        else:
            x, errors, server_error = reference_family.double_squeeze_step(
                x, errors, server_error, row, rate, LEAVES, parts
            )
        path.append(x)
    return path


def run(tx: optax.GradientTransformation, rows: jax.Array) -> jax.Array:
    """The path of x on this worker."""

    def step(carry, g):
        x, state = carry
        updates, state = tx.update(to_tree(g), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), to_vector(x)

    x = to_tree(jnp.ones(SIZE))
    state = jax.tree.map(lambda x: x + jnp.zeros_like(x), tx.init(x))
    return jax.lax.scan(step, (x, state), rows)[1]


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_deterministic_methods_take_the_steps_of_their_papers(num_workers: int):
    rows = random_rows(num_workers)
    on_workers = map_workers(
        "vmap", lambda r: {k: run(make(), r) for k, make in DETERMINISTIC.items()}, num_workers
    )
    paths = on_workers(jnp.asarray(rows.swapaxes(0, 1)))
    for name in DETERMINISTIC:
        path = np.asarray(paths[name])
        np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape), name)
        expected = np.array(expected_path(name, rows))
        assert np.abs(path[0] - expected).max() <= 1e-6 * np.abs(expected).max(), name
