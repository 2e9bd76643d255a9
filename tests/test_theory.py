"""The paper's statements, checked: exactly where a sum or a law allows it, else on trajectories.

Standard deviations below are those of an average over independent runs. Six of them are exceeded
by chance once in 5e8 times; the seeds are fixed.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy import integrate, special, stats

import signax
from signax import theory
from workers import WORKERS

# ---------------------------------------------------------------------------------- the majority

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


# ------------------------------------------------------------------------------------- the lemmas


class Law(NamedTuple):
    """A law of noise with standard deviation 1 and mean 0."""

    nu: float  # cube root of the third absolute moment
    success: Callable[[float, int], float]  # g > 0, tau -> Prob(g + mean of tau draws > 0)


def irwin_hall(x: float, n: int) -> float:
    """Prob(sum of n uniforms on (0, 1) <= x)."""
    terms = [(-1) ** k * math.comb(n, k) * max(x - k, 0.0) ** n for k in range(n + 1)]
    return math.fsum(terms) / math.factorial(n)


def uniform_success(g: float, tau: int) -> float:
    half_width = math.sqrt(3)
    return irwin_hall(min(tau * (1 + g / half_width) / 2, tau), tau)  # symmetric: mean <= g


def laplace_success(g: float, tau: int) -> float:
    """A sum of Laplace draws is the difference of two gamma variables of shape tau."""

    def wrong(y: float) -> float:
        return stats.gamma.pdf(y, tau) * special.gammaincc(tau, y + tau * g * math.sqrt(2))

    return 1 - integrate.quad(wrong, 0, stats.gamma.isf(1e-15, tau), epsabs=1e-10)[0]


def two_point(p: float) -> Law:
    """sqrt(q/p) with probability p, else -sqrt(p/q): skewed unless p = 1/2."""
    q = 1 - p
    up, down = math.sqrt(q / p), math.sqrt(p / q)

    def success(g: float, tau: int) -> float:
        num_up = np.arange(tau + 1)
        is_right = tau * g + num_up * up - (tau - num_up) * down > 1e-9
        return float(stats.binom.pmf(num_up, tau, p)[is_right].sum())

    return Law((p * up**3 + q * down**3) ** (1 / 3), success)


SYMMETRIC = {
    "normal": Law(
        (2 * math.sqrt(2 / math.pi)) ** (1 / 3),
        lambda g, tau: float(stats.norm.cdf(g * math.sqrt(tau))),
    ),
    "laplace": Law((6 / 2**1.5) ** (1 / 3), laplace_success),
    "uniform": Law((3**1.5 / 4) ** (1 / 3), uniform_success),
}
SKEWED = {f"two-point {p}": two_point(p) for p in (0.05, 0.3, 0.45, 0.5, 0.7, 0.95)}
LAWS = {**SYMMETRIC, **SKEWED}
SIGNALS = (0.22, 0.41, 0.93, 1.3, 3.1)  # |g| / sigma
BATCH_SIZES = (1, 2, 5, 12)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_lemma_1_holds_for_unimodal_symmetric_laws(name):
    for g, tau in itertools.product(SIGNALS, BATCH_SIZES):
        bound = float(theory.lemma_1_success_probability(-g, 1 / math.sqrt(tau)))
        assert 0.5 < bound <= SYMMETRIC[name].success(g, tau) + 1e-7  # float32


def test_lemma_1_needs_its_assumption():
    assert SKEWED["two-point 0.3"].success(0.41, 1) == pytest.approx(0.3)
    assert theory.lemma_1_success_probability(0.41, 1.0) > 0.5


@pytest.mark.parametrize("name", LAWS)
def test_lemma_2_holds_for_every_law(name):
    for g in SIGNALS:
        growth = 1 / g**2
        for tau in BATCH_SIZES:
            bound = float(theory.lemma_2_success_probability(growth, tau))
            assert bound <= LAWS[name].success(g, tau) + 1e-7
        least = int(theory.lemma_2_batch_size(growth))
        assert theory.lemma_2_success_probability(growth, least) > 0.5
        assert least == 1 or theory.lemma_2_success_probability(growth, least - 1) <= 0.5
        if name != "uniform" or least < 16:  # the alternating sum of Irwin-Hall cancels beyond
            assert LAWS[name].success(g, least) > 0.5


@pytest.mark.parametrize("name", LAWS)
def test_lemma_3_holds_for_every_law(name):
    law = LAWS[name]
    for g in SIGNALS:
        for tau in BATCH_SIZES:
            bound = float(theory.lemma_3_success_probability(-g, 1.0, law.nu, tau))
            assert bound <= law.success(g, tau) + 1e-7
        least = int(theory.lemma_3_batch_size(-g, 1.0, law.nu))
        assert theory.lemma_3_success_probability(g, 1.0, law.nu, least) > 0.5
        assert law.success(g, least) > 0.5


def test_every_batch_size_of_lemma_3_has_a_bound_above_one_half():
    signal = jnp.logspace(-3, 1, 200)[:, None]
    nu = jnp.logspace(0, 2, 200)[None, :]  # never below sigma = 1
    tau = theory.lemma_3_batch_size(signal, 1.0, nu)
    assert bool(jnp.all(theory.lemma_3_success_probability(signal, 1.0, nu, tau) > 0.5))


def test_lemma_3_is_false_for_the_signed_third_moment():
    # Skewed: right with probability 0.45. In units of its standard deviation:
    p, g = 0.45, 0.88
    law = two_point(p)
    signed = (1 - 2 * p) / math.sqrt(p * (1 - p))
    assert 0 < 2 * min(1 / g**2, signed / g) < 1, "so that a mini-batch of 1 would do"
    assert law.success(g, 1) == pytest.approx(0.45)
    least = int(theory.lemma_3_batch_size(g, 1.0, law.nu))
    assert least == 3
    assert law.success(g, least) > 0.5
    # Symmetric, so that the signed moment is 0: right exactly half of the time.
    assert two_point(0.5).success(g, 1) == pytest.approx(0.5)
    assert theory.lemma_3_batch_size(g, 1.0, two_point(0.5).nu) == 3


def test_without_signal_or_noise_the_lemmas_say_so():
    g, sigma = jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 0.0])
    np.testing.assert_array_equal(theory.lemma_1_success_probability(g, sigma), [0.5, 0.5, 1.0])
    least = theory.lemma_3_batch_size(g, sigma, sigma)
    np.testing.assert_array_equal(least, [1.0, np.inf, 1.0])
    bound = theory.lemma_3_success_probability(g, sigma, sigma, 4)
    assert bound[0] < 0.5
    assert bound[1] < 0.5
    assert bound[2] == 1.0
    np.testing.assert_array_equal(theory.lemma_2_batch_size(jnp.array([0.0, jnp.inf])), [1, np.inf])
    assert theory.lemma_3_batch_size(0.5, 1.0, jnp.inf) == 9  # Chebyshev: more than 2 / 0.25


@pytest.mark.parametrize("unit", [2.0**-60, 2.0**60])
def test_the_lemmas_do_not_depend_on_the_unit_of_the_gradient(unit):
    g, sigma, nu = jnp.array([0.03, 0.5, 2.0]), 1.0, 1.3
    probability = functools.partial(theory.lemma_3_success_probability, batch_size=9)
    for lemma in (theory.lemma_3_batch_size, probability):
        np.testing.assert_array_equal(lemma(unit * g, unit * sigma, unit * nu), lemma(g, sigma, nu))


def entropy_of_blocks(probabilities: Any, widths: Any) -> float:
    """-sum of p log(p / width), for a law that is uniform on each of several intervals."""
    return -sum(p * math.log(p / w) for p, w in zip(probabilities, widths, strict=True))


def test_lemma_4_spb_allows_any_entropy_and_bounded_variance_does_not():
    g, rho = 1.0, 0.6
    entropies = []
    for width in (5.0, 50.0, 500.0, 5000.0):
        other = (rho * width - 2 * g) / (1 - rho)
        mean = rho * width / 2 - (1 - rho) * other / 2
        sigma = math.sqrt(rho * width**2 / 3 + (1 - rho) * other**2 / 3 - mean**2)
        assert mean == pytest.approx(g)
        entropy = entropy_of_blocks([rho, 1 - rho], [width, other])
        assert float(theory.lemma_4_spb_entropy(g, rho, width)) == pytest.approx(entropy, rel=1e-6)
        assert entropy < theory.lemma_4_largest_entropy(sigma)
        entropies.append(entropy)
    # Ten times as wide is log 10 = 2.3 more, without end: beyond what sigma = 10 allows.
    assert np.diff(entropies).min() > 2.3
    assert entropies[1] > theory.lemma_4_largest_entropy(10.0)
    assert np.isnan(theory.lemma_4_spb_entropy(g, rho, 2 * g / rho))  # no room for a wrong sign


def test_lemma_4_is_an_equality_for_the_normal_law():
    normal = stats.norm(scale=3.0).entropy()
    assert float(theory.lemma_4_largest_entropy(3.0)) == pytest.approx(normal, rel=1e-6)
    whole = theory.lemma_4_largest_entropy(3.0 * math.sqrt(5), num_coordinates=5)
    assert float(whole) == pytest.approx(5 * normal, rel=1e-6)


# -------------------------------------------------------------------------------------- the norms


def gradients(unit: float) -> jax.Array:
    """1,000 gradients of 6 coordinates, of sizes within a factor 1,000 around `unit`."""
    size, direction = jax.random.split(jax.random.key(7))
    sizes = 10 ** jax.random.uniform(size, (1000, 6), minval=-1.5, maxval=1.5)
    return unit * sizes * jax.random.rademacher(direction, (1000, 6), jnp.float32)


# Six sums of positive terms, each rounded a few times: a few units of 1.2e-7.
ROUNDING = 1 + 2e-6


def test_the_l12_norm_is_the_rho_norm_of_lemma_1():
    g = gradients(1.0)
    rho = theory.lemma_1_success_probability(g, 0.7)
    np.testing.assert_allclose(theory.l12_norm(g, 0.7), theory.rho_norm(g, rho), rtol=1e-5)


def test_the_l12_norm_is_below_the_rho_norm_of_normal_noise():
    g = gradients(1.0)
    rho = jax.scipy.stats.norm.cdf(jnp.abs(g) / 0.7)
    assert bool(jnp.all(theory.l12_norm(g, 0.7) <= theory.rho_norm(g, rho) * ROUNDING))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("bounds", [theory.l12_bounds_near, theory.l12_bounds_far])
def test_the_equivalences_hold_for_noise_that_is_affine_in_the_gradient(bounds, unit):
    g = gradients(unit)
    for c, c_tilde in itertools.product([0.0, 0.5, 3.0], [0.1, 2.0]):
        norm = theory.l12_norm(g, c * jnp.abs(g) + c_tilde)
        lower, upper = bounds(g, c, c_tilde)
        assert bool(jnp.all(lower <= norm * ROUNDING))
        assert bool(jnp.all(norm <= upper * ROUNDING))


def test_the_lower_equivalences_hold_for_less_noise_too():
    g = gradients(1.0)
    for share in (0.0, 0.3):
        norm = theory.l12_norm(g, share * (0.5 * jnp.abs(g) + 2.0))
        assert bool(jnp.all(theory.l12_bounds_near(g, 0.5, 2.0).lower <= norm * ROUNDING))
        assert bool(jnp.all(theory.l12_bounds_far(g, 0.5, 2.0).lower <= norm * ROUNDING))


def test_the_upper_equivalences_are_false_for_less_noise():
    g = jnp.array([0.1])
    norm = theory.l12_norm(g, 0.0)  # sigma = 0 <= c |g| + c_tilde, all that the paper assumes
    assert norm > 10 * theory.l12_bounds_near(g, 0.0, 1.0).upper
    assert norm > 1.5 * theory.l12_bounds_far(g, 0.5, 0.0).upper


def test_the_equivalences_meet_far_away_and_near():
    lower, upper = theory.l12_bounds_far(jnp.full(3, 1e6), 0.5, 1.0)
    assert float(lower / upper) == pytest.approx(1, abs=1e-5)
    lower, upper = theory.l12_bounds_near(jnp.full(3, 1e-6), 0.5, 1.0)
    assert float(lower / upper) == pytest.approx(1, abs=1e-5)


def test_a_zero_gradient_has_norm_zero_and_slope_zero():
    zero = jnp.zeros(3)
    assert theory.l12_norm(zero, 0.0) == 0
    np.testing.assert_array_equal(jax.grad(theory.l12_norm)(zero, jnp.zeros(3)), zero)
    assert theory.l12_bounds_near(zero, 1.0, 0.0) == (0, 0)
    assert theory.l12_bounds_far(zero, 1.0, 0.0) == (0, 0)
    assert theory.rho_m_norm(zero, 0.7, 3) == 0


def test_8_is_the_rho_norm_of_lemma_2():
    g, growth, tau = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]), 4
    rho = theory.lemma_2_success_probability(growth, tau)
    want = jnp.sum((1 - 2 * growth / tau) * jnp.abs(g))
    assert float(theory.rho_norm(g, rho)) == pytest.approx(float(want))


def test_the_rho_norm_of_the_stochastic_sign_is_the_l2_norm():
    g = gradients(1.0)
    rho = theory.stochastic_sign_success_probability(g)
    np.testing.assert_allclose(theory.rho_norm(g, rho), jnp.linalg.norm(g, axis=-1), rtol=3e-6)
    largest = jnp.max(jnp.abs(g), axis=-1)
    assert float(theory.stochastic_sign_success_probability(g, largest).max()) == 1
    zero = theory.stochastic_sign_success_probability(jnp.zeros(2))
    np.testing.assert_array_equal(zero, [0.5, 0.5])


# ---------------------------------------------------------------------- functions of arrays, in JAX

FUNCTIONS = {
    "expected_majority": (lambda rho: theory.expected_majority(rho, 5), [0.3, 0.8]),
    "hoeffding_bound": (lambda rho: theory.hoeffding_bound(rho, 5), [0.6, 0.8]),
    "majority": (lambda rho: jnp.stack(theory.majority_probabilities(rho, 4)), [0.3, 0.8]),
    "lemma_1": (theory.lemma_1_success_probability, [0.5, -2.0], [1.0, 0.3]),
    "lemma_2": (theory.lemma_2_success_probability, [0.5, 2.0], [8.0, 9.0]),
    "lemma_3": (
        theory.lemma_3_success_probability,
        [0.5, -2.0],
        [1.0, 0.9],
        [1.3, 1.2],
        [8.0, 1.0],
    ),
    "lemma_4_bound": (theory.lemma_4_largest_entropy, [0.5, 2.0]),
    "lemma_4_spb": (theory.lemma_4_spb_entropy, [0.5, 2.0], [0.6, 0.7], [10.0, 20.0]),
    "l12_norm": (lambda g, s: theory.l12_norm(g[None], s[None]), [0.5, -2.0], [1.0, 0.3]),
    "rho_m_norm": (lambda g, r: theory.rho_m_norm(g[None], r[None], 6), [0.5, -2.0], [0.9, 0.7]),
    "theorem_1": (theory.theorem_1_bound, [1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    "theorem_3": (
        theory.theorem_3_decreasing_bound,
        *([1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    ),
    "theorem_2": (
        theory.theorem_2_decreasing_bound,
        *([1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    ),
    "theorem_4": (
        theory.theorem_4_bound,
        [1.0, 2.0],
        [3.0, 4.0],
        [0.1, 0.2],
        [4.0, 9.0],
        [9.0, 8.0],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_differentiable_and_runs_under_jit_and_vmap(name):
    fn, *rows = FUNCTIONS[name]
    jitted = jax.jit(fn)
    with jax.enable_x64(True):
        args = tuple(jnp.array(row) for row in rows)
        one_by_one = jnp.stack([jitted(*(a[i] for a in args)) for i in range(2)])
        assert one_by_one.dtype == np.float64
        np.testing.assert_allclose(jax.jit(jax.vmap(fn))(*args), one_by_one, rtol=1e-14)
        check_grads(jitted, tuple(a[0] for a in args), order=1, rtol=1e-4)
    alone = fn(*(jnp.float32(row[0]) for row in rows))
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, one_by_one[0], rtol=1e-5)


def test_the_number_of_workers_may_be_an_array_and_traced():
    m = jnp.arange(1, 9)
    want = theory.expected_majority(0.7, m)
    alone = theory.expected_majority(0.7, 8)
    np.testing.assert_allclose(alone, want[7], rtol=1e-6)
    in_turn = jax.jit(jax.vmap(theory.expected_majority, (None, 0)))(0.7, m)
    np.testing.assert_allclose(in_turn, want, rtol=1e-6)
    assert theory.rho_m_norm(jnp.ones((1, 5, 3)), 0.7, m[:, None, None]).shape == (8, 5)


# ------------------------------------------------------------------------------------ trajectories


class Problem(NamedTuple):
    """f = sum of L_i x_i^2 / (2 (1 + w x_i^2)), f* = 0, noise normal so that rho is known.

    w = 0 is a quadratic. w = 1 is not convex: the second derivatives lie in [-L_i / 4, L_i].
    """

    w: float
    sigma: float  # standard deviation of one coordinate of a stochastic gradient

    def loss(self, x: jax.Array) -> jax.Array:
        return jnp.sum(SMOOTHNESS * x**2 / (1 + self.w * x**2)) / 2


SMOOTHNESS = jnp.linspace(0.5, 2.0, 8)  # L_i
X0 = jnp.linspace(0.4, 1.1, 8)
PROBLEMS = {"quadratic": Problem(w=0.0, sigma=1.0), "well": Problem(w=1.0, sigma=0.5)}
NUM_STEPS, NUM_RUNS = 1000, 64
STEPS = jnp.arange(1, NUM_STEPS + 1)  # K
CONSTANT, INITIAL = 0.02, 0.1  # gamma, gamma_0


class Course(NamedTuple):
    """What was measured on the way, at x_0, ..., x_{K-1}: [runs, K]."""

    norm: jax.Array  # ||grad f||_rho_M
    squared: jax.Array  # ||grad f||_2^2
    loss: jax.Array  # f
    ties: jax.Array  # sum of L_i Prob(tie in coordinate i)


@functools.cache
def run(name: str, num_workers: int, is_decreasing: bool, is_monotone: bool = False) -> Course:
    """signSGD with majority vote, or Option 2 if `is_monotone`."""
    steps = jnp.arange(NUM_STEPS)
    decreasing = jnp.asarray(theory.inverse_sqrt_schedule(INITIAL)(steps))
    gammas = decreasing if is_decreasing else jnp.full_like(decreasing, CONSTANT)
    return runner(num_workers)(PROBLEMS[name], gammas, is_monotone)


@functools.cache
def runner(num_workers: int) -> Callable[[Problem, jax.Array, bool], Course]:
    """Compiled once for each number of workers: problem and steps are traced."""

    def trajectory(key, problem, gammas, is_monotone):
        tx = signax.sign_sgd(lambda count: gammas[count], axis_name=WORKERS, wire="float32")

        def vote(x, state, noise):
            return tx.update(jax.grad(problem.loss)(x) + problem.sigma * noise, state, x)

        votes = jax.vmap(vote, (None, None, 0), out_axes=None, axis_name=WORKERS)

        def step(carry, noise):
            x, state = carry
            updates, state = votes(x, state, noise)
            refused = is_monotone & (problem.loss(x + updates) >= problem.loss(x))
            return (jnp.where(refused, x, x + updates), state), x

        noise = jax.random.normal(key, (NUM_STEPS, num_workers, X0.size))
        xs = jax.lax.scan(step, (X0, tx.init(X0)), noise)[1]
        return jax.vmap(functools.partial(measure, problem, num_workers))(xs)

    keys = jax.random.split(jax.random.key(3), NUM_RUNS)
    return jax.jit(lambda *args: jax.vmap(trajectory, (0, None, None, None))(keys, *args))


def measure(problem: Problem, num_workers: int, x: jax.Array) -> Course:
    g = jax.grad(problem.loss)(x)
    rho = jax.scipy.stats.norm.cdf(jnp.abs(g) / problem.sigma)
    tie = theory.majority_probabilities(rho, num_workers).tie
    norm = theory.rho_m_norm(g, rho, num_workers)
    return Course(norm, jnp.sum(g**2), problem.loss(x), jnp.sum(SMOOTHNESS * tie))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_theorems_1_and_3_hold_with_a_constant_step_and_are_tight_on_a_quadratic(num_workers):
    course = run("quadratic", num_workers, is_decreasing=False)
    left = float(course.norm.mean())
    right = float(theory.theorem_3_bound(course.loss[0, 0], SMOOTHNESS, CONSTANT, NUM_STEPS))
    assert left <= 1.02 * right
    # Without ties the bound lacks only f at the end, 1 %, and the deviation below, 6 %.
    assert num_workers % 2 == 0 or left > 0.93 * right
    # The proof is an equality here, once what is left of f at the end, and ties, are counted.
    gap = (course.loss[:, 0] - course.loss[:, -1]).mean() / (CONSTANT * (NUM_STEPS - 1))
    noise = CONSTANT / 2 * (jnp.sum(SMOOTHNESS) - course.ties[:, :-1].mean())
    exact = float(gap + noise)
    # The left side minus the exact one is the mean of a martingale's steps over runs and steps. The
    # signs of the coordinates are independent and of variance at most 1, so a step has variance at
    # most ||grad f||_2^2; what ties add is below a tenth of that deviation (gamma L_i against g_i).
    deviation = math.sqrt(course.squared.mean() / (NUM_RUNS * NUM_STEPS))
    left = float(course.norm[:, :-1].mean())
    assert left == pytest.approx(exact, abs=6 * 1.1 * deviation)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_theorems_1_and_3_hold_with_a_constant_step_on_a_loss_that_is_not_convex(num_workers):
    course = run("well", num_workers, is_decreasing=False)
    bound = theory.theorem_1_bound(course.loss[0, 0], SMOOTHNESS, CONSTANT, STEPS)
    assert bool(jnp.all(averages(course) <= bound))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_theorems_1_and_3_hold_with_a_decreasing_step_from_two_steps_on(name, num_workers):
    course = run(name, num_workers, is_decreasing=True)
    least = jax.lax.cummin(course.norm.mean(axis=0))  # at K = 1, 2, ...
    args = (course.loss[0, 0], SMOOTHNESS, INITIAL, STEPS)
    printed = theory.theorem_3_decreasing_bound(*args)
    repaired = theory.theorem_1_decreasing_bound(*args, as_printed=False)
    assert bool(jnp.all(least <= repaired))
    assert bool(jnp.all(least[1:] <= printed[1:]))
    assert bool(jnp.all(repaired[1:] <= printed[1:]))


def test_9_and_11_are_false_as_printed_at_one_step():
    # f = x^2 / 2 without noise: rho = 1 and the norm is |x|. A long first step.
    x0, gamma = 1.0, 1.0
    left = theory.rho_m_norm(jnp.array([x0]), 1.0, 3)
    args = (x0**2 / 2, jnp.ones(1), gamma, 1)
    for bound in (theory.theorem_1_decreasing_bound, theory.theorem_3_decreasing_bound):
        assert left > bound(*args)
        assert left <= bound(*args, as_printed=False)
    # The harmonic sum that log K stands for.
    harmonic, log = np.cumsum(1 / np.arange(1, 10_001)), np.log(np.arange(1, 10_001))
    assert (harmonic <= 1 + log).all()
    assert (harmonic[1:] <= 3 * log[1:]).all()
    assert harmonic[0] > 3 * log[0]


def averages(course: Course) -> jax.Array:
    """Of E ||grad f|| over the first K steps, for K = 1, 2, ..."""
    return jnp.cumsum(course.norm.mean(axis=0)) / STEPS


@pytest.mark.parametrize("name", PROBLEMS)
def test_theorem_2_holds_with_both_step_sizes(name):
    for is_decreasing in (True, False):
        course = run(name, 1, is_decreasing, is_monotone=True)
        assert bool(jnp.all(jnp.diff(course.loss) <= 0))
        bound = theory.theorem_2_decreasing_bound if is_decreasing else theory.theorem_2_bound
        gamma = INITIAL if is_decreasing else CONSTANT
        bounds = bound(course.loss[0, 0], SMOOTHNESS, gamma, STEPS)
        assert bool(jnp.all(averages(course) <= bounds))


def test_with_a_constant_step_2l_workers_end_lower_than_2l_minus_1():
    courses = {m: run("quadratic", m, is_decreasing=False) for m in (1, 2, 3, 4)}
    plateau = {m: float(course.loss[:, NUM_STEPS // 2 :].mean()) for m, course in courses.items()}
    # Near the minimum rho is near 1/2, where two workers tie half of the time and four 3/8 of it.
    assert plateau[2] < 0.6 * plateau[1]
    assert plateau[4] < 0.75 * plateau[3]


# --------------------------------------------------------------------------------------- theorem 4


def test_the_step_sizes_are_the_papers():
    schedule = theory.inverse_sqrt_schedule(0.02)
    counts = jnp.arange(5)
    np.testing.assert_allclose(schedule(counts), 0.02 / np.sqrt(np.arange(5) + 1), rtol=1e-6)
    assert jnp.asarray(schedule(0)).dtype == np.float32
    assert theory.theorem_4_hyperparameters(1) == (1.0, 0.0)
    assert theory.theorem_4_hyperparameters(256) == (1 / 64, 1 - 1 / 16)
    traced = jax.jit(theory.theorem_4_hyperparameters)(256)
    np.testing.assert_allclose(traced, (1 / 64, 1 - 1 / 16), rtol=1e-6)
    for bad in (0, -3):
        with pytest.raises(ValueError, match="num_steps"):
            theory.theorem_4_hyperparameters(bad)


def mean_gradient_norm(num_steps, key, num_workers, dim, sigma):
    """The left side of Theorem 4 for f = ||x||^2 / 2 on each worker, one run; K may be traced."""
    learning_rate, beta = theory.theorem_4_hyperparameters(num_steps)
    tx = signax.ssdm(
        learning_rate,
        beta,
        key=key,
        axis_name=WORKERS,
        wire="float32",
    )

    def worker(x, state, key) -> Any:
        noise = sigma / math.sqrt(dim) * jax.random.normal(key, x.shape)
        return tx.update(x + noise, state, x)

    workers = jax.vmap(worker, (None, 0, 0), axis_name=WORKERS)

    def step(k, carry):
        x, state, total = carry
        keys = jax.random.split(jax.random.fold_in(key, k), num_workers)
        updates, state = workers(x, state, keys)
        return x + updates[0], state, total + jnp.linalg.norm(x)

    x = jnp.ones(dim)
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_workers), tx.init(x))
    return jax.lax.fori_loop(0, num_steps, step, (x, rows, 0.0))[2] / num_steps


def test_theorem_4_holds_for_homogeneous_workers_with_the_slope_of_its_rate():
    dim, sigma = 4, 1.0
    steps = 4 ** jnp.arange(3, 7)  # 64, ..., 4096
    run = functools.partial(mean_gradient_norm, num_workers=3, dim=dim, sigma=sigma)
    keys = jax.random.split(jax.random.key(5), 8)
    left = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(steps, keys).mean(axis=1)
    bound = theory.theorem_4_bound(dim / 2, sigma, 1.0, dim, steps)
    assert bool(jnp.all(left <= bound))
    # Each part goes as K^(-1/4): the way to the minimum (K^(-3/4) per step, 1/K of it in the mean),
    # the momentum's noise (a mean over sqrt(K) steps), the distance that x moves meanwhile. Only
    # the noise of the signs decays faster, as gamma d / 2 = 2 K^(-3/4): at K = 64 a tenth of the
    # sum, by which it can turn a line from log 64 to log 4096.
    slope = np.polyfit(np.log(steps), np.log(left), 1)[0]
    assert slope == pytest.approx(-0.25, abs=math.log(1.1) / math.log(64))


def test_theorem_4_is_false_for_heterogeneous_workers():
    """f_1 = (x-2)^2/4 and f_2 = 3(x+2)^2/4, so f is (x+1)^2/2 plus a constant."""
    num_steps, x0 = 264_000, math.sqrt(2) - 1
    hyperparameters = theory.theorem_4_hyperparameters(num_steps)
    tx = signax.ssdm(*hyperparameters, axis_name=WORKERS, wire="float32")

    def worker(index, x, state):
        gradient = jnp.where(index == 0, (x - 2) / 2, 3 * (x + 2) / 2)
        updates, state = tx.update(gradient, state, x)
        return optax.apply_updates(x, updates), state

    step = jax.jit(jax.vmap(worker, axis_name=WORKERS))
    start = jnp.full(2, x0)
    x, state = step(jnp.arange(2), start, jax.vmap(tx.init)(start))
    momentum = state[0].momentum
    # In one dimension the stochastic sign is the sign. The two cancel, so nothing has moved and the
    # momenta are the gradients: each further step is this one again, all 264,000 of them.
    for _ in range(20):
        np.testing.assert_array_equal(x, start)
        np.testing.assert_allclose(state[0].momentum, momentum, rtol=1e-6)
        x, state = step(jnp.arange(2), x, state)
    left = abs(x0 + 1)  # |f'| = 1.414 at each step, so on average too
    smoothness = jnp.array([0.5, 1.5])
    bound = theory.theorem_4_bound((x0 + 1) ** 2 / 2, 0.0, smoothness, 1, num_steps)
    assert left > bound


# ------------------------------------------------------------------------------------ the face


@pytest.mark.parametrize("name", theory.__all__)
def test_every_public_function_has_its_statement_an_example_and_its_place_in_the_paper(name):
    assert list(theory.__all__) == sorted(theory.__all__)
    value = getattr(theory, name)
    doc = inspect.getdoc(value) or ""
    if inspect.isroutine(value):
        assert ">>> " in doc
        assert "arXiv:1905.12938" in doc
        assert f"`{name}`" in (theory.__doc__ or ""), "missing in the table of the paper's numbers"
