r"""What a majority is worth: M independent votes, each right with probability rho.

With l = floor((M+1)/2) and I the regularised incomplete beta function,

$$ E[\text{majority}] = 2 I(\rho; l, l) - 1
   = \delta \sum_{j=0}^{l-1} \binom{2j}{j} \left( \frac{1 - \delta^2}{4} \right)^j,
   \qquad \delta = 2 \rho - 1. $$

The sum is what is computed here, by Horner's rule: its terms are positive, so it loses nothing near
rho = 1/2 either. In float32 `jax.scipy.special.betainc` misses 2I - 1 by 1e-6 at M = 1 and by 8e-3
at M = 10,001 (JAX 0.10.2 on a CPU); in float64 the two agree.

Source: Safaryan and Richtarik, 2021, arXiv:1905.12938, Definition 2 and section 4.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class MajorityProbabilities(NamedTuple):
    """What the vote of M workers says about one coordinate; the three sum to 1."""

    right: jax.Array  # more than M/2 workers are right
    tie: jax.Array  # exactly M/2: the vote is 0; never for odd M
    wrong: jax.Array  # more than M/2 workers are wrong


def expected_majority(rho: jax.typing.ArrayLike, num_workers: jax.typing.ArrayLike) -> jax.Array:
    r"""The expected vote of M workers, in the direction of the true sign.

    $$ E \left[ \operatorname{sign}(g_i) \operatorname{sign} \sum_{n=1}^{M} s_n \right]
       = \operatorname{Prob}(\text{right}) - \operatorname{Prob}(\text{wrong})
       = 2 I(\rho; l, l) - 1, \qquad l = \left\lfloor \tfrac{M+1}{2} \right\rfloor $$

    Assumes that the workers' signs are independent, never zero, and right with the same probability
    rho: shared data, one law.

    **M = 2l - 1 and M = 2l give the same expected vote, but not the same trajectory.** Ties are
    steps of zero: with 2l workers E sign^2 is 1 - Prob(tie), so the gamma d L / 2 of (12) shrinks
    by that factor, and a constant step ends on a lower plateau than with 2l - 1 workers (with M = 2
    and rho near 1/2 about half as high). The paper's "no difference between 2l - 1 and 2l nodes" is
    true of the expected sign, and so of the bound.

    Args:
      rho: Probability that one worker is right, in [0, 1], any shape.
      num_workers: M, at least 1; a number or an array that broadcasts with rho, traced or not. The
        cost grows with the largest M.

    Returns:
      A value in [-1, 1]: -1, 0, 1 at rho = 0, 1/2, 1, and 2 rho - 1 at M = 1. NaN for rho outside
      [0, 1] or M < 1. Differentiable in rho, at 0 and 1 too.

    Example:
      >>> print(signax.theory.expected_majority(0.75, jnp.array([1, 2, 3, 4])))
      [0.5    0.5    0.6875 0.6875]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Definition 2 and "Number of Nodes".
    """
    num_workers = jnp.asarray(num_workers)
    delta = 2.0 * jnp.asarray(rho) - 1.0
    is_valid = (jnp.abs(delta) <= 1) & (num_workers >= 1)
    half = _half(num_workers).astype(delta.dtype)
    return jnp.where(is_valid, _signed_beta(delta, half), jnp.nan)


def majority_probabilities(
    rho: jax.typing.ArrayLike, num_workers: jax.typing.ArrayLike
) -> MajorityProbabilities:
    r"""The exact law of the vote of M workers: right, tied or wrong.

    The number of workers who are right is binomial; it ties, at even M only, with probability

    $$ \operatorname{Prob}(\text{tie}) = \binom{M}{M/2} \big( \rho (1 - \rho) \big)^{M/2}. $$

    Assumptions are those of `expected_majority`, which is right - wrong.

    Args:
      rho: Probability that one worker is right, in [0, 1], any shape.
      num_workers: M, at least 1; broadcasts with rho.

    Returns:
      `MajorityProbabilities(right, tie, wrong)`, each in the common shape. With `ties="random"` a
      tie is right half of the time. NaN for rho outside [0, 1] or M < 1. Each is exact to within
      some 1e-7 of 1, as a float32 is: a smaller one may come out as 0.

    Example:
      >>> print(*signax.theory.majority_probabilities(0.75, 2))
      0.5625 0.375 0.0625

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, section 4.2.
    """
    num_workers = jnp.asarray(num_workers)
    expected = expected_majority(rho, num_workers)
    half = _half(num_workers).astype(expected.dtype)
    spread = 4.0 * jnp.asarray(rho) * (1.0 - jnp.asarray(rho))
    tie = jnp.where(num_workers % 2 == 0, _central_share(half) * spread**half, 0.0)
    tie = jnp.where(jnp.isnan(expected), jnp.nan, tie)
    right, wrong = (1.0 - tie + expected) / 2.0, (1.0 - tie - expected) / 2.0
    return MajorityProbabilities(jnp.maximum(right, 0.0), tie, jnp.maximum(wrong, 0.0))


def hoeffding_bound(rho: jax.typing.ArrayLike, num_workers: jax.typing.ArrayLike) -> jax.Array:
    r"""How close M workers come to the noise-free l1 norm, whatever the gradient.

    $$ \left( 1 - e^{-(2 \rho - 1)^2 l} \right) \lVert g \rVert_1 \le \lVert g \rVert_{\rho_M}
       \le \lVert g \rVert_1, \qquad \rho = \min_i \rho_i > \tfrac12, \;
       l = \left\lfloor \tfrac{M+1}{2} \right\rfloor $$

    Assumptions are those of `expected_majority`; the lower bound is for rho >= 1/2 only.
    Hoeffding's inequality as it stands gives 1 - 2 exp(...), since 2I - 1 is 1 - 2 (1 - I). The
    paper's line is true all the same: the sum for 2I - 1 taken to infinity is 1, and its terms from
    j = l on add up to at most (1 - (2 rho - 1)^2)^l.

    Args:
      rho: The smallest success probability, in [1/2, 1].
      num_workers: M, at least 1; broadcasts with rho.

    Returns:
      The factor before the l1 norm, in [0, 1); 0 at rho = 1/2.

    Example:
      >>> print(jnp.round(100 * signax.theory.hoeffding_bound(0.75, jnp.array([1, 7, 63]))))
      [ 22.  63. 100.]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, section 4.2, "Speedup with respect to M".
    """
    return -jnp.expm1(-((2.0 * jnp.asarray(rho) - 1.0) ** 2) * _half(jnp.asarray(num_workers)))


def _half(num_workers: jax.Array) -> jax.Array:
    return (num_workers + 1) // 2  # l


@jax.custom_jvp
def _signed_beta(delta: jax.Array, half: jax.Array) -> jax.Array:
    """2 I((1 + delta) / 2; half, half) - 1 by the sum of the module's docstring."""
    delta, half = jnp.broadcast_arrays(delta, half)
    shrink = (1.0 - delta) * (1.0 + delta)
    last = jnp.max(half, initial=1).astype(jnp.int32)

    def add_term(step, total):
        j = (last - step).astype(delta.dtype)  # last - 1, ..., 1
        return jnp.where(j < half, 1.0 + shrink * (1.0 - 0.5 / j) * total, total)

    total = jax.lax.fori_loop(1, last, add_term, jnp.ones_like(delta))
    return jnp.clip(delta * total, -1.0, 1.0)


@_signed_beta.defjvp
def _signed_beta_jvp(primals, tangents):
    """The density of the beta law, finite at both ends; l is a count and has no derivative."""
    delta, half = primals
    shrink = (1.0 - delta) * (1.0 + delta)
    slope = 2.0 * half * _central_share(half) * shrink ** (half - 1.0)
    return _signed_beta(delta, half), slope * tangents[0]


def _central_share(half: jax.Array) -> jax.Array:
    """C(2l, l) / 4^l = (1 - 1/2)(1 - 1/4)...(1 - 1/(2l)): the chance that 2l fair coins tie."""

    def multiply(j, share):
        j = j.astype(half.dtype)
        return jnp.where(j <= half, share * (1.0 - 0.5 / j), share)

    last = jnp.max(half, initial=1).astype(jnp.int32)
    return jax.lax.fori_loop(1, last + 1, multiply, jnp.ones_like(half))
