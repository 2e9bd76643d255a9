r"""The norms in which sign methods see a gradient: l1, weighted by how often each sign is right."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from signax.theory import _majority


class Bounds(NamedTuple):
    """A value lies between these two."""

    lower: jax.Array
    upper: jax.Array


def rho_norm(g: jax.typing.ArrayLike, rho: jax.typing.ArrayLike) -> jax.Array:
    r"""Definition 1: the rho-norm, by which one worker's progress per step is measured.

    $$ \lVert g \rVert_\rho = \sum_{i=1}^{d} (2 \rho_i - 1) |g_i| $$

    It is a norm only in special cases, and negative where signs are wrong more often than right.
    With the lower bound of Lemma 2 for rho it is (8), with that of Lemma 1 the l_{1,2} norm (7),
    without noise the l1 norm.

    Args:
      g: The true gradient, [..., d].
      rho: Success probabilities, [..., d] or a number.

    Returns:
      The sum over the last axis, [...]; 0 for d = 0.

    Example:
      >>> print(signax.theory.rho_norm(jnp.array([3.0, -4.0]), jnp.array([1.0, 0.75])))
      5.0

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Definition 1.
    """
    return jnp.sum((2.0 * jnp.asarray(rho) - 1.0) * jnp.abs(g), axis=-1)


def rho_m_norm(
    g: jax.typing.ArrayLike, rho: jax.typing.ArrayLike, num_workers: jax.typing.ArrayLike
) -> jax.Array:
    r"""Definition 2: the rho_M-norm, the rho-norm of a majority of M workers.

    $$ \lVert g \rVert_{\rho_M} = \sum_{i=1}^{d} \big( 2 I(\rho_i; l, l) - 1 \big) |g_i|,
       \qquad l = \left\lfloor \tfrac{M+1}{2} \right\rfloor $$

    Assumptions are those of `expected_majority`. It is the rho-norm at M = 1, grows with M towards
    the l1 norm where rho > 1/2, and is the same for 2l - 1 and 2l workers.

    Args:
      g: The true gradient, [..., d].
      rho: Success probabilities of one worker, [..., d] or a number.
      num_workers: M, at least 1; a number, or an array that broadcasts with rho.

    Returns:
      The sum over the last axis, [...]. NaN for rho outside [0, 1] or M < 1.

    Example:
      >>> norm = lambda m: signax.theory.rho_m_norm(jnp.array([3.0, -4.0]), 0.75, m)
      >>> print(norm(1), norm(2), norm(3))
      3.5 3.5 4.8125

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Definition 2.
    """
    return jnp.sum(_majority.expected_majority(rho, num_workers) * jnp.abs(g), axis=-1)


def l12_norm(g: jax.typing.ArrayLike, sigma: jax.typing.ArrayLike) -> jax.Array:
    r"""The mixed norm (7): l1 where the gradient is above the noise, squared l2 below.

    $$ \lVert g \rVert_{l_{1,2}} = \sum_{i=1}^{d} \frac{g_i^2}{|g_i| + \sqrt3 \sigma_i}
       \le \lVert g \rVert_\rho $$

    The inequality needs Lemma 1's assumption, unimodal and symmetric noise.

    Args:
      g: The true gradient, [..., d].
      sigma: Standard deviation per coordinate, at least 0, [..., d] or a number.

    Returns:
      The sum over the last axis, [...]; the l1 norm without noise. A zero coordinate adds 0, and
      has derivative 0.

    Example:
      >>> print(signax.theory.l12_norm(jnp.array([3.0, -1.0, 0.0]), 3**-0.5))
      2.75

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, (7) and Figure 1.
    """
    size = jnp.abs(g)
    total = size + math.sqrt(3) * jnp.asarray(sigma)
    # size * (size / total) keeps gradients of 1e-30, whose squares are zero.
    return jnp.sum(size * _divide(size, total), axis=-1)


def l12_bounds_near(
    g: jax.typing.ArrayLike, c: jax.typing.ArrayLike, c_tilde: jax.typing.ArrayLike
) -> Bounds:
    r"""Near a minimizer the l_{1,2} norm is a scaled squared l2 norm.

    $$ \frac{\lVert g \rVert_2^2}{(1 + \sqrt3 c) \epsilon + \sqrt3 \tilde c}
       \le \lVert g \rVert_{l_{1,2}} \le \frac{\lVert g \rVert_2^2}{\sqrt3 \tilde c},
       \qquad \epsilon = \max_i |g_i| $$

    The lower bound assumes sigma_i <= c |g_i| + c_tilde, as the paper does. **The upper bound needs
    more than the paper says:** noise of at least c_tilde, which sigma_i = c |g_i| + c_tilde gives.
    Without noise the paper's assumption holds and the norm is l1: at g = 0.1, c = 0, c_tilde = 1 it
    is 0.1, and the paper's upper bound 0.0058.

    Args:
      g: The true gradient, [..., d].
      c: Noise per size of the gradient, at least 0, a number or [...].
      c_tilde: Noise at a zero gradient, at least 0, a number or [...], in the unit of g.

    Returns:
      `Bounds(lower, upper)`, each [...]. Both are 0 at g = 0; `upper` is infinite at c_tilde = 0
      elsewhere.

    Example:
      >>> g = jnp.array([0.1, -0.2])
      >>> lower, upper = signax.theory.l12_bounds_near(g, 0.0, 1.0)
      >>> print(lower <= signax.theory.l12_norm(g, 1.0) <= upper)
      True

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, section 3.4.
    """
    c, c_tilde = jnp.asarray(c), jnp.asarray(c_tilde)
    largest = jnp.max(jnp.abs(g), axis=-1, initial=0.0)
    # Of 1e-30 and 1e30 the square is 0 and infinite: the largest coordinate is the unit.
    shares = _divide(jnp.abs(g), largest[..., None])
    total = largest * jnp.sum(shares**2, axis=-1)
    noise = math.sqrt(3) * c_tilde
    lower = total * _divide(largest, (1.0 + math.sqrt(3) * c) * largest + noise)
    at_zero = jnp.where(largest == 0, 0.0, jnp.inf)
    upper = jnp.where(c_tilde == 0, at_zero, total * _divide(largest, noise))
    return Bounds(lower, upper)


def l12_bounds_far(
    g: jax.typing.ArrayLike, c: jax.typing.ArrayLike, c_tilde: jax.typing.ArrayLike
) -> Bounds:
    r"""Away from a minimizer the l_{1,2} norm is a scaled l1 norm.

    $$ \frac{\lVert g \rVert_1}{1 + \sqrt3 (c + \tilde c / L)}
       \le \lVert g \rVert_{l_{1,2}} \le \frac{\lVert g \rVert_1}{1 + \sqrt3 c},
       \qquad L = \min_i |g_i| $$

    The lower bound assumes sigma_i <= c |g_i| + c_tilde, as the paper does. **The upper bound needs
    more than the paper says:** noise of at least c |g_i|, which sigma_i = c |g_i| + c_tilde gives.
    Without noise the norm is l1 itself.

    Args:
      g: The true gradient, [..., d], d >= 1.
      c: Noise per size of the gradient, at least 0, a number or [...].
      c_tilde: Noise at a zero gradient, at least 0, a number or [...], in the unit of g.

    Returns:
      `Bounds(lower, upper)`, each [...]. `lower` is 0 where a coordinate is zero and c_tilde > 0.

    Example:
      >>> g = jnp.array([10.0, -20.0])
      >>> lower, upper = signax.theory.l12_bounds_far(g, 0.0, 1.0)
      >>> print(lower <= signax.theory.l12_norm(g, 1.0) <= upper)
      True

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, section 3.4.
    """
    c, c_tilde = jnp.asarray(c), jnp.asarray(c_tilde)
    total = jnp.sum(jnp.abs(g), axis=-1)
    least = jnp.min(jnp.abs(g), axis=-1)
    # 1 / (1 + sqrt(3)(c + c_tilde / L)), written without the division by L.
    lower = total * _divide(least, (1.0 + math.sqrt(3) * c) * least + math.sqrt(3) * c_tilde)
    upper = total / (1.0 + math.sqrt(3) * c)
    return Bounds(jnp.where(c_tilde == 0, upper, lower), upper)


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """0 where the denominator is 0, and then with a gradient of 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))
