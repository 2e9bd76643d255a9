r"""The step sizes for which the theorems hold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer


class SSDMHyperparameters(NamedTuple):
    """The first two arguments of `signax.ssdm`."""

    learning_rate: float | jax.Array  # gamma
    beta: float | jax.Array


def inverse_sqrt_schedule(initial_learning_rate: jax.typing.ArrayLike) -> optax.Schedule:
    r"""The decreasing step size of Theorems 1, 2 and 3.

    $$ \gamma_k = \frac{\gamma_0}{\sqrt{k + 1}} $$

    It does not depend on the number of steps K: one run has the guarantee at each K >= 2.

    Args:
      initial_learning_rate: gamma_0, in parameter units per step and coordinate.

    Returns:
      An Optax schedule: count -> gamma_count, float; at count 0 it is gamma_0.

    Example:
      >>> tx = signax.sign_sgd(signax.theory.inverse_sqrt_schedule(0.02))
      >>> print(signax.theory.inverse_sqrt_schedule(0.02)(jnp.array([0, 3, 99])))
      [0.02  0.01  0.002]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorems 1, 2 and 3, Figure 4.
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(initial_learning_rate) / jnp.sqrt(jnp.asarray(count) + 1.0)

    return schedule


def theorem_4_hyperparameters(num_steps: int | jax.Array) -> SSDMHyperparameters:
    r"""The constant step size and momentum of Theorem 4, for a run of K steps.

    $$ \gamma = K^{-3/4}, \qquad \beta = 1 - K^{-1/2} $$

    In K steps no coordinate moves further than K^{1/4}: choose units in which that is enough.

    Args:
      num_steps: K, at least 1, traced or not.

    Returns:
      `SSDMHyperparameters(learning_rate, beta)`, in the order that `signax.ssdm` takes them; the
      first is a schedule as Optax has it, a number. At K = 1 they are 1 and 0.

    Raises:
      ValueError: If K is concrete and below 1.

    Example:
      >>> learning_rate, beta = signax.theory.theorem_4_hyperparameters(10_000)
      >>> print(round(learning_rate, 6), beta)
      0.001 0.99
      >>> tx = signax.ssdm(learning_rate, beta, axis_name="workers")

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Theorem 4.
    """
    if not isinstance(num_steps, Tracer) and not jnp.all(jnp.asarray(num_steps, float) >= 1):
        raise ValueError(
            "signax.theory.theorem_4_hyperparameters: num_steps is the number K of steps of the"
            f" whole run and must be at least 1, got {num_steps}. Write the length of your training"
            " loop; the theorem's step size K**-0.75 is constant over the run."
        )
    return SSDMHyperparameters(num_steps**-0.75, 1.0 - num_steps**-0.5)
