r"""Lemma 4: how much noise do bounded variance and SPB allow? A worked example.

Differential entropy h = -E log p, in nats, measures how widely a law spreads. Among all laws with
variance at most sigma^2 the normal one has the most, so bounded variance bounds h. SPB does not: a
stochastic gradient that is uniform on (0, w) with probability rho > 1/2 and uniform on (-v, 0)
otherwise has the right sign with probability rho whatever w, and h grows with log w:

>>> g, rho, w = 1.0, 0.6, 10.0 ** np.arange(1, 5)
>>> print(jnp.round(signax.theory.lemma_4_spb_entropy(g, rho, w), 2))
[ 2.98  5.43  7.74 10.05]

Each of these laws has mean g (v is chosen so) and satisfies SPB with the same rho. With bounded
variance there is a largest entropy, for sigma = 10

>>> print(jnp.round(signax.theory.lemma_4_largest_entropy(10.0), 2))
3.72

The converse fails too: a law of tiny variance about a g tinier still may be wrong most of the time
(two-point laws in `lemma_3_batch_size`). Neither assumption implies the other.
"""

import math

import jax
import jax.numpy as jnp

from signax.theory import _rates


def lemma_4_largest_entropy(
    sigma: jax.typing.ArrayLike, num_coordinates: jax.typing.ArrayLike = 1
) -> jax.Array:
    r"""Lemma 4, first half: bounded variance bounds the differential entropy.

    $$ E \lVert \hat g - g \rVert^2 \le \sigma^2 \quad \Longrightarrow \quad
       h(\hat g) \le \frac{d}{2} \log \frac{2 \pi e \sigma^2}{d} $$

    with equality for independent normal coordinates of variance sigma^2 / d.

    Args:
      sigma: Bound on the standard deviation of the whole vector, at least 0.
      num_coordinates: d, at least 1; broadcasts with sigma.

    Returns:
      The largest entropy, in nats; -inf at sigma = 0.

    Example:
      >>> print(jnp.round(signax.theory.lemma_4_largest_entropy(1.0), 3))
      1.419

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 4.
    """
    d = jnp.asarray(_rates.real_count(num_coordinates))
    return d * (0.5 * jnp.log(2 * math.pi * math.e / d) + jnp.log(sigma))


def lemma_4_spb_entropy(
    g: jax.typing.ArrayLike, rho: jax.typing.ArrayLike, width: jax.typing.ArrayLike
) -> jax.Array:
    r"""Lemma 4, second half: an unbiased law that satisfies SPB, with entropy as large as you like.

    The law is, in the direction of g, uniform on (0, w) with probability rho and uniform on (-v, 0)
    otherwise. Its mean is g with v = (rho w - 2|g|) / (1 - rho), and its entropy

    $$ h = \rho \log \frac{w}{\rho} + (1 - \rho) \log \frac{v}{1 - \rho} \to \infty
       \quad (w \to \infty). $$

    Args:
      g: The true gradient, one coordinate; any shape.
      rho: The probability of the right sign, in (1/2, 1).
      width: w, above 2|g| / rho, in the unit of g. All three broadcast.

    Returns:
      The entropy of a coordinate, in nats (for independent coordinates they add). NaN where no such
      law exists: width too small, or rho outside (0, 1).

    Example:
      >>> width = jnp.array([3.0, 1e6, 1e12])
      >>> print(jnp.round(signax.theory.lemma_4_spb_entropy(1.0, 0.6, width), 2))
      [  nan 14.65 28.47]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Lemma 4.
    """
    rho, width = jnp.asarray(rho), jnp.asarray(width)
    other_width = (rho * width - 2.0 * jnp.abs(g)) / (1.0 - rho)
    is_valid = (rho > 0) & (rho < 1) & (other_width > 0)
    entropy = rho * jnp.log(width / rho) + (1.0 - rho) * jnp.log(other_width / (1.0 - rho))
    return jnp.where(is_valid, entropy, jnp.nan)
