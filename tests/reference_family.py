"""The rest of the family in NumPy, written from each method's own paper: scaled signs and Lion.

As in `reference`: float64, and rows of M workers by d coordinates. Coordinates are assumed non-zero
wherever a coin would be thrown.
"""

from collections.abc import Sequence

import numpy as np

import reference

Array = np.ndarray
Groups = Sequence[Array]  # the coordinates that share one scale


def scaled_sign(p: Array, groups: Groups) -> Array:
    """Karimireddy et al. 2019, Algorithm 1: (||p||_1 / d) sign(p), for each group on its own."""
    said = np.zeros_like(p)
    for group in groups:
        said[group] = np.abs(p[group]).sum() / len(group) * reference.sign(p[group])
    return said


def ef_sign_sgd_step(
    x: Array, errors: Array, rows: Array, learning_rate: float, groups: Groups
) -> tuple[Array, Array]:
    """Algorithm 1 on each worker: p = gamma g + e, delta = C(p), e = p - delta; x -= mean delta."""
    errors, said = errors.copy(), []
    for n in np.flatnonzero(reference.is_voter(rows)):
        p = learning_rate * rows[n] + errors[n]
        said.append(scaled_sign(p, groups))
        errors[n] = p - said[-1]
    return x - np.sum(said, axis=0) / max(len(said), 1), errors


def double_squeeze_step(
    x: Array,
    errors: Array,
    server_error: Array,
    rows: Array,
    learning_rate: float,
    groups: Groups,
    server_groups: Groups,
) -> tuple[Array, Array, Array]:
    """Tang et al. 2019, Algorithm 1: error memory on the workers and on the server."""
    mean, errors = ef_sign_sgd_step(np.zeros_like(x), errors, rows, 1.0, groups)
    if not reference.is_voter(rows).any():
        return x, errors, server_error
    v = server_error - mean  # the step above went down the mean
    said = scaled_sign(v, server_groups)
    return x - learning_rate * said, errors, v - said


