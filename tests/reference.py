"""The algorithms in NumPy, written from the papers and not from our code.

Safaryan & Richtarik (2021), "Stochastic Sign Descent Methods", arXiv:1905.12938, is "the paper";
Signum is Bernstein et al. (2018), arXiv:1802.04434. Arithmetic is float64 and an array is one flat
vector of d coordinates, or M rows of them, one per worker. A worker whose row holds a NaN or an
infinity abstains: it is not counted, and neither is it in the M that the sum is divided by.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray


def sign(g: ArrayLike) -> Array:
    """Footnote 1: +1, 0 or -1 for a positive, zero or negative coordinate."""
    g = np.asarray(g, np.float64)
    return (g > 0).astype(np.int64) - (g < 0)


def sign_sgd_step(x: Array, g: Array, learning_rate: float) -> Array:
    """Algorithm 1, Option 1: x_{k+1} = x_k - gamma_k sign(g_k)."""
    return x - learning_rate * sign(g)


def monotone_sign_sgd_step(
    f: Callable[[Array], float], x: Array, g: Array, learning_rate: float
) -> Array:
    """Algorithm 1, Option 2: x_{k+1} = argmin {f(x_k), f(x_k - gamma_k sign(g_k))}."""
    candidate = sign_sgd_step(x, g, learning_rate)
    return candidate if f(candidate) < f(x) else x


def is_voter(rows: Array) -> Array:
    """[M, d] -> [M] bool: a worker votes where its whole row is finite."""
    return np.asarray(np.isfinite(rows).all(axis=1))


def sum_of_signs(rows: Array) -> Array:
    """Algorithm 2, line 6: the sum over the voters of sign(g^n). [M, d] -> [d] integers."""
    return sign(rows[is_voter(rows)]).sum(axis=0)


def majority_vote(rows: Array) -> Array:
    """Algorithm 2, line 6: sign of the sum of signs; 0 for a tie, and for a step without voters."""
    return sign(sum_of_signs(rows))


def majority_vote_step(x: Array, rows: Array, learning_rate: float) -> Array:
    """Algorithm 2, line 8: x_{k+1} = x_k - gamma_k sign [sum_n sign g^n(x_k)]."""
    return x - learning_rate * majority_vote(rows)


def average_signs(rows: Array) -> Array:
    """Algorithm 3, lines 9 and 11 without gamma: the sum of the voters' signs / their number."""
    return sum_of_signs(rows) / max(is_voter(rows).sum(), 1)


def probability_of_plus(g: ArrayLike, scale: float | None = None) -> Array:
    """Definition 3: Prob(stochastic sign of g_i is +1) = 1/2 + g_i / (2 R), R = ||g||_2 by default.

    Not defined where R = 0: the stochastic sign is 0 there.
    """
    g = np.asarray(g, np.float64)
    return 0.5 + 0.5 * g / (l2_norm(g) if scale is None else scale)


def l2_norm(g: Array) -> float:
    """||g||_2, with the largest |g_i| taken out first so that no square over- or underflows."""
    largest = np.abs(g).max(initial=0.0)
    return float(largest * np.sqrt(np.square(g / largest).sum())) if largest > 0 else 0.0


def stochastic_sign(rng: np.random.Generator, g: ArrayLike, scale: float | None = None) -> Array:
    """Definition 3: +1 or -1 per coordinate, and all zeros where R = 0."""
    g = np.asarray(g, np.float64)
    if (l2_norm(g) if scale is None else scale) == 0:
        return np.zeros(g.shape, np.int64)
    return np.where(rng.random(g.shape) < probability_of_plus(g, scale), 1, -1)


def momentum_from_first_gradient(previous: Array | None, g: Array, beta: float) -> Array:
    """Algorithm 3, lines 2 and 6: m_k = beta m_{k-1} + (1 - beta) g_k, with m_{-1} = g_0."""
    previous = g if previous is None else previous
    return beta * previous + (1 - beta) * g


def momentum_from_zero(previous: Array | None, g: Array, beta: float) -> Array:
    """Signum's momentum: m_k = beta m_{k-1} + (1 - beta) g_k, with m_{-1} = 0."""
    previous = np.zeros_like(g) if previous is None else previous
    return beta * previous + (1 - beta) * g


Momenta = list[Array | None]  # one per worker; None before a worker's first gradient that counts


def next_momenta(momenta: Momenta, rows: Array, beta: float, rule: Callable) -> Momenta:
    """The voters' momenta move by `rule`; an abstaining worker keeps its own."""
    return [
        rule(m, g, beta) if votes else m
        for m, g, votes in zip(momenta, rows, is_voter(rows), strict=True)
    ]


def ssdm_step(
    rng: np.random.Generator,
    x: Array,
    momenta: Momenta,
    rows: Array,
    learning_rate: float,
    beta: float,
    scale: float | None = None,
) -> tuple[Array, Momenta]:
    """Algorithm 3, lines 4 to 11: x_{k+1} = x_k - gamma/M sum_n (stochastic sign of m^n_k).

    A worker whose stochastic sign is all zeros has nothing to say, so it abstains as well.
    """
    momenta = next_momenta(momenta, rows, beta, momentum_from_first_gradient)
    voters = zip(momenta, is_voter(rows), strict=True)
    signs = [stochastic_sign(rng, m, scale) for m, votes in voters if votes and m is not None]
    signs = [s for s in signs if s.any()]
    return x - learning_rate * np.sum(signs, axis=0) / max(len(signs), 1), momenta


def signum_step(
    x: Array, momenta: Momenta, rows: Array, learning_rate: float, beta: float
) -> tuple[Array, Momenta]:
    """Signum with majority vote: each voter sends the sign of its momentum."""
    momenta = next_momenta(momenta, rows, beta, momentum_from_zero)
    voters = zip(momenta, is_voter(rows), strict=True)
    said = [m for m, votes in voters if votes and m is not None]
    return majority_vote_step(x, np.reshape(said, (-1, x.size)), learning_rate), momenta
