r"""The noise of a draw and its shape, from running sums of powers.

Lemma 1 wants noise that is unimodal and symmetric. Neither can be proved from a sample; both can be
refuted. Skewness gamma and excess kurtosis kappa are compared with what those laws can have:

    symmetric   gamma = 0, within 2.58 sqrt(6 / n): exceeded by 1 % of normal samples (heavy tails
                exceed it more often, so this is a hint)
    unimodal    kappa >= gamma^2 - 186/125 for every unimodal law (Klaassen, Mokveld and van Es,
                Statistics and Probability Letters 50, 2000); every law has kappa >= gamma^2 - 2,
                with equality for two values. A violation by more than 2 / sqrt(n) refutes (the
                uniform law, the nearest, is at 0.29 above and its sample kurtosis has standard
                deviation 1.15 / sqrt(n)); keeping it proves nothing.
"""

import math
from typing import NamedTuple

import numpy as np

_ONE_PERCENT = 2.576
_UNIMODAL = 186 / 125


class Noise(NamedTuple):
    """One value for each coordinate."""

    sigma: np.ndarray  # standard deviation of one worker's draw about that worker's own mean
    nu: np.ndarray  # cube root of the third absolute central moment
    skewness: np.ndarray  # NaN without noise
    kurtosis: np.ndarray  # excess; NaN without noise
    is_asymmetric: np.ndarray
    is_not_unimodal: np.ndarray


def noise_of(
    powers: np.ndarray, residual: np.ndarray, draws: np.ndarray, unit: np.ndarray
) -> Noise:
    """From the sums of y, y^2, y^3, y^4, |y|^3 (`_sums`): residual [M, d], powers [4, d]."""
    n = int(draws.sum())
    own_means = residual / draws[:, None]
    # About each worker's own mean of these very draws: unbiased whatever the reference.
    squares = powers[0] - np.sum(draws[:, None] * own_means**2, axis=0)
    variance = np.maximum(squares, 0.0) / max(n - len(draws), 1)
    # float32 sums of squares: below this the "noise" is rounding.
    variance = np.where(variance < 1e-9 * powers[0] / n, 0.0, variance)
    m1, (m2, m3, m4, absolute) = residual.sum(axis=0) / n, powers / n
    central2 = m2 - m1**2
    central3 = m3 - 3 * m1 * m2 + 2 * m1**3
    central4 = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    has_noise = (variance > 0) & (central2 > 0)
    safe = np.where(has_noise, central2, 1.0)
    skewness = np.where(has_noise, central3 / safe**1.5, np.nan)
    kurtosis = np.where(has_noise, central4 / safe**2 - 3.0, np.nan)
    with np.errstate(invalid="ignore"):
        is_asymmetric = np.abs(skewness) > _ONE_PERCENT * math.sqrt(6 / n)
        is_not_unimodal = kurtosis < skewness**2 - _UNIMODAL - 2.0 / math.sqrt(n)
    sigma = np.sqrt(variance) * unit
    nu = np.maximum(np.cbrt(absolute) * unit, sigma)  # never below, but for rounding
    return Noise(sigma, nu, skewness, kurtosis, is_asymmetric, is_not_unimodal)
