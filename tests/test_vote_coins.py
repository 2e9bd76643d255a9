"""The coins of zeros and ties: fair, and independent of one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from chance import assert_independent, assert_mean
from daily import thorough
from workers import WORKERS

pytestmark = pytest.mark.machine_code

NUM_COINS = 40_000  # so that `chance` allows a mean of 6.5 / 200 = 0.0325


@functools.cache
def mean_with_coins(num_workers: int, axis_name: str = WORKERS):
    """jitted (rows [M, d], step, key) -> (majority, average) of the first replica."""

    def votes(row, step, key):
        out = []
        for link in (signax.majority_vote, signax.average_signs):
            tx = link(axis_name, ties="random", key=key, wire="float32")
            out.append(tx.update(row, tx.init(row)._replace(count=step))[0])
        return tuple(out)

    mapped = jax.vmap(votes, (0, None, None), axis_name=axis_name)
    return jax.jit(lambda *args: jax.tree.map(lambda x: x[0], mapped(*args)))


def tie_coins(step: int = 0, key: int = 0) -> np.ndarray:
    """Two workers disagree about every coordinate: the majority is the tie's coin."""
    rows = jnp.tile(jnp.array([[1.0], [-1.0]]), NUM_COINS)
    return np.asarray(mean_with_coins(2)(rows, jnp.int32(step), key)[0])


def own_coins(worker: int, step: int = 0, key: int = 0) -> np.ndarray:
    """One of three workers says zero (but once), the others +1: the mean shows its coin."""
    rows = jnp.ones((3, NUM_COINS)).at[worker, 1:].set(0.0)
    mean = np.asarray(mean_with_coins(3)(rows, jnp.int32(step), key)[1])
    return np.round(3 * mean - 2)[1:]


def test_coins_are_fair_and_neighbours_independent():
    for coins in (tie_coins(), own_coins(0), own_coins(2)):
        assert_mean(coins, 0.0)
        for lag in (1, 2, 7, 8, 64):
            assert_independent(coins[lag:], coins[:-lag])


def test_coins_differ_by_step_key_and_worker():
    assert_independent(tie_coins(step=0), tie_coins(step=1))
    assert_independent(tie_coins(key=0), tie_coins(key=1))
    assert_independent(own_coins(0, step=0), own_coins(0, step=1))
    assert_independent(own_coins(0, key=0), own_coins(0, key=1))
    assert_independent(own_coins(0), own_coins(1))
    assert_independent(own_coins(1), own_coins(2))
    np.testing.assert_array_equal(tie_coins(step=3), tie_coins(step=3))


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_the_coin_of_a_tie_is_no_workers_own_coin(worker: int):
    assert_independent(tie_coins()[1:], own_coins(worker))


@thorough
def test_votes_over_two_parts_of_a_tree_have_independent_coins():
    rows = jnp.tile(jnp.array([[1.0], [-1.0]]), NUM_COINS)

    def vote(row):
        tx = signax.majority_vote(WORKERS, ties="random", wire="float32")
        parts = ({"a": row}, {"b": row})
        return [jax.tree.leaves(tx.update(p, tx.init(p))[0])[0] for p in parts]

    a, b = jax.vmap(vote, axis_name=WORKERS)(rows)
    assert_independent(a[0], b[0])
