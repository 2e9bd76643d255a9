"""Momentum from the first gradient, and memory that one NaN cannot spoil."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import signax
from daily import daily
from one_worker_step import temporary_share
from workers import WORKERS, Mapped


def run(tx: optax.GradientTransformation, gradients: list[Any]) -> tuple[list[np.ndarray], Any]:
    state, updates = tx.init(gradients[0]), []
    for g in gradients:
        update, state = tx.update(g, state)
        updates.append(np.asarray(update))
    return updates, state


def random_gradients(num_steps: int, size: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_steps, size)).astype(np.float32)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_momentum_starts_at_the_first_gradient(beta: float):
    gradients = random_gradients(6)
    updates, state = run(signax.ema_from_first_gradient(beta), list(jnp.asarray(gradients)))
    np.testing.assert_array_equal(updates[0], gradients[0])
    m = None
    for update, g in zip(updates, gradients, strict=True):
        m = reference.momentum_from_first_gradient(m, g.astype(np.float64), beta)
        # k + 1 terms of magnitude at most 4, three float32 roundings (2^-24) each
        np.testing.assert_allclose(update, m, atol=6 * 3 * 4 * 2.0**-24)
    assert bool(state.has_started)


def test_optax_ema_is_another_momentum():
    gradients = list(jnp.asarray(random_gradients(2)))
    ours, _ = run(signax.ema_from_first_gradient(0.9), gradients)
    for debias in (False, True):
        theirs, _ = run(optax.ema(0.9, debias=debias), gradients)
        assert not np.allclose(ours[1], theirs[1])


@pytest.mark.parametrize("accumulator", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_accumulator_has_its_own_dtype_and_updates_the_gradients(dtype: Any, accumulator: Any):
    tx = signax.ema_from_first_gradient(0.9, accumulator_dtype=accumulator)
    g = jnp.ones(3, dtype)
    state = tx.init(g)
    for _ in range(2):
        update, state = tx.update(g, state)
        assert update.dtype == dtype
        assert state.momentum.dtype == (accumulator or dtype)
        # 0.9 and 0.1 of 1, rounded once to the update's 8 bits or more
        np.testing.assert_allclose(np.asarray(update, np.float32), 1.0, rtol=2.0**-8)


def test_a_float32_accumulator_keeps_what_bfloat16_would_lose():
    # In bfloat16, 0.999 * 1 + 0.001 * 2 rounds to 1 at every step; in float32 it grows to 1.095.
    ones, twos = jnp.ones(1, jnp.bfloat16), jnp.full(1, 2, jnp.bfloat16)
    _, state = run(
        signax.ema_from_first_gradient(0.999, accumulator_dtype=jnp.float32), [ones] + [twos] * 100
    )
    np.testing.assert_allclose(state.momentum, 2 - 0.999**100, rtol=1e-5)


BAD = [np.nan, np.inf, -np.inf]
MEMORIES = {
    "first gradient": lambda: signax.ema_from_first_gradient(0.9),
    "ema": lambda: optax.ema(0.9, debias=False),
    "trace": lambda: optax.trace(0.9),
    "adam": lambda: optax.scale_by_adam(),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_bad_step_leaves_the_memory_as_it_was(memory: str, bad: float):
    tx = signax.abstaining(MEMORIES[memory]())
    good = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones(3)}
    state = tx.init(good)
    for _ in range(2):  # at the first step too
        spoilt = good | {"b": jnp.array([1.0, bad, 1.0])}
        update, after = tx.update(spoilt, state)
        for leaf in jax.tree.leaves(update):
            assert np.isnan(leaf).all()  # the whole tree, not one leaf
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            if jnp.issubdtype(new.dtype, jnp.integer):
                assert int(new) == int(old) + 1  # a count that all workers share
            else:
                np.testing.assert_array_equal(new, old)
        _, state = tx.update(good, after)


def test_memory_whose_own_result_is_infinite_abstains_as_well():
    tx = signax.abstaining(optax.trace(0.9))
    state = tx.init(jnp.zeros(2))
    large = jnp.array([3e38, 1.0])
    update, state = tx.update(large, state)
    np.testing.assert_array_equal(update, large)
    update, after = tx.update(large, state)  # 3e38 + 0.9 * 3e38 overflows
    assert np.isnan(update).all()
    np.testing.assert_array_equal(after.trace, state.trace)


def test_without_abstaining_one_nan_stays_for_ever():
    gradients = [jnp.ones(1), jnp.full(1, np.nan), jnp.ones(1)]
    updates, _ = run(optax.ema(0.9, debias=False), gradients)
    assert np.isnan(updates[2]).all()
    updates, _ = run(signax.abstaining(optax.ema(0.9, debias=False)), gradients)
    np.testing.assert_allclose(updates[2], 0.19, rtol=1e-6)


def test_abstaining_is_its_inner_transformation_at_finite_steps():
    gradients = list(jnp.asarray(random_gradients(4)))
    for make in MEMORIES.values():
        inner, ours = run(make(), gradients), run(signax.abstaining(make()), gradients)
        jax.tree.map(np.testing.assert_array_equal, inner, ours)


def test_abstaining_passes_extra_args_and_keys():
    tx = signax.abstaining(optax.scale_by_polyak())
    update, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=jnp.float32(1.0))
    assert np.isfinite(update).all()
    noisy = signax.abstaining(optax.add_noise(0.1, 0.5, jax.random.key(0)))
    _, state = noisy.update(jnp.full(2, np.nan), noisy.init(jnp.ones(2)))
    old = noisy.init(jnp.ones(2))
    changed = jax.random.key_data(state.rng_key) != jax.random.key_data(old.rng_key)
    assert changed.any(), "a key is shared by all workers: it advances"


@pytest.mark.parametrize(
    "memory", [signax.ema_from_first_gradient(0.9), optax.trace(0.9)], ids=["ema", "trace"]
)
def test_a_momentum_that_is_the_update_is_written_in_place(memory: optax.GradientTransformation):
    tx = optax.chain(signax.abstaining(memory), optax.scale_by_sign(), optax.scale(-0.1))
    # A thirty-second for the marks of what is not finite; a second momentum would be the model.
    assert temporary_share(tx) < 1 / 10


def test_each_worker_decides_for_itself(mapped: Mapped):
    tx = signax.abstaining(signax.ema_from_first_gradient(0.5))
    first = jnp.array([[1.0, 1.0], [np.nan, 1.0], [2.0, 2.0]])
    second = jnp.array([[3.0, 1.0], [4.0, 4.0], [np.inf, 0.0]])

    def fn(first, second):
        state = tx.init(first)
        _, state = tx.update(signax.as_varying(first, WORKERS), state)
        update, state = tx.update(second, state)
        return update, state.momentum

    update, momentum = mapped(fn, first, second)
    # worker 1 starts at its first gradient that counts; worker 2 keeps its first
    np.testing.assert_array_equal(momentum, [[2.0, 1.0], [4.0, 4.0], [2.0, 2.0]])
    np.testing.assert_array_equal(update[:2], momentum[:2])
    assert np.isnan(update[2]).all()


def test_a_missing_leaf_is_an_error():
    tx = signax.ema_from_first_gradient(0.9)
    state = tx.init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="b"):
        tx.update({"a": jnp.zeros(2)}, state)


# What users put before a vote. Some of it spreads a NaN over the tree, none of it may hide one.
BEFORE = {
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.1),
    "normalize_by_update_norm": optax.normalize_by_update_norm(),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "add_noise": optax.add_noise(0.01, 0.5, jax.random.key(0)),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("before", daily(BEFORE, ["ema", "add_noise"]))
def test_in_a_chain_of_ones_own_a_worker_with_a_nan_is_as_if_it_were_not_there(
    before: str, bad: float
):
    tx = optax.chain(
        BEFORE[before],
        signax.abstaining(optax.ema(0.9, debias=False)),
        signax.majority_vote(WORKERS),
    )
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    rows = {"a": random_gradients(3, 6).reshape(3, 2, 3), "b": random_gradients(3, 4, seed=1)}
    rows = jax.tree.map(jnp.asarray, rows)
    spoilt = rows | {"b": rows["b"].at[1, 2].set(bad)}

    step = lambda g: tx.update(g, tx.init(params), params)  # noqa: E731
    vote = jax.jit(jax.vmap(step, axis_name=WORKERS))
    updates, state = vote(spoilt)
    wanted, _ = vote(jax.tree.map(lambda x: x[jnp.array([0, 2])], rows))
    for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(want[:1], got.shape))
    np.testing.assert_array_equal(state[2].num_abstained, [1, 1, 1])
    memory = np.concatenate(
        [np.asarray(x).reshape(3, -1) for x in jax.tree.leaves(state[1].ema)], 1
    )
    assert not memory[1].any()  # as it was at the start
    assert memory[[0, 2]].any(axis=1).all()
