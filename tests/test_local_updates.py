"""Many steps on each worker alone, then one exchange."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax

M, K, D = 4, 3, 5
TARGETS = np.random.default_rng(0).normal(size=(M, K, 2, D)).astype(np.float32)
WEIGHTS = np.array([1.0, 0.5, 2.0, 1.0], np.float32)


def loss(x, batch):
    return jnp.mean(batch["w"][:, None] * (x[None] - batch["y"]) ** 2) / 2


BATCH = {
    "y": jnp.asarray(TARGETS.reshape(-1, D)),
    "w": jnp.asarray(np.repeat(WEIGHTS, K * 2)),
}
MAKERS = {
    "shard_map": lambda tx, **kw: (
        signax.make_train_step(loss, tx, signax.make_worker_mesh(M), **kw),
        signax.init_train_state(jnp.zeros(D), tx, signax.make_worker_mesh(M)),
    ),
    "vmap": lambda tx, **kw: (
        signax.simulate_train_step(loss, tx, M, **kw),
        signax.init_train_state(jnp.zeros(D), tx, M),
    ),
}


def outer(**kwargs):
    return signax.sign_sgd(0.1, axis_name="workers", **kwargs)


def rounds_by_hand(num_rounds: int, inner_lr: float, momentum: float) -> np.ndarray:
    """NumPy: heavy-ball SGD inside, whose memory lives on, and a majority vote outside."""
    x, traces = np.zeros(D), np.zeros((M, D))
    for _ in range(num_rounds):
        votes = np.zeros(D)
        for n in range(M):
            local = x.copy()
            for k in range(K):
                g = WEIGHTS[n] * (local - TARGETS[n, k]).mean(0) / D
                traces[n] = momentum * traces[n] + g
                local = local - inner_lr * traces[n]
            votes += np.sign(x - local)
        x = x - 0.1 * np.sign(votes)
    return x


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_round_is_k_inner_steps_and_one_vote_on_how_far_each_worker_came(make):
    step, state = make(signax.local_updates(optax.sgd(0.3, 0.9), outer()), local_steps=K)
    for _ in range(12):
        state, metrics = step(state, BATCH)
    np.testing.assert_allclose(state.params, rounds_by_hand(12, 0.3, 0.9), atol=1e-6)
    assert int(state.step) == 12
    assert metrics["num_abstained"] == 0


def test_one_local_step_of_sgd_with_a_dense_mean_is_sgd():
    tx = signax.local_updates(optax.sgd(0.3), signax.dense_sgd(1.0, axis_name="workers"))
    step, state = MAKERS["shard_map"](tx)
    dense_step, dense = MAKERS["shard_map"](signax.dense_sgd(0.3, axis_name="workers"))
    for _ in range(3):
        (state, _), (dense, _) = step(state, BATCH), dense_step(dense, BATCH)
    np.testing.assert_allclose(state.params, dense.params, rtol=1e-6)


def test_the_inner_memory_is_each_workers_own_and_lives_on():
    tx = signax.local_updates(optax.adam(0.1), outer())
    step, state = MAKERS["shard_map"](tx, local_steps=K)
    state, _ = step(state, BATCH)
    adam = state.opt_state.inner_state[0]
    assert adam.mu.shape == (M, D)
    assert len(np.unique(np.asarray(adam.mu), axis=0)) == M
    assert int(adam.count) == K


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_worker_whose_way_is_not_finite_abstains_and_keeps_its_memory(make):
    step, state = make(signax.local_updates(optax.sgd(0.3, 0.9), outer()), local_steps=K)
    state, _ = step(state, BATCH)
    before = np.asarray(state.opt_state.inner_state[0].trace)
    bad = BATCH | {"y": BATCH["y"].at[K * 2].set(jnp.nan)}  # worker 1, in its first inner step
    state, metrics = step(state, bad)
    after = np.asarray(state.opt_state.inner_state[0].trace)
    assert metrics["num_abstained"] == 1
    np.testing.assert_array_equal(after[1], before[1])
    assert (after[[0, 2, 3]] != before[[0, 2, 3]]).all()
    assert np.isfinite(state.params).all()


def test_a_round_sends_what_one_exchange_sends():
    tx = signax.local_updates(optax.sgd(0.1), outer(ties="random"))
    bits = {}
    for k in (1, K):
        step, state = MAKERS["shard_map"](tx, local_steps=k)
        bits[k] = signax.wire_bits(step, state, BATCH, num_coordinates=D).bits
    assert bits[1] == bits[K] > 0


def test_error_feedback_and_an_outer_momentum_go_outside():
    link = signax.ef_sign_sgd(1.0, axis_name="workers")
    nesterov = optax.chain(link, optax.trace(0.5, nesterov=True))
    step, state = MAKERS["shard_map"](signax.local_updates(optax.sgd(0.5), nesterov), local_steps=K)
    for _ in range(150):
        state, _ = step(state, BATCH)
    # Inside, each worker contracts towards its own targets by (1 - 0.5 w / D)^K, so the fixed point
    # weighs the workers by 1 - that. EF's residual makes it wander by about the last scaled sign.
    pull = 1 - (1 - 0.5 * WEIGHTS / D) ** K
    ways = [(TARGETS[n].mean((0, 1)), pull[n]) for n in range(M)]
    fixed = sum(p * y for y, p in ways) / pull.sum()
    np.testing.assert_allclose(state.params, fixed, atol=0.15)


def test_dropout_keys_differ_between_inner_steps():
    def noisy(x, batch, key):
        return jnp.sum(x * jax.random.normal(key, x.shape)) + 0 * jnp.mean(batch)

    tx = signax.local_updates(optax.sgd(1.0), signax.dense_sgd(1.0, axis_name="workers"))
    mesh = signax.make_worker_mesh(1)
    state = signax.init_train_state(jnp.zeros(D), tx, mesh, key=jax.random.key(0))
    step = signax.make_train_step(noisy, tx, mesh, local_steps=2)
    state, _ = step(state, jnp.zeros(2))
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    draws = [jax.random.normal(jax.random.fold_in(step_key, i), (D,)) for i in range(2)]
    np.testing.assert_allclose(state.params, -(draws[0] + draws[1]), rtol=1e-5)


def test_another_number_of_workers_goes_on_from_the_mean_memory():
    tx = signax.local_updates(optax.sgd(0.3, 0.9), outer())
    step, state = MAKERS["shard_map"](tx, local_steps=K)
    state, _ = step(state, BATCH)
    traces = np.asarray(state.opt_state.inner_state[0].trace)
    fewer = signax.change_num_workers(state, tx, signax.make_worker_mesh(2))
    np.testing.assert_allclose(
        fewer.opt_state.inner_state[0].trace, np.stack([traces.mean(0)] * 2), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (partial(signax.local_updates, 0.1, outer()), TypeError, "inner must be an Optax"),
        (partial(signax.local_updates, optax.sgd(0.1), None), TypeError, "outer must be an Optax"),
        (partial(MAKERS["vmap"], outer(), local_steps=2), ValueError, r"signax\.local_updates\("),
        (partial(MAKERS["vmap"], outer(), local_steps=0), ValueError, "1 or more"),
        (partial(MAKERS["vmap"], outer(), local_steps=2.0), ValueError, "an integer"),
        (partial(MAKERS["vmap"], outer(), accumulate_steps=0), ValueError, "1 or more"),
    ],
)
def test_what_cannot_be_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_outer_chain_without_a_network_link_is_refused():
    tx = signax.local_updates(optax.sgd(0.1), optax.sgd(1.0))
    with pytest.raises(ValueError, match="network link"):
        signax.init_train_state(jnp.zeros(D), tx, M)


def test_a_batch_that_rounds_cannot_share_is_refused():
    step, state = MAKERS["vmap"](signax.local_updates(optax.sgd(0.1), outer()), local_steps=5)
    with pytest.raises(ValueError, match="4 workers x local_steps=5"):
        step(state, BATCH)
