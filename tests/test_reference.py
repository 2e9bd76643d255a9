"""The reference itself, against examples worked by hand."""

import numpy as np
import pytest

import reference


def test_the_sign_of_zero_is_zero():
    np.testing.assert_array_equal(reference.sign([-3.0, -0.0, 0.0, 1e-300]), [-1, 0, 0, 1])


def test_sign_sgd_moves_each_coordinate_by_the_learning_rate_or_not_at_all():
    x = reference.sign_sgd_step(np.array([1.0, 1.0, 1.0]), np.array([5.0, 0.0, -1e-9]), 0.25)
    np.testing.assert_array_equal(x, [0.75, 1.0, 1.25])


@pytest.mark.parametrize(("x", "expected"), [(1.0, 0.5), (0.25, -0.25), (0.125, 0.125)])
def test_the_monotone_step_is_taken_only_where_it_lowers_f(x: float, expected: float):
    def f(x):
        return float(np.square(x + 0.125).sum())

    out = reference.monotone_sign_sgd_step(f, np.array([x]), np.array([1.0]), 0.5)
    np.testing.assert_array_equal(out, [expected])


def test_two_against_one_wins_and_a_tie_is_zero():
    rows = np.array([[1.0, -9.0, 2.0, 0.0], [3.0, 1e-9, -2.0, 0.0], [-100.0, -1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(reference.sum_of_signs(rows), [1, -1, 0, 1])
    np.testing.assert_array_equal(reference.majority_vote(rows), [1, -1, 0, 1])
    np.testing.assert_array_equal(
        reference.majority_vote_step(np.zeros(4), rows, 0.5), [-0.5, 0.5, 0.0, -0.5]
    )
    np.testing.assert_array_equal(reference.average_signs(rows), np.array([1, -1, 0, 1]) / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_worker_with_one_bad_value_is_not_counted_anywhere(bad: float):
    rows = np.array([[1.0, 1.0], [1.0, -1.0], [-7.0, bad]])
    np.testing.assert_array_equal(reference.sum_of_signs(rows), [2, 0])
    np.testing.assert_array_equal(reference.average_signs(rows), [1.0, 0.0])


def test_a_step_without_voters_is_zero():
    rows = np.full((3, 2), np.nan)
    np.testing.assert_array_equal(reference.majority_vote(rows), [0, 0])
    np.testing.assert_array_equal(reference.average_signs(rows), [0.0, 0.0])


def test_probabilities_of_a_three_four_five_gradient():
    np.testing.assert_allclose(reference.probability_of_plus([3.0, -4.0, 0.0]), [0.8, 0.1, 0.5])
    np.testing.assert_allclose(reference.probability_of_plus([1.0, -2.0], scale=2.0), [0.75, 0.0])


@pytest.mark.parametrize("unit", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_probabilities_do_not_depend_on_the_unit_of_the_gradient(unit: float):
    g = np.array([3.0, -4.0]) * unit
    np.testing.assert_allclose(reference.probability_of_plus(g), [0.8, 0.1], rtol=1e-14)


def test_the_stochastic_sign_is_unbiased_after_scaling_by_the_norm():
    # Hoeffding over n draws in {-1, +1}, union over 2 coordinates and 2 sides, wrong once in 1e9
    # runs: |mean - g / ||g|||  <=  sqrt(2 log(4e9) / n) = 0.047 at n = 20,000.
    rng, n = np.random.default_rng(0), 20_000
    mean = np.mean([reference.stochastic_sign(rng, [3.0, -4.0]) for _ in range(n)], axis=0)
    assert np.abs(mean - [0.6, -0.8]).max() <= np.sqrt(2 * np.log(4e9) / n)


def test_the_stochastic_sign_of_zero_is_zero_and_certain_signs_are_certain():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(reference.stochastic_sign(rng, np.zeros(3)), [0, 0, 0])
    np.testing.assert_array_equal(reference.stochastic_sign(rng, [2.0, -2.0], scale=2.0), [1, -1])


def test_the_first_momentum_is_the_first_gradient():
    m0 = reference.momentum_from_first_gradient(None, np.array([4.0]), 0.75)
    m1 = reference.momentum_from_first_gradient(m0, np.array([8.0]), 0.75)
    np.testing.assert_array_equal([m0, m1], [[4.0], [5.0]])


def test_signums_first_momentum_is_a_fraction_of_the_first_gradient():
    m0 = reference.momentum_from_zero(None, np.array([4.0]), 0.75)
    m1 = reference.momentum_from_zero(m0, np.array([8.0]), 0.75)
    np.testing.assert_array_equal([m0, m1], [[1.0], [2.75]])


def test_ssdm_divides_the_sum_of_signs_by_the_number_of_voters():
    # R = |m| makes every sign certain: worker 0 says -1, 1 and 2 say +1, 3 abstains.
    rng = np.random.default_rng(0)
    rows = np.array([[-2.0], [2.0], [2.0], [np.nan]])
    x, momenta = reference.ssdm_step(rng, np.zeros(1), [None] * 4, rows, 0.3, 0.9)
    np.testing.assert_allclose(x, [-0.3 / 3])
    assert momenta[3] is None
    np.testing.assert_array_equal(np.concatenate([m for m in momenta if m is not None]), [-2, 2, 2])


def test_ssdm_does_not_count_a_worker_whose_momentum_is_zero():
    rows = np.array([[0.0], [2.0]])
    x, _ = reference.ssdm_step(np.random.default_rng(0), np.zeros(1), [None] * 2, rows, 0.5, 0.9)
    np.testing.assert_array_equal(x, [-0.5])


def test_signum_votes_with_momenta_and_an_abstaining_worker_keeps_its_own():
    x, momenta = reference.signum_step(
        np.zeros(1), [np.array([1.0]), np.array([1.0]), None], np.array([[-1.0], [np.inf], [1.0]]),
        learning_rate=0.5, beta=0.25,
    )  # fmt: skip
    # worker 0: 0.25 - 0.75 = -0.5; worker 1 keeps 1 and is not counted; worker 2: 0.75. A tie.
    np.testing.assert_array_equal(x, [0.0])
    np.testing.assert_array_equal(momenta, [[-0.5], [1.0], [0.75]])
