r"""How often is a sign right? Lower bounds on the success probability of each coordinate.

$$ \rho_i = \operatorname{Prob}(\operatorname{sign} \hat g_i = \operatorname{sign} g_i)
   > \tfrac12 \quad \text{if } g_i \ne 0 \qquad \text{(SPB)} $$

is all that signSGD needs. The three lemmas are sufficient conditions. At g_i = 0 SPB asks for
nothing.
"""

import math

import jax
import jax.numpy as jnp

from signax.theory import _rates


def lemma_1_success_probability(g: jax.typing.ArrayLike, sigma: jax.typing.ArrayLike) -> jax.Array:
    r"""Lemma 1: unimodal and symmetric noise makes the sign right more often than not.

    $$ \rho_i \ge \frac12 + \frac12 \frac{|g_i|}{|g_i| + \sqrt3 \sigma_i} $$

    Assumes that each coordinate of the stochastic gradient has a unimodal law, symmetric about g_i,
    with variance sigma_i^2: normal, Laplace, uniform, but not two-point. A mean of tau draws has
    such a law too, with sigma / sqrt(tau). It follows from Gauss's inequality.

    Args:
      g: The true gradient, any shape.
      sigma: Standard deviation per coordinate, at least 0; broadcasts with g.

    Returns:
      The lower bound, in [1/2, 1], in the common shape. It is 1/2 at g = 0, with or without noise,
      and 1 without noise elsewhere.

    Example:
      >>> print(signax.theory.lemma_1_success_probability(jnp.array([0.0, 1.0, -3.0]), 3**0.5))
      [0.5   0.625 0.75 ]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 1.
    """
    size = jnp.abs(g)
    return 0.5 + 0.5 * _ratio(size, size + math.sqrt(3) * jnp.asarray(sigma), at_zero=0.0)


def lemma_2_success_probability(
    growth: jax.typing.ArrayLike, batch_size: jax.typing.ArrayLike
) -> jax.Array:
    r"""Lemma 2: under strong growth one mini-batch size serves everywhere.

    $$ \sigma_i^2(x) \le c_i g_i^2(x) \quad \Longrightarrow \quad
       \rho_i \ge 1 - \frac{c_i}{\tau} $$

    Assumes an unbiased gradient, averaged over tau independent draws, and g_i != 0. It is
    Chebyshev's inequality.

    Args:
      growth: c_i, at least 0.
      batch_size: tau, at least 1; broadcasts with `growth`.

    Returns:
      The lower bound, at most 1. It is above 1/2 if tau > 2 c_i, says nothing from tau = c_i down
      (where it is zero or negative), and is 1 at c_i = 0.

    Example:
      >>> print(signax.theory.lemma_2_success_probability(2.0, jnp.array([4, 5, 8])))
      [0.5  0.6  0.75]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 2 and (8).
    """
    return 1.0 - jnp.asarray(growth) / jnp.asarray(_rates.real_count(batch_size))


def lemma_2_batch_size(growth: jax.typing.ArrayLike) -> jax.Array:
    r"""Lemma 2: the least mini-batch that makes every sign right more often than not.

    $$ \tau > 2 \max_i c_i $$

    The 2 is Chebyshev's; Cantelli's one-sided inequality would let tau > max_i c_i do.

    Args:
      growth: c_i of sigma_i^2 <= c_i g_i^2, at least 0, any shape.

    Returns:
      The least whole tau > 2 c_i for each coordinate, as a float (infinite growth has no tau); the
      lemma's tau is the largest of them. 1 at c_i = 0.

    Example:
      >>> print(signax.theory.lemma_2_batch_size(jnp.array([0.0, 0.7, 2.0])))
      [1. 2. 5.]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 2.
    """
    return _next_integer(2.0 * jnp.asarray(growth))


def lemma_3_success_probability(
    g: jax.typing.ArrayLike,
    sigma: jax.typing.ArrayLike,
    nu: jax.typing.ArrayLike,
    batch_size: jax.typing.ArrayLike,
) -> jax.Array:
    r"""The bound behind Lemma 3: the better one of Chebyshev and Berry-Esseen.

    $$ \rho_i \ge \max \left\{ 1 - \frac{\sigma_i^2}{\tau g_i^2}, \;\;
       \frac12 \left[ 1 + \operatorname{erf} \frac{|g_i| \sqrt\tau}{\sqrt2 \sigma_i}
       - \frac{\nu_i^3}{\sigma_i^3 \sqrt\tau} \right] \right\} $$

    Assumes an unbiased gradient, averaged over tau independent draws of one law, with any shape.
    The constant of Berry-Esseen is taken as 1/2 (0.4748 is proved, Shevtsova 2011). At every tau of
    `lemma_3_batch_size` the bound is above 1/2: either Chebyshev's is, or the argument of erf is
    below 1, where erf(z) >= 0.84 z, and sqrt(2) / 0.84 < 2.

    Args:
      g: The true gradient.
      sigma: Standard deviation of one draw, at least 0.
      nu: Cube root of the third *absolute* central moment of one draw, (E |g^ - g|^3)^(1/3), in the
        unit of g, at least sigma. Infinity leaves Chebyshev alone.
      batch_size: tau, at least 1. All four broadcast.

    Returns:
      The lower bound, in [0, 1]. At g = 0 it is below 1/2, since SPB asks for nothing there;
      without noise it is 1 elsewhere.

    Example:
      >>> print(signax.theory.lemma_3_success_probability(1.0, 2.0, 2.5, jnp.array([1, 16, 64])))
      [0.     0.75   0.9375]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 3 and its proof.
    """
    sigma, batch_size = jnp.asarray(sigma), jnp.asarray(_rates.real_count(batch_size))
    noise = _ratio(sigma, jnp.abs(g) * jnp.sqrt(batch_size), at_zero=jnp.inf)
    chebyshev = 1.0 - noise**2
    skew = _ratio(nu, sigma, at_zero=jnp.inf) ** 3 / jnp.sqrt(batch_size)
    signal = _ratio(1.0, noise, at_zero=jnp.inf)
    berry_esseen = 0.5 * (1.0 + jax.scipy.special.erf(signal / math.sqrt(2)) - skew)
    return jnp.maximum(0.0, jnp.maximum(chebyshev, berry_esseen))


