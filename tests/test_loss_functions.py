"""A loss function that returns what a step cannot use is told what to return."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
