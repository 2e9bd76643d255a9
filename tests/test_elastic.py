"""Another number of workers: the mean of the memories is kept, and training goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from daily import daily
from workers import WORKERS, worker_mesh

PARAMS = {"w": jnp.zeros((3, 5)), "b": jnp.zeros(5)}
MAKERS = {
    "signum": lambda: signax.signum(0.01, axis_name=WORKERS),
    "ssdm": lambda: signax.ssdm(0.01, axis_name=WORKERS, scale=signax.Scale("linf", "leaf")),
}


def loss_fn(params, batch):
    return jnp.mean((batch[:, :3] @ params["w"] + params["b"][None] - batch[:, 3:]) ** 2)


def batch(step: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (24, 8))


def trained(tx, num_workers: int, num_steps: int = 3):
    mesh = worker_mesh(num_workers)
    step = signax.make_train_step(loss_fn, tx, mesh)
    state = signax.init_train_state(PARAMS, tx, mesh)
    for k in range(num_steps):
        state, _ = step(state, batch(k))
    return state


def memories(state) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(state.opt_state[0]) if x.ndim > 1]


@pytest.mark.parametrize(
    ("before", "after"),
    daily([(2, 3), (8, 4), (4, 1), (1, 2)], [(2, 3)]),
)
@pytest.mark.parametrize("name", MAKERS)
def test_the_mean_of_the_memories_is_kept_and_the_run_goes_on(name: str, before: int, after: int):
    tx = MAKERS[name]()
    state = trained(tx, before)
    changed = signax.change_num_workers(state, tx, worker_mesh(after))
    for old, new in zip(memories(state), memories(changed), strict=True):
        assert (len(old), len(new)) == (before, after)
        np.testing.assert_allclose(new, np.broadcast_to(old.mean(0), new.shape), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, changed.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, changed.opt_state[1:], state.opt_state[1:])
    step = signax.make_train_step(loss_fn, tx, worker_mesh(after))
    new, metrics = step(changed, batch(3))
    assert int(new.step) == 4
    assert np.isfinite(metrics["loss"])


def test_where_a_state_was_saved_is_said_by_the_axes_or_by_the_number_of_workers():
    tx, mesh = MAKERS["signum"](), worker_mesh(2)
    by_axes = signax.abstract_train_state(PARAMS, tx, mesh, saved_on=worker_mesh(4).shape)
    assert signax.abstract_train_state(PARAMS, tx, mesh, saved_on=4) == by_axes
    message = r"^signax.abstract_train_state: saved_on must .* or \{'workers': ...\}, got 0"
    with pytest.raises(TypeError, match=message):
        signax.abstract_train_state(PARAMS, tx, mesh, saved_on=0)


def test_the_old_state_lives_on_when_the_new_one_is_donated():
    tx = MAKERS["signum"]()
    state = trained(tx, 4)
    changed = signax.change_num_workers(state, tx, worker_mesh(4))
    signax.make_train_step(loss_fn, tx, worker_mesh(4))(changed, batch(3))
    assert np.isfinite(np.asarray(state.params["w"])).all()


def test_zero_forgets():
    tx = MAKERS["ssdm"]()
    changed = signax.change_num_workers(trained(tx, 2), tx, worker_mesh(3), how="zero")
    assert not any(x.any() for x in memories(changed))
    assert not changed.opt_state[0].has_started.any(), "the first gradient starts the momentum anew"


def test_simulated_workers_change_their_number_too():
    tx = MAKERS["signum"]()
    state = signax.change_num_workers(signax.init_train_state(PARAMS, tx, 4), tx, 100)
    state, _ = signax.simulate_train_step(loss_fn, tx, 100)(state, jnp.ones((100, 8)))
    assert state.opt_state[0].ema["b"].shape == (100, 5)


def test_keys_come_through():
    tx = MAKERS["signum"]()
    state = signax.init_train_state(PARAMS, tx, worker_mesh(2), key=jax.random.key(7))
    changed = signax.change_num_workers(state, tx, worker_mesh(3))
    assert (jax.random.key_data(changed.key) == jax.random.key_data(jax.random.key(7))).all()


def test_a_state_of_another_optimizer_or_an_unknown_way_is_refused():
    state = trained(MAKERS["ssdm"](), 2, 1)
    with pytest.raises(ValueError, match=r"^signax\.change_num_workers: .* not belong to this"):
        signax.change_num_workers(state, MAKERS["signum"](), worker_mesh(3))
    with pytest.raises(ValueError, match=r"unknown how 'sum'; choose one of \('mean', 'zero'\)"):
        signax.change_num_workers(state, MAKERS["ssdm"](), worker_mesh(3), how="sum")
    longer = jax.tree.map(
        lambda x: jnp.concatenate([x, x], -1) if x.ndim > 1 else x, state.opt_state
    )
    with pytest.raises(ValueError, match=r"^signax\.change_num_workers: .* one row of shape"):
        signax.change_num_workers(
            state._replace(opt_state=longer), MAKERS["ssdm"](), worker_mesh(3)
        )
