r"""Rosenbrock's function as the paper makes it stochastic, and its exact success probabilities.

$$ f(x) = \sum_{i=1}^{d-1} f_i(x), \qquad f_i(x) = 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, \qquad
   \hat g(x) = \nabla f_i(x) + \xi, \quad \xi \sim N(0, \nu^2 I) $$

with i uniform: biased, as E g^ = grad f / (d - 1), with the signs of grad f. A mini-batch is a mean
of independent draws.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binom  # pyright: ignore[reportMissingImports]

NUM_COORDINATES = 10
START = jnp.full(NUM_COORDINATES, -0.5)  # f = 526.5; the minimum is 0 at (1, ..., 1)


def terms(x: jax.Array) -> jax.Array:
    """f_1(x), ..., f_{d-1}(x)."""
    return 100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2


def value(x: jax.Array) -> jax.Array:
    """f(x)."""
    return jnp.sum(terms(x))


def loss(x: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean of f_i(x) + <xi, x> over the draws: its gradient is the mini-batch's g^."""
    return jnp.mean(terms(x)[batch["index"]] + batch["noise"] @ x)


def sampler(noise: float, batch_size: int) -> Callable:
    """`sample_batch(key, worker)` for `compare`."""

    def sample_batch(key, worker):
        del worker
        key_index, key_noise = jax.random.split(key)
        return {
            "index": jax.random.randint(key_index, (batch_size,), 0, NUM_COORDINATES - 1),
            "noise": noise * jax.random.normal(key_noise, (batch_size, NUM_COORDINATES)),
        }

    return sample_batch


def success_probabilities(x: jax.Array, noise: float, batch_size: int) -> jax.Array:
    """rho_j = Prob(sign g^_j = sign g_j), exactly: [d]; 1/2 where g_j = 0.

    Coordinate j is touched by f_{j-1} (drawn a times of tau) and f_j (b times) only, so
    g^_j ~ N((a u + b v) / tau, nu^2 / tau) given (a, b), which is multinomial.
    """
    jacobian = jax.jacobian(terms)(x)  # [d-1, d]
    zero = jnp.zeros((1, NUM_COORDINATES))
    index = jnp.arange(NUM_COORDINATES)
    left = jnp.concatenate([zero, jacobian])[index, index]  # of f_{j-1}
    right = jnp.concatenate([jacobian, zero])[index, index]  # of f_j
    # 0 for f_{j-1} at j = 0 and for f_j at j = d-1: such draws never come, and add nothing.
    a, b, weight = _counts(batch_size)
    mean = (a[:, None] * left[None] + b[:, None] * right[None]) / batch_size  # [(a, b), d]
    signed = jnp.sign(left + right)[None] * mean / (noise / np.sqrt(batch_size))
    return weight @ jax.scipy.special.ndtr(signed)


def _counts(batch_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All (a, b) with a + b <= tau, and their probabilities."""
    p = 1.0 / (NUM_COORDINATES - 1)
    pairs = [(a, b) for a in range(batch_size + 1) for b in range(batch_size + 1 - a)]
    a, b = np.array(pairs).T
    weight = binom.pmf(a, batch_size, p) * binom.pmf(b, batch_size - a, p / (1 - p))
    return tuple(jnp.asarray(array, jnp.float32) for array in (a, b, weight))  # pyright: ignore