def one_bit_adam_step(
    x: Array,
    memory: tuple[Array, Array, Array, Array],
    rows: Array,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    is_warm_up: bool,
    groups: Groups,
    server_groups: Groups,
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Tang et al. 2021, Algorithm 1. Memory: m, v, the workers' errors, the server's error.

    A step without voters has the mean gradient 0.
    """
    m, v, errors, server_error = memory
    votes = reference.is_voter(rows)
    if is_warm_up or not votes.any():
        mean = rows[votes].sum(axis=0) / max(votes.sum(), 1)
        m = b1 * m + (1 - b1) * mean
        v = b2 * v + (1 - b2) * mean**2 if is_warm_up else v
    else:
        own = b1 * m + (1 - b1) * rows
        m, errors, server_error = double_squeeze_step(
            np.zeros_like(x), errors, server_error, own, -1.0, groups, server_groups
        )
    return x - learning_rate * m / (np.sqrt(v) + eps), (m, v, errors, server_error)


def server_groups(sizes: Sequence[int], num_workers: int) -> Groups:
    """Which coordinates share a scale on the servers: a leaf's part in a slice.

    Eight coordinates are a word, each leaf starts at a word of its own, and the words are cut into
    M equal slices, the last one filled up.
    """
    words, leaves, start = [], [], 0
    for leaf, size in enumerate(sizes):
        words += [start + i // 8 for i in range(size)]
        leaves += [leaf] * size
        start += -(-size // 8)
    owner = np.array(words) // -(-start // num_workers)
    pairs = sorted(set(zip(leaves, owner, strict=True)))
    return [np.flatnonzero((np.array(leaves) == a) & (owner == b)) for a, b in pairs]


def lion_step(
    x: Array,
    momenta: Array,
    rows: Array,
    learning_rate: float,
    b1: float,
    b2: float,
    weight_decay: float,
    aggregate: str,
) -> tuple[Array, Array]:
    """Liu et al. 2024, Algorithm 1: Lion up to its sign on each worker; decoupled decay."""
    votes = reference.is_voter(rows)
    said = b1 * momenta[votes] + (1 - b1) * rows[votes]
    momenta = momenta.copy()
    momenta[votes] = b2 * momenta[votes] + (1 - b2) * rows[votes]
    combine = {"majority": reference.majority_vote, "average": reference.average_signs}[aggregate]
    return x - learning_rate * (combine(said) + weight_decay * x), momenta


def normal_distribution(z: float) -> float:
    """P(N <= z), from the integral of the density (midpoints, to 1e-9 for |z| <= 8)."""
    t = (np.arange(200_000) + 0.5) / 200_000 * z
    return 0.5 + float(np.exp(-t * t / 2).mean() * z / np.sqrt(2 * np.pi))


def ef21_step(
    x: Array,
    memory: tuple[list, Array, Array],
    rows: Array,
    learning_rate: float,
    beta: float,
    groups: Groups,
    is_shared: bool,
) -> tuple[Array, tuple[list, Array, Array]]:
    """Fatkhullin et al. 2023, Algorithm 1 (EF21-SGDM), eta = 1 - beta. Memory: v^n, g^n and g.

    The compressor is the scaled sign, of each worker's difference on its own or of all workers'
    differences laid end to end. A worker who abstains sends c^n = 0; a step without any is skipped.
    """
    momenta, estimates, mean = memory
    votes = reference.is_voter(rows)
    rule = reference.momentum_from_first_gradient
    momenta = reference.next_momenta(momenta, rows, beta, rule)
    difference = {n: momenta[n] - estimates[n] for n in np.flatnonzero(votes)}
    if not difference:
        return x, (momenta, estimates, mean)
    said = np.zeros_like(rows)
    for group in groups:
        sizes = {n: np.abs(p[group]).mean() for n, p in difference.items()}
        for n, p in difference.items():
            scale = np.mean([*sizes.values()]) if is_shared else sizes[n]
            said[n, group] = scale * reference.sign(p[group])
    mean = mean + said.sum(axis=0) / len(rows)
    return x - learning_rate * mean, (momenta, estimates + said, mean)


def diana_step(
    x: Array,
    memory: tuple[Array, Array, Array],
    rows: Array,
    signs: Array,
    scales: Array,
    learning_rate: float,
    alpha: float,
    momentum: float,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Mishchenko et al. 2019, Algorithm 1, for given random signs. Memory: h_i, h and v.

    Q(p) is the scale of a worker's coordinate times its sign, [M, d]; a worker who abstains says 0.
    """
    estimates, mean, v = memory
    votes = reference.is_voter(rows)
    said = np.where(votes[:, None], scales * signs, 0.0)  # the compressed differences
    if not votes.any():
        v = momentum * v
        return x - learning_rate * v, (estimates, mean, v)
    gradient = mean + said.sum(axis=0) / len(rows)
    v = momentum * v + gradient
    memory = estimates + alpha * said, mean + alpha * said.sum(axis=0) / len(rows), v
    return x - learning_rate * v, memory


def quantize_columns(p: Array, columns: Groups) -> Array:
    """Seide et al. 2014, section 3.1: threshold 0; a column's values become their side's mean."""
    said = np.zeros_like(p)
    for column in columns:
        values = p[column]
        for side in (values >= 0, values < 0):
            if side.any():
                said[column[side]] = values[side].mean()
    return said


def one_bit_sgd_step(
    x: Array, errors: Array, rows: Array, learning_rate: float, columns: Groups
) -> tuple[Array, Array]:
    """Seide et al. 2014, (1) and (2) on each worker, and a step along the mean of what is said."""
    errors, said = errors.copy(), []
    for n in np.flatnonzero(reference.is_voter(rows)):
        p = rows[n] + errors[n]
        said.append(quantize_columns(p, columns))
        errors[n] = p - said[-1]
    return x - learning_rate * np.sum(said, axis=0) / max(len(said), 1), errors


def sto_sign_probability(g: Array, b: float) -> Array:
    """Jin et al. 2020, Definition 1: sto-sign(g, b) is +1 with probability (b + g) / (2 b)."""
    return (b + g) / (2 * b)
