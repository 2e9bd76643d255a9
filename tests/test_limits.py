"""What each method can and cannot do: the counterexample, and weighted heterogeneous workers."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import daily
from workers import WORKERS, map_workers

pytestmark = pytest.mark.machine_code

EPSILONS = jnp.array([0.1, 0.5, 0.9])


def counterexample(tx_of: Callable, num_steps: int, num_seeds: int) -> tuple[jax.Array, jax.Array]:
    """Problem (5)-(6) of the paper, one f_n for each of two workers, from a point on the line.

    Returns the largest |z1 + z2 - 2| on the path and the last f, for each epsilon and seed.
    """

    def worker(epsilon, seed, n):
        tx = tx_of(seed)
        a1 = jnp.stack([1 + epsilon, epsilon - 1])
        own = jnp.where(n == 0, a1, a1[::-1])

        def f(x):
            return (jnp.dot(a1, x) ** 2 + jnp.dot(a1[::-1], x) ** 2) / 2

        def step(carry, _):
            x, state, away = carry
            updates, state = tx.update(2 * jnp.dot(own, x) * own, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state, jnp.maximum(away, jnp.abs(jnp.sum(x) - 2))), None

        x = jnp.array([1.75, 0.25])
        carry = (x, tx.init(x), jnp.zeros(()))
        (x, _, away), _ = jax.lax.scan(step, carry, length=num_steps)
        return away, f(x)

    on_workers = jax.vmap(worker, (None, None, 0), axis_name=WORKERS)
    for_seeds = jax.vmap(on_workers, (None, 0, None))
    for_all = jax.jit(jax.vmap(for_seeds, (0, None, None)))
    away, value = for_all(EPSILONS, jnp.arange(num_seeds), jnp.arange(2))
    return away[..., 0], value[..., 0]


@pytest.mark.parametrize("schedule", [lambda k: 0.0625, lambda k: 0.25 / jnp.sqrt(k + 1)])
@pytest.mark.parametrize(
    "method",
    {
        "majority": lambda lr, key: signax.sign_sgd(lr, axis_name=WORKERS, wire="float32"),
        "signum": lambda lr, key: signax.signum(lr, axis_name=WORKERS, wire="float32"),
        "ssdm": lambda lr, key: signax.ssdm(
            lr, axis_name=WORKERS, wire="float32", sign="deterministic"
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_methods_that_know_only_signs_never_leave_the_line(method: Any, schedule: Callable):
    away, value = counterexample(lambda key: method[1](schedule, key), 200, 1)
    # 200 steps, each rounding two numbers below 16: 2 * 200 * 2^-21
    assert float(away.max()) <= 200 * 2.0**-20
    assert float(value.min()) > 0.01


def test_sign_sgd_with_one_random_gradient_at_a_time_never_leaves_the_line():
    def path(epsilon, key):
        tx, a1 = signax.sign_sgd(0.0625), jnp.stack([1 + epsilon, epsilon - 1])

        def step(carry, is_first):
            x, state = carry
            a = jnp.where(is_first, a1, a1[::-1])
            updates, state = tx.update(2 * jnp.dot(a, x) * a, state)
            return (x + updates, state), jnp.sum(x)

        x = jnp.array([1.75, 0.25])
        return jax.lax.scan(step, (x, tx.init(x)), jax.random.bernoulli(key, shape=(200,)))[1]

    sums = jax.vmap(path)(EPSILONS, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(sums, 2.0, atol=200 * 2.0**-20)


CURES = {
    "ssdm": lambda key: signax.ssdm(
        lambda k: 0.1 / jnp.sqrt(k + 1.0), key=key, axis_name=WORKERS, wire="float32"
    ),
    "ef": lambda key: signax.ef_sign_sgd(0.05, key=key, axis_name=WORKERS),
    "double squeeze": lambda key: signax.double_squeeze(0.05, key=key, axis_name=WORKERS),
    "ef21": lambda key: signax.ef21(0.05, key=key, axis_name=WORKERS, wire="float32"),
    "ef21 own": lambda key: signax.ef21(0.05, key=key, axis_name=WORKERS, shared=False),
    "diana": lambda key: signax.diana(0.05, key=key, axis_name=WORKERS, wire="float32"),
    "one bit sgd": lambda key: signax.one_bit_sgd(0.05, axis_name=WORKERS),
}


@pytest.mark.parametrize("name", daily(CURES, ["ssdm", "double squeeze"]))
def test_chance_or_memory_reaches_the_origin(name: str):
    # With a constant step what is left of f falls at least by exp(-0.004) per step: eps = 0.1.
    num_steps = 10_000 if name == "ssdm" else 4000
    _, value = counterexample(CURES[name], num_steps, 10)
    assert float(jnp.median(value, axis=1).max()) <= 1e-4


WEIGHTS = {"equal": (1.0, 1.0, 1.0), "unequal": (1.0, 8.0, 0.5)}
OPTIMA = np.array([[-1.0, 0.5, 2.0], [1.0, -1.5, 0.0], [2.0, 1.0, -0.5]], np.float32)
LINF = signax.Scale("linf", "leaf", shared=True)
FOLLOWS = {
    "dense_sgd": lambda lr: signax.dense_sgd(lr, axis_name=WORKERS),
    "ef_sign_sgd": lambda lr: signax.ef_sign_sgd(lr, axis_name=WORKERS),
    "double_squeeze": lambda lr: signax.double_squeeze(lr, axis_name=WORKERS),
    "ef21": lambda lr: signax.ef21(lr, axis_name=WORKERS, wire="float32"),
    "ef21 own": lambda lr: signax.ef21(lr, axis_name=WORKERS, shared=False),
    "diana": lambda lr: signax.diana(lr, axis_name=WORKERS, wire="float32"),
    "one_bit_sgd": lambda lr: signax.one_bit_sgd(lr, axis_name=WORKERS),
    "ssdm norms sent": lambda lr: signax.ssdm(lr, axis_name=WORKERS, rescale=True),
    "ssdm shared": lambda lr: signax.ssdm(lr, axis_name=WORKERS, scale=LINF, wire="float32"),
}
DOES_NOT = {
    "sign_sgd": lambda lr: signax.sign_sgd(lr, axis_name=WORKERS, wire="float32"),
    "signum": lambda lr: signax.signum(lr, axis_name=WORKERS, wire="float32"),
    "ssdm as printed": lambda lr: signax.ssdm(lr, axis_name=WORKERS, wire="float32"),
    "lion majority": lambda lr: signax.distributed_lion(lr, axis_name=WORKERS, wire="float32"),
    "lion average": lambda lr: signax.distributed_lion(
        lr, axis_name=WORKERS, aggregate="average", wire="float32"
    ),
}


def decaying(k: jax.Array) -> jax.Array:
    return 4.0 / (k + 80.0)


def where_it_ends(
    tx: optax.GradientTransformation, weights: tuple[float, ...], num_steps: int
) -> jax.Array:
    """f_n = w_n / 2 |x - b_n|^2 with full gradients, from 0."""

    def worker(weight, optimum):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(weight * (x - optimum), state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.zeros(3)
        return jax.lax.scan(step, (x, tx.init(x)), length=num_steps)[0][0]

    return map_workers("vmap", worker, 3)(jnp.array(weights), jnp.asarray(OPTIMA))[0]


@pytest.mark.parametrize("weighting", daily(WEIGHTS, ["unequal"]))
@pytest.mark.parametrize("name", daily(FOLLOWS, list(FOLLOWS)[:3]))
def test_methods_that_know_sizes_reach_the_minimum_of_the_weighted_mean(name: str, weighting: str):
    weights = np.array(WEIGHTS[weighting])
    minimum = weights @ OPTIMA / weights.sum()
    # With the step c / k the random ones are after k steps about c R / sqrt(3 M k) = 0.02 away.
    # The error of the others falls as (80 / k)^4.
    num_steps = 20_000 if name.startswith("ssdm") else 3000
    end = where_it_ends(FOLLOWS[name](decaying), WEIGHTS[weighting], num_steps)
    assert np.abs(end - minimum).max() <= 0.05


@pytest.mark.parametrize("name", daily(DOES_NOT, list(DOES_NOT)[:2]))
def test_methods_that_know_only_signs_end_at_the_same_point_whatever_the_weights(name: str):
    ends = [where_it_ends(DOES_NOT[name](decaying), weights, 4000) for weights in WEIGHTS.values()]
    # The weights are powers of two, so not one bit of one sign differs.
    np.testing.assert_array_equal(*ends)
    weights = np.array(WEIGHTS["unequal"])
    assert np.abs(ends[1] - weights @ OPTIMA / weights.sum()).max() > 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_scale_cures_the_example_where_ssdm_never_moves(shared: bool):
    """f_1 = (x-2)^2/4, f_2 = 3(x+2)^2/4, x_0 = sqrt(2)-1; the minimum of their mean is at -1.

    In one dimension R = |g| makes every sign certain, so the two workers cancel for ever.
    """
    rate = optax.linear_schedule(0.05, 0.0, 4000)
    scale = signax.Scale(shared=shared)
    tx = signax.ssdm(rate, axis_name=WORKERS, scale=scale, wire="float32")

    def worker(slope, optimum):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(slope * (x - optimum), state)
            return (x + updates, state), None

        x = jnp.full(1, math.sqrt(2) - 1)
        return jax.lax.scan(step, (x, tx.init(x)), length=4000)[0][0]

    x = map_workers("vmap", worker, 2)(jnp.array([0.5, 1.5]), jnp.array([2.0, -2.0]))[0]
    if shared:
        np.testing.assert_allclose(x, -1.0, atol=0.05)
    else:
        np.testing.assert_array_equal(x, np.float32(math.sqrt(2) - 1))
