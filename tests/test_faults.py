"""Workers that lie, guess, sleep or break, and what M = 15 voters make of them.

The problem is a noisy quadratic, f(x) = |x|^2 / 2 in 20 dimensions; worker n sees x plus normal
noise. A majority of 15 stays right while fewer than half of the signs are wrong. That counts signs,
not workers: where honest signs are nearly coins, a few colluders who know the gradient win.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pytest

import signax
from workers import WORKERS

NUM_WORKERS, SIZE, NUM_STEPS, LEARNING_RATE = 15, 20, 400, 0.01


def broken(num_broken: int, break_it: Callable) -> optax.GradientTransformation:
    """A link that spoils the gradient of the first workers: `break_it(gradient, step)`."""

    def update(updates, step, params=None):
        del params
        spoiled = jax.tree.map(lambda g: break_it(g, step), updates)
        is_broken = jax.lax.axis_index(WORKERS) < num_broken
        return optax.tree.where(is_broken, spoiled, updates), step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def vote() -> optax.GradientTransformation:
    return signax.sign_sgd(LEARNING_RATE, axis_name=WORKERS)


@functools.cache
def losses(num_broken: int = 0, break_it: Callable | None = None, noise: float = 1.0):
    return run(num_broken, break_it or (lambda g, step: g), vote, noise)


def run(num_broken: int, break_it: Callable, make: Callable, noise: float = 1.0) -> jax.Array:
    """The loss before each step."""
    tx = optax.chain(broken(num_broken, break_it), make())

    def loss_fn(x, key):
        return jnp.sum(x**2) / 2 + noise * jnp.sum(x * jax.random.normal(key[0], x.shape))

    step = signax.simulate_train_step(loss_fn, tx, NUM_WORKERS)
    state = signax.init_train_state(jnp.ones(SIZE), tx, NUM_WORKERS)

    def scan(state, key):
        new, _ = step(state, jax.random.split(key, NUM_WORKERS))
        return new, jnp.sum(state.params**2) / 2

    keys = jax.random.split(jax.random.key(0), NUM_STEPS)
    return jax.jit(lambda state: jax.lax.scan(scan, state, keys)[1])(state)


def final(history: jax.Array) -> float:
    return float(history[-100:].mean())


def flip(g, step):
    return -g


def oppose(g, step):
    return -jnp.ones_like(g)  # all together, against the gradient at the start


def guess(g, step):
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), step), g.shape)


def sleep(g, step):
    return jnp.ones_like(g)  # the sign of the gradient at the start


def nan(g, step):
    return jnp.full_like(g, jnp.nan)


def one_nan(g, step):
    return g.at[3].set(jnp.nan)


def vote_minus_one_on_nan(g, step):
    """What naive one-bit code does: `where(g >= 0, 1, -1)`."""
    return jnp.where(jnp.full_like(g, jnp.nan) >= 0, 1.0, -1.0)


def zero(g, step):
    return jnp.zeros_like(g)


def test_a_majority_survives_seven_sign_flippers_of_fifteen():
    # Little noise: eight honest signs against seven.
    assert final(losses(7, flip, 0.01)) < 0.01 * losses(7, flip, 0.01)[0]


def test_eight_sign_flippers_of_fifteen_drive_the_workers_away():
    history = losses(8, flip, 0.01)
    assert final(history) > 4 * history[0]


def test_few_colluders_win_where_honest_signs_are_noisy():
    # Far less than half: at x = 1 and noise of 10, an honest sign is right with probability 0.54,
    # so twelve honest workers lead by one vote on average, and three who agree outvote them.
    history = losses(3, oppose, 10.0)
    assert final(history) > history[0]
    assert final(losses(0, None, 10.0)) < history[0]


# Three sleepers always vote +1, so the other twelve balance them where 12 (2 p - 1) = 3, at a
# distance of 0.32: a loss of 20 * 0.32^2 / 2 = 1.0, a tenth of the first. Guesses and zeros cost
# less.
@pytest.mark.parametrize("fault", [guess, sleep, zero])
def test_three_faulty_workers_of_fifteen_do_not_keep_the_others_from_the_minimum(fault):
    assert final(losses(3, fault)) < 0.15 * losses()[0]


def test_three_nan_workers_of_fifteen_cost_less_than_a_third():
    assert final(losses(3, nan)) < 1.3 * final(losses())
    assert final(losses(3, one_nan)) < 1.3 * final(losses())


def test_a_nan_that_votes_ends_more_than_twenty_times_above():
    assert final(losses(3, vote_minus_one_on_nan)) > 20 * final(losses())


@pytest.mark.parametrize("num_broken", [1, 7])
def test_nan_workers_are_as_if_they_were_not_there(num_broken: int):
    others = NUM_WORKERS - num_broken
    # The noise floor of a vote of M workers falls as 1/sqrt(M); 1.3 for 400 correlated steps.
    assert final(losses(num_broken, nan)) < 1.3 * (NUM_WORKERS / others) ** 0.5 * final(losses())


def test_if_everyone_abstains_nothing_moves():
    history = losses(15, nan)
    assert float(history[-1]) == float(history[0])


def test_a_worker_that_is_always_zero_is_not_counted():
    # Of fourteen zeros and one voter, the voter is the majority.
    assert final(losses(14, zero, 0.01)) < 0.01 * losses()[0]


@pytest.mark.parametrize("make", [signax.signum, signax.ssdm])
def test_momentum_recovers_from_a_single_nan_step(make: Callable):
    def nan_once(g, step):
        return jnp.where(step == 50, jnp.nan, g)

    make = functools.partial(make, LEARNING_RATE, axis_name=WORKERS)
    if make.func is signax.ssdm:
        make = functools.partial(make, scale=signax.Scale("linf"))
    history = run(15, nan_once, make)
    assert bool(jnp.isfinite(history).all())
    assert float(history[51]) == float(history[50]), "nobody votes at that step"
    assert final(history) < 0.15 * history[0]
