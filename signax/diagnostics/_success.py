r"""How often is the sign right, and how sure is that? From counts of signs to probabilities.

With n draws of coordinate i, of which a sum s_i of signs is known, and a_i the reference,

$$ \hat\rho_i = \frac12 + \frac{s_i \operatorname{sign} a_i}{2 n}, $$

a zero counting as half a success (the paper's Remark 1: E sign(g^ g) > 0 is all that is needed).
The draws are not those of the reference, so the count is binomial given the reference. (Counting
the agreement of draws with their own mean would find 0.58 at n = 16 in pure noise.)
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signax import theory

# Below this many standard errors the sign of an estimated reference is not known well enough
# (wrong once in 740 times) to ask how often a draw agrees with it.
RESOLVED = 3.0
NUM_WORKERS = tuple(range(1, 65))
_RHO_M_NORM = jax.jit(theory.rho_m_norm)


class Interval(NamedTuple):
    lower: np.ndarray
    upper: np.ndarray


def quantile(confidence: float) -> float:
    """z with P(|N(0, 1)| < z) = confidence."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def success_probability(signs: np.ndarray, mean: np.ndarray, num_draws: int) -> np.ndarray:
    """rho^, NaN where the reference is zero: there SPB asks for nothing."""
    rho = 0.5 + 0.5 * signs * np.sign(mean) / num_draws
    return np.where(mean == 0, np.nan, rho)


def wilson(rho: np.ndarray, num_draws: int, confidence: float) -> Interval:
    r"""Wilson's score interval for a probability seen in n draws (Wilson, 1927).

    $$ \frac{1}{1 + z^2/n} \left( \hat\rho + \frac{z^2}{2n}
       \pm z \sqrt{\frac{\hat\rho (1 - \hat\rho)}{n} + \frac{z^2}{4 n^2}} \right) $$

    It excludes a true rho of 1/2 just when |rho^ - 1/2| sqrt(n) / sqrt(rho^ (1 - rho^)) is large,
    and, unlike rho^ +- z s, stays in [0, 1] and does not shrink to a point at 0 and 1.
    """
    z2 = quantile(confidence) ** 2 / num_draws
    center = (rho + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * rho * (1 - rho) + z2**2 / 4) / (1 + z2)
    return Interval(center - half, center + half)


def predicted_gain(signs: np.ndarray, mean: np.ndarray, num_draws: int) -> np.ndarray:
    """The rho_M-norm for M = 1..64, each coordinate's rho^ put in for rho.

    rho^ takes 2 n + 1 values, so the coordinates are first sorted by it: the work does not grow
    with d. At M = 1 the estimate is unbiased; above, the noise of rho^ (at most 1 / (2 sqrt(n)))
    meets a curve that bends, and the gain of many workers comes out a little too small.
    """
    agreement = (signs * np.sign(mean)).astype(np.int64)
    weights = np.bincount(agreement + num_draws, np.abs(mean), minlength=2 * num_draws + 1)
    rho = np.arange(2 * num_draws + 1) / (2 * num_draws)
    largest = weights.max() or 1.0  # float32 below: the unit of g may be 1e-40 or 1e30
    workers = jnp.array(NUM_WORKERS)[:, None]
    norms = _RHO_M_NORM(jnp.asarray(weights / largest)[None], jnp.asarray(rho)[None], workers)
    return np.asarray(norms, np.float64) * largest


def mean_and_error(
    total: float, squares: float, num_steps: int, confidence: float
) -> tuple[float, float]:
    """The mean over independent steps and half the width of its normal interval."""
    mean = total / num_steps
    variance = max(squares / num_steps - mean**2, 0.0) / max(num_steps - 1, 1)
    return float(mean), quantile(confidence) * math.sqrt(variance)


def standard_error(sigma: np.ndarray, num_draws: float) -> np.ndarray:
    """Of a mean of draws; 0 for an exact reference, which is worth infinitely many."""
    return sigma / math.sqrt(num_draws)
