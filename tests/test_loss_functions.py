"""A loss function that returns what a step cannot use is told what to return."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from workers import WORKERS

PARAMS, BATCH = {"w": jnp.ones((6, 3))}, jnp.ones((16, 6))
MODEL_STATE = {"mean": 1.0, "count": jnp.int32(2)}


def loss(params, batch):
    return jnp.mean(batch @ params["w"])


def step(loss_fn: Callable, model_state: Any = None, **options: Any) -> Any:
    mesh, tx = signax.make_worker_mesh(4), signax.signum(0.1, axis_name=WORKERS)
    state = signax.init_train_state(PARAMS, tx, mesh, model_state=model_state)
    return signax.make_train_step(loss_fn, tx, mesh, **options)(state, BATCH)


MISTAKES: dict[str, tuple[Callable, dict[str, Any], str]] = {
    "has_aux forgotten": (lambda p, b: (loss(p, b), {"a": 1.0}), {}, "write has_aux=True"),
    "no aux": (loss, {"has_aux": True}, "must return the pair (loss, aux)"),
    "nested aux": (
        lambda p, b: (loss(p, b), {"a": {"b": 1.0}}),
        {"has_aux": True},
        "a flat dict of scalars",
    ),
    "no scalar": (lambda p, b: (b @ p["w"])[:, 0], {}, "a loss of shape (4,)"),
    "no model state": (
        lambda p, b, model_state: loss(p, b),
        {"model_state": MODEL_STATE},
        "must return the pair (loss, model_state)",
    ),
    "half a model state": (
        lambda p, b, model_state: (loss(p, b), {"mean": 1.0}),
        {"model_state": MODEL_STATE},
        "a model state of another structure",
    ),
    "a mean over the workers": (
        lambda p, b: jax.lax.pmean(loss(p, b), WORKERS),
        {},
        "the loss is the same on every worker of the axis 'workers'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_to_return(mistake: str):
    loss_fn, options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        step(loss_fn, **options)


def test_a_model_state_may_be_a_python_number():
    def loss_fn(params, batch, model_state):
        return loss(params, batch), model_state | {"mean": 1.5}

    state, _ = step(loss_fn, MODEL_STATE)
    assert state.model_state["mean"] == 1.5


def test_a_mesh_of_explicit_axes_takes_any_batch():
    """Such as `jax.make_mesh` makes."""
    mesh, tx = jax.make_mesh((4,), (WORKERS,)), signax.signum(0.1, axis_name=WORKERS)
    assert mesh.explicit_axes
    state = signax.init_train_state(PARAMS, tx, mesh)
    one_step = signax.make_train_step(loss, tx, mesh)
    batches = [BATCH, np.asarray(BATCH), jax.device_put(BATCH, jax.NamedSharding(mesh, jax.P()))]
    for batch in batches:
        state, metrics = one_step(state, batch)
        assert metrics["num_abstained"] == 0
    expected = PARAMS["w"] - 3 * jnp.float32(0.1)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, jnp.full(3, 0.1)], ids=["number", "array"])
def test_parameters_of_a_weak_type_compile_one_step(scale: Any):
    mesh, tx = signax.make_worker_mesh(2), signax.signum(0.1, axis_name=WORKERS)
    state = signax.init_train_state({"scale": scale}, tx, mesh)
    one_step = signax.make_train_step(lambda p, b: jnp.sum(p["scale"] * b[0]), tx, mesh)
    for _ in range(3):
        state, _ = one_step(state, jnp.arange(2.0))
    assert one_step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


ON_A_MESH_AND_SIMULATED = {
    "a number for a mesh": lambda tx: signax.make_train_step(loss, tx, 8),  # pyright: ignore[reportArgumentType]
    "a mesh for a number": lambda tx: signax.simulate_train_step(
        loss,
        tx,
        signax.make_worker_mesh(2),  # pyright: ignore[reportArgumentType]
    ),
}


@pytest.mark.parametrize("mistake", ON_A_MESH_AND_SIMULATED)
def test_a_step_for_the_other_kind_of_workers_is_named(mistake: str):
    other = "simulate_train_step" if mistake == "a number for a mesh" else "make_train_step"
    with pytest.raises(TypeError, match=rf"write signax\.{other}\(loss_fn, tx"):
        ON_A_MESH_AND_SIMULATED[mistake](signax.signum(0.1, axis_name=WORKERS))


@pytest.mark.parametrize("number", [0, -1, True, 2.0])
def test_a_number_of_workers_is_at_least_one(number: Any):
    tx = signax.signum(0.1, axis_name=WORKERS)
    with pytest.raises(ValueError, match="their number, at least 1"):
        signax.init_train_state(PARAMS, tx, number)
    assert signax.init_opt_state(tx, PARAMS, np.int64(2))[0].ema["w"].shape == (2, 6, 3)  # pyright: ignore[reportArgumentType]
