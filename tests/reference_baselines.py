"""The baselines in NumPy, written from each method's own paper. As in `reference`: float64."""

import numpy as np

Array = np.ndarray


def orthogonalize(p: Array) -> Array:
    """Gram-Schmidt, column by column: Vogels et al. 2019, section 3."""
    p = p.copy()
    for j in range(p.shape[1]):
        for i in range(j):
            p[:, j] -= (p[:, i] @ p[:, j]) * p[:, i]
        p[:, j] /= np.sqrt(p[:, j] @ p[:, j])
    return p


def power_sgd_step(
    x: Array, m: Array, errors: Array, q: Array, rows: Array, rate: float, decay: float
) -> tuple[Array, Array, Array, Array]:
    """Vogels et al. 2019, Algorithms 1 and 2, for one matrix: rows [M, n, m], q [m, r]."""
    delta = rows + errors
    p = orthogonalize(np.mean([d @ q for d in delta], axis=0))
    own = [d.T @ p for d in delta]
    errors = np.array([d - p @ qw.T for d, qw in zip(delta, own, strict=True)])
    q = np.mean(own, axis=0)
    update = p @ q.T
    m = decay * m + update
    return x - rate * (update + m), m, errors, q


def top_k(p: Array, k: int) -> Array:
    """Stich et al. 2018, Definition 2.2: the k largest in magnitude, zeros elsewhere."""
    kept = np.argsort(-np.abs(p), kind="stable")[:k]
    said = np.zeros_like(p)
    said[kept] = p[kept]
    return said


def parallel_mem_sgd_step(
    x: Array, errors: Array, rows: Array, rate: float, compress: list
) -> tuple[Array, Array]:
    """Stich et al. 2018, Algorithm 2: g = comp(m + eta grad); x -= mean g; m += eta grad - g.

    `compress` has one function for each worker; a worker with a NaN takes no part.
    """
    errors, said = errors.copy(), []
    for n in np.flatnonzero(np.isfinite(rows).all(axis=1)):
        p = errors[n] + rate * rows[n]
        said.append(compress[n](p))
        errors[n] = p - said[-1]
    return x - np.sum(said, axis=0) / max(len(said), 1), errors


def qsgd_moments(g: Array, levels: int, scale: float) -> tuple[Array, Array]:
    """Alistarh et al. 2017, (3.1): mean and variance of Q_s(g), from its two values' chances."""
    a = levels * np.abs(g) / scale
    low = np.floor(a)
    up = a - low  # the probability of the higher level
    mean = np.sign(g) * scale / levels * (low + up)
    return mean, (scale / levels) ** 2 * up * (1 - up)


def ternary_moments(g: Array) -> tuple[Array, Array]:
    """Wen et al. 2017, (2) and (3): s sign(g) b with P[b = 1] = |g| / s, s = max |g|."""
    s = np.abs(g).max()
    chance = np.abs(g) / s
    return s * np.sign(g) * chance, s**2 * chance * (1 - chance)
