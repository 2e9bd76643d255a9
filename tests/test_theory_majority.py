"""How often a majority is right, against sums over all ways to vote."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from signax import theory

# Jitted once for all numbers of workers, which are traced.
EXPECTED, EXACT = jax.jit(theory.expected_majority), jax.jit(theory.majority_probabilities)
PROBABILITIES = np.array([0.0, 0.1, 0.25, 0.5, 0.5001, 0.6, 0.75, 0.9, 0.999, 1.0])


def enumerated_votes(num_workers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, tie and wrong at PROBABILITIES, by adding up all 2^M ways in which M workers vote."""
    votes = np.array(list(itertools.product([1, -1], repeat=num_workers)))  # [2^M, M]
    num_right = (votes == 1).sum(axis=1)
    rho = PROBABILITIES[:, None]
    chance = rho**num_right * (1 - rho) ** (num_workers - num_right)  # [rho, 2^M]
    majority = np.sign(votes.sum(axis=1))
    right, tie, wrong = (chance @ (majority == s) for s in (1, 0, -1))
    return right, tie, wrong


@pytest.mark.parametrize("num_workers", range(1, 16))
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-6), (True, 1e-12)])
def test_the_expected_vote_is_the_sum_over_all_ways_to_vote(num_workers, x64, tolerance):
    right, tie, wrong = enumerated_votes(num_workers)
    with jax.enable_x64(x64):
        expected = EXPECTED(PROBABILITIES, num_workers)
        exact = EXACT(PROBABILITIES, num_workers)
    assert expected.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_allclose(expected, right - wrong, rtol=0, atol=tolerance)
    for got, want in zip(exact, (right, tie, wrong), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 15, 16, 101, 1001, 10_001])
def test_the_expected_vote_is_the_regularised_incomplete_beta_function(num_workers):
    half = (num_workers + 1) // 2
    with jax.enable_x64(True):
        rho = jnp.concatenate([jnp.linspace(0, 1, 101), 0.5 + jnp.array([1e-6, 1e-3])])
        want = 2 * special.betainc(half, half, np.asarray(rho)) - 1
        # Each of l terms is rounded once, by half a unit of 2.2e-16, and none is negative.
        tolerance = 1e-15 + half * 2.3e-16
        got = theory.expected_majority(rho, num_workers)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    # The same in float32, whose unit is 1.2e-7.
    rho = rho.astype(np.float32)
    want = 2 * special.betainc(half, half, np.asarray(rho, np.float64)) - 1
    got = theory.expected_majority(rho, num_workers)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-7 + half * 1.2e-7)


@pytest.mark.parametrize("half", range(1, 9))
def test_the_expected_vote_of_2l_workers_is_that_of_2l_minus_1(half):
    odd_right, _, odd_wrong = enumerated_votes(2 * half - 1)
    even_right, _, even_wrong = enumerated_votes(2 * half)
    np.testing.assert_allclose(even_right - even_wrong, odd_right - odd_wrong, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(
        theory.expected_majority(PROBABILITIES, 2 * half),
        theory.expected_majority(PROBABILITIES, 2 * half - 1),
    )


def test_an_odd_number_of_workers_never_ties():
    odd = theory.majority_probabilities(0.6, jnp.array([1, 3, 5, 999]))
    np.testing.assert_array_equal(odd.tie, np.zeros(4))


def test_one_worker_is_the_majority():
    rho = jnp.linspace(0, 1, 11)
    np.testing.assert_array_equal(theory.expected_majority(rho, 1), 2 * rho - 1)
    g = jnp.linspace(-3, 2, 11)
    np.testing.assert_array_equal(theory.rho_m_norm(g, rho, 1), theory.rho_norm(g, rho))


def test_what_is_no_probability_or_no_worker_is_nan():
    bad = jnp.array([-0.1, 1.1, jnp.nan])
    for value in (theory.expected_majority(bad, 3), *theory.majority_probabilities(bad, 2)):
        assert np.isnan(value).all()
    assert np.isnan(theory.expected_majority(0.7, 0))


def test_the_expected_vote_has_its_derivative_at_certainty_too():
    slopes = jax.vmap(jax.grad(theory.expected_majority), (0, None))(jnp.array([0.0, 0.5, 1.0]), 1)
    np.testing.assert_array_equal(slopes, [2.0, 2.0, 2.0])
    with jax.enable_x64(True):
        for num_workers in (2, 41):
            vote = jax.jit(functools.partial(theory.expected_majority, num_workers=num_workers))
            check_grads(vote, (jnp.array([0.2, 0.5, 0.7]),), order=1, rtol=1e-4)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 9, 64, 501])
def test_the_majority_is_exponentially_close_to_the_noise_free_norm(num_workers):
    with jax.enable_x64(True):
        rho = jnp.linspace(0.5, 1.0, 501)
        bound = theory.hoeffding_bound(rho, num_workers)
        vote = theory.expected_majority(rho, num_workers)
        # Both are 1 where the exponential is below the unit of float64.
        assert bool(jnp.all(bound <= vote + 1e-14))
        assert bool(jnp.all(vote <= 1))
