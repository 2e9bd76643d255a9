"""The lemmas on success probabilities, for laws whose probabilities are known exactly."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from signax import theory


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
    assert theory.lemma_2_batch_size(1e8) > 2e8  # where float32 has no 2e8 + 1
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
