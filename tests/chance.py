"""z-tests of random signs, with fixed seeds."""

import math

import numpy as np

# z-test: for n draws in {-1, +1} with mean mu and variance 1 - mu^2, z = (mean - mu) sqrt(n / var).
# P(|N| > 6.5) = 8e-11; a hundred such tests are wrong once in 1e8 runs. Seeds are fixed.
Z = 6.5


def assert_mean(draws: np.ndarray, mean: float):
    """The mean of draws in {-1, +1}; a mean of -1 or +1 is no chance at all."""
    assert set(np.unique(draws)) <= {-1.0, 1.0}
    if abs(mean) == 1:
        assert (draws == mean).all()
    else:
        z = (draws.mean(dtype=np.float64) - mean) * math.sqrt(draws.size / (1 - mean**2))
        assert abs(z) < Z, f"z = {z:.2f} for the mean {mean}"


def assert_independent(a: np.ndarray, b: np.ndarray):
    """Fair draws a and b: their product is fair as well."""
    assert_mean(np.asarray(a) * np.asarray(b), 0.0)


def assert_mean_of(signs: np.ndarray, means: np.ndarray):
    """z-test of the sum of draws, each with its own mean."""
    means = np.clip(means.astype(np.float64), -1, 1)
    sigma = math.sqrt(np.sum(1 - means**2))
    if sigma == 0:
        np.testing.assert_array_equal(signs, means)
    else:
        assert abs(signs.sum(dtype=np.float64) - means.sum()) < Z * sigma
