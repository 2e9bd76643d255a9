"""A small problem for eight workers: on eight devices, and simulated."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import signax
from workers import WORKERS

M = 8
SIZE = 16


def params() -> dict[str, jax.Array]:
    return {"a": jnp.zeros(SIZE), "b": jnp.ones(())}


def loss(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:
    """Quadratic; its gradient is exact for small integers, so mappings agree bit for bit."""
    return jnp.mean(jnp.sum(((params["a"] + params["b"])[None] - batch) ** 2, axis=-1))


def batches(num_steps: int, rows: int = M, seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return list(jnp.asarray(rng.integers(-4, 5, (num_steps, rows, SIZE)), jnp.float32))


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return signax.make_worker_mesh(M)


def train(step: Callable, state: Any, data: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
    history = []
    for batch in data:
        state, metrics = step(state, batch)
        history.append(jax.tree.map(float, metrics))
    return state, history


def on_mesh(loss_fn: Callable, tx: Any, data: list[Any], start: Any = None, **kwargs: Any):
    init = {k: kwargs.pop(k) for k in ("model_state", "key") if k in kwargs}
    step = signax.make_train_step(loss_fn, tx, mesh(), **kwargs)
    start = params() if start is None else start
    return train(step, signax.init_train_state(start, tx, mesh(), **init), data)


def simulated(loss_fn: Callable, tx: Any, data: list[Any], start: Any = None, **kwargs: Any):
    init = {k: kwargs.pop(k) for k in ("model_state", "key") if k in kwargs}
    step = signax.simulate_train_step(loss_fn, tx, M, **kwargs)
    start = params() if start is None else start
    return train(step, signax.init_train_state(start, tx, M, **init), data)


ALGORITHMS = {
    "signum": lambda: signax.signum(0.25, 0.5, axis_name=WORKERS),
    "sign_sgd coins": lambda: signax.sign_sgd(0.25, axis_name=WORKERS, ties="random", key=4),
    "ssdm": lambda: signax.ssdm(0.25, 0.5, axis_name=WORKERS, scale=signax.Scale("linf", "leaf")),
}
