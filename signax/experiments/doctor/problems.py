r"""Problems of the paper as subjects: one where signs work, one where they fail.

Source: Safaryan and Richtarik, 2021, arXiv:1905.12938, sections 3.2 and 5.1.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from signax.experiments.doctor.subject import Subject


def rosenbrock(num_workers: int = 8, noise_scale: float = 1.0, seed: int = 0) -> Subject:
    r"""Rosenbrock's function in ten dimensions, one summand and normal noise per draw (5.1).

    $$ f = \sum_{i=1}^{9} f_i, \quad f_i(x) = 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, \qquad
       \hat g(x) = \nabla f_i(x) + \xi, \quad \xi \sim N(0, \nu^2 I) $$

    with i uniform, so that E g^ = grad f / 9: the sign is all that counts. The paper leaves nu and
    the point open; here nu = 1 and x = (0, 1/2, ..., 0, 1/2), where neighbouring summands pull
    alike.
    """

    def loss_fn(x: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        left, right = x[:-1], x[1:]
        summands = 100 * (right - left**2) ** 2 + (1 - left) ** 2
        return jnp.mean(summands[batch["summand"]]) + jnp.mean(batch["noise"] @ x)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        random = np.random.default_rng(seed)
        while True:
            yield {
                "summand": random.integers(0, 9, num_workers),
                "noise": random.normal(0, noise_scale, (num_workers, 10)).astype(np.float32),
            }

    x = jnp.array([0.0, 0.5] * 5)
    every = {"summand": jnp.arange(9), "noise": jnp.zeros((9, 10))}
    gradient = jax.grad(loss_fn)(x, every)
    return Subject("rosenbrock", loss_fn, x, batches(), num_workers, gradient)


def counterexample(num_workers: int = 8, epsilon: float = 0.5, seed: int = 0) -> Subject:
    r"""Least squares on which signSGD never leaves a line, (5) and (6).

    $$ f(x) = \tfrac12 \left( \langle a_1, x \rangle^2 + \langle a_2, x \rangle^2 \right), \quad
       a_1 = (1 + \epsilon, -1 + \epsilon), \; a_2 = (-1 + \epsilon, 1 + \epsilon), \qquad
       \hat g(x) = 2 \langle a_i, x \rangle a_i $$

    with i one of the two, a fair coin. In the cone where both products are positive the sign of the
    stochastic gradient is +-(1, -1), and each coordinate is right exactly half of the time. Here
    epsilon = 1/2 and x = (1.2, 0.8), on the line x_1 + x_2 = 2.
    """
    rows = jnp.array([[1 + epsilon, -1 + epsilon], [-1 + epsilon, 1 + epsilon]])

    def loss_fn(x: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.mean((rows[index] @ x) ** 2)

    def batches() -> Iterator[np.ndarray]:
        random = np.random.default_rng(seed)
        while True:
            yield random.integers(0, 2, num_workers)

    x = jnp.array([1.2, 0.8])
    gradient = jax.grad(loss_fn)(x, jnp.arange(2))
    return Subject("counterexample", loss_fn, x, batches(), num_workers, gradient)


PROBLEMS: dict[str, Callable[[], Subject]] = {
    "counterexample": counterexample,
    "rosenbrock": rosenbrock,
}
