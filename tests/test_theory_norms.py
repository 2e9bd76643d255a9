"""The norms of section 3.4 and the relations between them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signax import theory


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


@pytest.mark.parametrize("unit", [1e-25, 1e-3, 1.0, 1e3, 1e25])
@pytest.mark.parametrize("bounds", [theory.l12_bounds_near, theory.l12_bounds_far])
def test_the_equivalences_hold_for_noise_that_is_affine_in_the_gradient(bounds, unit):
    g = gradients(unit)
    for c, share in itertools.product([0.0, 0.5, 3.0], [0.1, 2.0]):
        c_tilde = share * unit
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
    for unit in (2.0**-100, 2.0**100):  # whose squares are no float32
        np.testing.assert_array_equal(theory.stochastic_sign_success_probability(unit * g), rho)
    zero = theory.stochastic_sign_success_probability(jnp.zeros(2))
    np.testing.assert_array_equal(zero, [0.5, 0.5])
