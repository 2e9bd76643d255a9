"""A batch or a state that does not fit the step is refused, and told what to write instead."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from eight_workers import ALGORITHMS, SIZE, M, batches, loss, mesh, on_mesh, params, simulated
from workers import WORKERS


@pytest.mark.parametrize("num_rows", [0, 7, 12])
def test_a_batch_that_workers_cannot_share_is_refused_by_its_leaf(num_rows: int):
    tx = signax.sign_sgd(0.25, axis_name=WORKERS)
    if num_rows == 0:
        batch, message = {"x": jnp.zeros(())}, "no leading axis, which 8 workers"
    else:
        batch, message = {"x": jnp.zeros((num_rows, SIZE))}, f"{num_rows} rows, which 8 workers"
    for run in (on_mesh, simulated):
        with pytest.raises(ValueError, match=r"\['x'\] has " + message):
            run(lambda p, b: loss(p, b["x"]), tx, [batch])


def test_accumulation_needs_a_batch_that_divides_further():
    with pytest.raises(ValueError, match="8 workers x accumulate_steps=3"):
        on_mesh(loss, ALGORITHMS["signum"](), batches(1, 2 * M), accumulate_steps=3)


def test_a_state_of_plain_init_is_an_error_that_names_init_opt_state():
    tx = ALGORITHMS["signum"]()
    for step, where in (
        (signax.make_train_step(loss, tx, mesh()), mesh()),
        (signax.simulate_train_step(loss, tx, M), M),
    ):
        state = signax.init_train_state(params(), tx, where)
        with pytest.raises(ValueError, match=r"signax\.init_opt_state") as error:
            step(state._replace(opt_state=tx.init(params())), batches(1)[0])
        assert "[0].ema['a'] has shape (16,)" in str(error.value)


def test_a_state_of_another_number_of_workers_names_change_num_workers():
    tx = ALGORITHMS["signum"]()
    state = signax.init_train_state(params(), tx, 4)
    for step in (signax.make_train_step(loss, tx, mesh()), signax.simulate_train_step(loss, tx, M)):
        with pytest.raises(ValueError, match=r"signax\.change_num_workers") as error:
            step(state, batches(1)[0])
        assert "the state of 4 workers, given to 8" in str(error.value)


def test_a_state_of_another_optimizer_or_model_is_refused():
    tx = ALGORITHMS["signum"]()
    step = signax.make_train_step(loss, tx, mesh())
    other = signax.init_train_state(params(), signax.sign_sgd(0.1, axis_name=WORKERS), mesh())
    with pytest.raises(ValueError, match="does not belong to this optimizer"):
        step(other, batches(1)[0])
    smaller = signax.init_train_state(params() | {"a": jnp.zeros(3)}, tx, mesh())
    mixed = signax.init_train_state(params(), tx, mesh())._replace(opt_state=smaller.opt_state)
    with pytest.raises(ValueError, match=re.escape("but these parameters need (8, 16)")):
        step(mixed, batches(1)[0])


ON_A_MESH_AND_SIMULATED = {
    "a number for a mesh": lambda tx: signax.make_train_step(jnp.sum, tx, 8),  # pyright: ignore[reportArgumentType]
    "a mesh for a number": lambda tx: signax.simulate_train_step(
        jnp.sum,
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
    with pytest.raises(ValueError, match=r"^signax: the workers .* their number, at least 1"):
        signax.init_train_state(params(), tx, number)
    eight: Any = np.int64(8)
    assert signax.init_opt_state(tx, params(), eight)[0].ema["a"].shape == (8, SIZE)


def test_a_batch_without_rows_is_refused():
    tx = signax.sign_sgd(0.1, axis_name=WORKERS)
    step = signax.simulate_train_step(lambda p, b: jnp.sum(p) * jnp.mean(b), tx, 2)
    state = signax.init_train_state(jnp.ones(3), tx, 2)
    with pytest.raises(ValueError, match="has 0 rows"):
        step(state, jnp.ones((0, 3)))


def test_simulated_workers_take_a_batch_leaf_without_columns():
    tx = signax.sign_sgd(0.1, axis_name=WORKERS)
    fn = lambda p, b: jnp.sum(p) * jnp.mean(b["x"]) + jnp.sum(b["none"])  # noqa: E731
    step = signax.simulate_train_step(fn, tx, 2)
    state = signax.init_train_state(jnp.ones(3), tx, 2)
    state, _ = step(state, {"x": jnp.ones(4), "none": jnp.zeros((4, 0))})
    np.testing.assert_allclose(state.params, 0.9)


def test_a_state_is_made_of_arrays_on_another_device_and_of_a_seed():
    start = jax.device_put(jnp.ones(3), jax.devices()[-1])
    tx = signax.signum(0.1, axis_name=WORKERS)
    state = signax.init_train_state(start, tx, mesh(), key=1)
    np.testing.assert_array_equal(state.params, start)
    assert state.key == jax.random.key(1)
