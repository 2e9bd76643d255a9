"""What may stand around a network link: freezing, skipping together, and what raises instead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import thorough
from workers import WORKERS, run_python, worker_mesh

PARAMS = {"head": jnp.zeros(5), "body": jnp.ones(300)}
FROZEN = {"head": False, "body": True}


def loss_fn(params, batch):
    return jnp.mean((params["head"][None] - batch) ** 2) + jnp.sum(params["body"] ** 2)


def train(tx: optax.GradientTransformation, num_steps: int = 2, scale=1.0):
    mesh = worker_mesh(4)
    step = signax.make_train_step(loss_fn, tx, mesh)
    state = signax.init_train_state(PARAMS, tx, mesh)
    for _ in range(num_steps):
        state, _ = step(state, scale * jnp.arange(1.0, 21.0).reshape(4, 5))
    return step, state


def signum() -> optax.GradientTransformation:
    return signax.signum(0.1, axis_name=WORKERS)


def test_frozen_leaves_neither_move_nor_travel():
    step, state = train(signax.freeze(signum(), FROZEN))
    np.testing.assert_array_equal(state.params["body"], PARAMS["body"])
    np.testing.assert_allclose(state.params["head"], 0.2, rtol=1e-6)
    # To each of four workers: a word of the five trainable coordinates for each of two planes, and
    # one for the header. The 300 frozen ones would make it 2 * 10 + 1.
    text = step.lower(state, jnp.zeros((4, 5))).compile().as_text()
    assert "u8[4,3]" in text or "u8[1,3]" in text


def test_a_frozen_leaf_keeps_no_memory():
    _, state = train(signax.freeze(signum(), lambda params: FROZEN))
    assert len(jax.tree.leaves(state.opt_state)) == len(
        jax.tree.leaves(signax.init_opt_state(signum(), {"head": PARAMS["head"]}, worker_mesh(4)))
    )


def test_one_worker_s_doubt_skips_the_step_for_all_and_leaves_no_trace():
    def too_large(updates, params):
        return optax.tree.norm(updates["head"]) > 5.0

    tx = signax.skip_together(signum(), too_large, axis_name=WORKERS)
    _, small = train(tx, scale=0.01)
    assert int(small.opt_state.num_skipped) == 0
    _, large = train(tx)  # the last worker's gradient is above 5, the first one's below
    assert int(large.opt_state.num_skipped) == 2
    fresh = signax.init_train_state(PARAMS, tx, worker_mesh(4))
    jax.tree.map(np.testing.assert_array_equal, large.params, fresh.params)
    jax.tree.map(
        np.testing.assert_array_equal, large.opt_state.inner_state, fresh.opt_state.inner_state
    )


def test_a_predicate_that_is_no_scalar_is_refused():
    tx = signax.skip_together(signax.sign_sgd(0.1), lambda g, p: jnp.abs(g) > 1, axis_name=None)
    with pytest.raises(ValueError, match=r"^signax\.skip_together: .* array of shape \(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.masked(signum(), {"head": True, "body": False}), "use signax.freeze"),
        (optax.apply_if_finite(signum(), 3), "signax.skip_together"),
        (optax.MultiSteps(signum(), 2), "accumulate_steps=k"),
    ],
    ids=["masked", "apply_if_finite", "MultiSteps"],
)
def test_an_optax_wrapper_that_is_unsafe_around_a_link_says_what_to_use(tx, message: str):
    with pytest.raises(ValueError, match=message):
        signax.init_train_state(PARAMS, tx, worker_mesh(4))


def test_a_branch_on_the_step_count_runs_with_a_layout_of_one_s_own():
    tx = optax.MultiSteps(signum(), 2).gradient_transformation()
    like = jax.eval_shape(tx.init, PARAMS)
    own = lambda tree: jax.tree.map(lambda _: jax.P(WORKERS), tree)  # noqa: E731
    specs = jax.tree.map(lambda _: jax.P(), like)
    momentum, *rest = specs.inner_opt_state
    specs = specs._replace(
        acc_grads=own(like.acc_grads),
        inner_opt_state=(momentum._replace(ema=own(like.inner_opt_state[0].ema)), *rest),
    )
    mesh = worker_mesh(4)
    step = signax.make_train_step(loss_fn, tx, mesh, state_specs=specs, check_vma=False)
    state = signax.init_train_state(PARAMS, tx, mesh, state_specs=specs)
    for _ in range(4):
        state, _ = step(state, jnp.arange(1.0, 21.0).reshape(4, 5))
    np.testing.assert_allclose(state.params["head"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("make", [signax.sign_sgd, signax.signum, signax.ssdm, signax.dense_sgd])
def test_a_nan_spreads_to_all_workers_if_the_user_wants_it(make):
    tx = make(0.1, axis_name=WORKERS, on_nonfinite="propagate")
    mesh = worker_mesh(4)
    step = signax.make_train_step(loss_fn, tx, mesh)
    batch = jnp.arange(1.0, 21.0).reshape(4, 5).at[2, 2].set(jnp.nan)
    state, _ = step(signax.init_train_state(PARAMS, tx, mesh), batch)
    assert bool(jnp.isnan(state.params["head"]).all())


RAISE = """
import jax, jax.numpy as jnp, signax
mesh = signax.make_worker_mesh(4)
batch = jnp.zeros((4, 5)).at[2, 2].set(jnp.nan)
for make in (signax.sign_sgd, signax.signum, signax.ssdm, signax.dense_sgd):
    tx = make(0.1, axis_name="workers", on_nonfinite="error")
    step = signax.make_train_step(lambda x, b: jnp.mean((x[None] - b) ** 2), tx, mesh)
    jax.block_until_ready(step(signax.init_train_state(jnp.ones(5), tx, mesh), jnp.zeros((4, 5))))
    try:
        jax.block_until_ready(step(signax.init_train_state(jnp.ones(5), tx, mesh), batch))
    except Exception as error:
        print("a NaN or an infinity in the updates of 1 worker(s)" in str(error))
"""


@thorough
def test_a_nan_raises_if_the_user_wants_it():
    assert run_python(RAISE, devices=4).stdout == 4 * "True\n"