def lemma_3_batch_size(
    g: jax.typing.ArrayLike, sigma: jax.typing.ArrayLike, nu: jax.typing.ArrayLike
) -> jax.Array:
    r"""Lemma 3: the least mini-batch that makes a sign right more often than not, for any noise.

    $$ \tau > 2 \min \left( \frac{\sigma_i^2}{g_i^2}, \frac{\nu_i^3}{|g_i| \sigma_i^2} \right),
       \qquad \nu_i^3 = E |\hat g_i - g_i|^3 $$

    Assumes an unbiased gradient, averaged over tau independent draws of one law.

    **The paper's "3th central moment" must be read as the absolute one.** With the signed moment
    the lemma is false: a law symmetric about g has third moment 0, so tau = 1 would do, yet g + s
    or g - s with probability 1/2 each, s > |g|, is right exactly half of the time; and a skewed
    two-point law that is right with probability 0.45 passes with tau = 1.

    Args:
      g: The true gradient.
      sigma: Standard deviation of one draw, at least 0.
      nu: Cube root of the third absolute central moment, in the unit of g, at least sigma. Infinity
        (not known) leaves tau > 2 sigma^2 / g^2. All three broadcast.

    Returns:
      The least whole tau for each coordinate, as a float. 1 without noise; infinity at g = 0 with
      noise: no mini-batch helps there and SPB asks for nothing, so leave such coordinates out
      before taking the largest.

    Example:
      >>> g = jnp.array([0.0, 0.01, 1.0, 10.0])
      >>> print(signax.theory.lemma_3_batch_size(g, 1.0, 1.17))
      [ inf 321.   3.   1.]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 3.
    """
    sigma, size = jnp.asarray(sigma), jnp.abs(g)
    chebyshev = _ratio(sigma, size, at_zero=jnp.inf) ** 2
    skew = _ratio(nu, sigma, at_zero=jnp.inf) ** 2 * _ratio(nu, size, at_zero=jnp.inf)
    least = _next_integer(2.0 * jnp.minimum(chebyshev, skew))
    return jnp.where(sigma == 0, jnp.ones_like(least), least)


def stochastic_sign_success_probability(
    g: jax.typing.ArrayLike, scale: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""Definition 3: the stochastic sign satisfies SPB by construction.

    $$ \operatorname{Prob} \left( (\widetilde{\operatorname{sign}}\, g)_i = \operatorname{sign} g_i
       \right) = \frac12 + \frac12 \frac{|g_i|}{R}, \qquad R = \lVert g \rVert $$

    This is right for *this worker's* gradient: it says nothing about the mean of workers whose
    losses differ. The rho-norm of g is then the l2 norm of g.

    Args:
      g: The gradient, [..., d].
      scale: R, at least the largest |g_i|, [...] or a number; None is the l2 norm over d. At any
        magnitude of g.

    Returns:
      The probability, [..., d]; 1/2 at g_i = 0, also where the whole g is zero (there the
      stochastic sign is 0).

    Example:
      >>> print(signax.theory.stochastic_sign_success_probability(jnp.array([3.0, -4.0, 0.0])))
      [0.8 0.9 0.5]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Definition 3.
    """
    size = jnp.abs(g)
    if scale is not None:
        scale = jnp.asarray(scale)
        return 0.5 + 0.5 * _ratio(size, scale[..., None] if scale.ndim else scale, at_zero=0.0)
    # Of 1e-30 and 1e30 the square is 0 and infinite: the largest coordinate is the unit.
    largest = jax.lax.stop_gradient(jnp.max(size, axis=-1, keepdims=True, initial=0.0))
    size = _ratio(size, largest, at_zero=0.0)
    return 0.5 + 0.5 * _ratio(size, jnp.linalg.norm(size, axis=-1, keepdims=True), at_zero=0.0)


def _ratio(numerator, denominator, at_zero: float) -> jax.Array:
    """numerator / denominator; `at_zero` where the denominator is zero, with a gradient of zero."""
    is_zero = jnp.asarray(denominator) == 0
    return jnp.where(is_zero, at_zero, numerator / jnp.where(is_zero, 1, denominator))


def _next_integer(bound: jax.Array) -> jax.Array:
    # From 2^24 on float32 holds no bound + 1, but only integers.
    return jnp.maximum(jnp.floor(bound) + 1.0, jnp.nextafter(bound, jnp.inf))
