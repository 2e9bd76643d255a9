"""SGD on parts of the gradient, with error feedback: low rank or few coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from signax import _memory, _network
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.baselines import _low_rank, _sparse


def power_sgd(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 4,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""PowerSGD: SGD on gradients to rank r, with error feedback and momentum after it.

    $$ \Delta = \operatorname{rank}_r \left( \tfrac{1}{M} \textstyle\sum_n (\hat g^n + e^n) \right),
       \qquad m \leftarrow \lambda m + \Delta, \qquad x \leftarrow x - \gamma (\Delta + m) $$

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      rank: r, at least 1 (`average_low_rank`).
      momentum: lambda; the paper's 0.9. None is no momentum: x <- x - gamma Delta. The paper adds
        the update to its momentum, so a constant gradient g steps by (1 + 1/(1 - lambda)) gamma g.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      key: An integer seed or a PRNG key, for the first factors.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the memory is kept; None is the parameters'.

    Returns:
      The transformation: `average_low_rank` and a step.

    Raises:
      ValueError: For a rank that is not a positive integer, a momentum outside [0, 1) or an unknown
        `on_nonfinite`; at update, for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.power_sgd(0.5, rank=1)
      >>> g = {"bias": jnp.array([1.0, -2.0])}  # a vector travels dense
      >>> print(tx.update(g, tx.init(g), g)[0]["bias"])
      [-0.5  1. ]

    References:
      Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
      Distributed Optimization, NeurIPS 2019, arXiv:1905.13727, Algorithms 1 and 2.
    """
    if momentum is not None:
        _memory.require_decay(momentum, "baselines.power_sgd", "momentum")
    after = [] if momentum is None else [_update_plus_momentum(momentum, accumulator_dtype)]
    link = _low_rank.average_low_rank(
        axis_name,
        rank=rank,
        key=key,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
    )
    return optax.chain(link, *after, *_steps.common_step(learning_rate, weight_decay, mask))


def random_k_sgd(
    learning_rate: optax.ScalarOrSchedule,
    fraction: float = 0.01,
    *,
    axis_name: AxisName | None = None,
    feedback: bool = True,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparsified SGD on random coordinates, the same ones on all workers.

    $$ p^n = e^n + \gamma_k \hat g^n, \qquad x_{k+1} = x_k - \frac{1}{M} \sum_{n=1}^{M} C(p^n),
       \qquad e^n \leftarrow p^n - C(p^n) $$

    The learning rate stands inside the error feedback, as in the paper, so that a schedule does not
    change what is owed.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      fraction: k/d, the share of each leaf's coordinates that is sent (`average_random_k`).
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      feedback: Whether what was left out is remembered; if not, values are multiplied by d/k.
      key: An integer seed or a PRNG key, the same on all workers.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      The transformation: `average_random_k` and a step.

    Raises:
      ValueError: For a fraction outside (0, 1] or an unknown `on_nonfinite`; at update, for an
        unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.random_k_sgd(0.5, fraction=0.5)
      >>> g = jnp.ones(4)
      >>> print(tx.update(g, tx.init(g), g)[0].sum())
      -1.0

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599,
      Algorithm 2 (Parallel-Mem-SGD).
    """
    link = _sparse.average_random_k(
        axis_name,
        fraction=fraction,
        feedback=feedback,
        key=key,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
    )
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        link,
        *_steps.common_step_in_units(learning_rate, weight_decay, mask),
    )


def top_k_sgd(
    learning_rate: optax.ScalarOrSchedule,
    fraction: float = 0.01,
    *,
    axis_name: AxisName | None = None,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparsified SGD on each worker's largest coordinates.

    $$ p^n = e^n + \gamma_k \hat g^n, \qquad x_{k+1} = x_k - \frac{1}{M} \sum_{n=1}^{M} C(p^n),
       \qquad e^n \leftarrow p^n - C(p^n) $$

    The learning rate stands inside the error feedback, as in the paper, so that a schedule does not
    change what is owed.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      fraction: k/d, the share of each leaf's coordinates that is sent (`average_top_k`).
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      The transformation: `average_top_k` and a step.

    Raises:
      ValueError: For a fraction outside (0, 1] or an unknown `on_nonfinite`; at update, for an
        unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.top_k_sgd(0.5, fraction=0.25)
      >>> g = jnp.array([1.0, -3.0, 0.5, 2.0])
      >>> print(tx.update(g, tx.init(g), g)[0])
      [-0.   1.5 -0.  -0. ]

    References:
      Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599,
      Algorithm 2 (Parallel-Mem-SGD).
    """
    link = _sparse.average_top_k(
        axis_name,
        fraction=fraction,
        on_nonfinite=on_nonfinite,
        accumulator_dtype=accumulator_dtype,
    )
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        link,
        *_steps.common_step_in_units(learning_rate, weight_decay, mask),
    )


def _update_plus_momentum(
    decay: jax.typing.ArrayLike, dtype: Any | None
) -> optax.GradientTransformation:
    """Vogels et al., Algorithm 2, lines 11 and 12: m <- lambda m + u, and u + m goes on."""
    trace = optax.trace(decay, accumulator_dtype=dtype)

    def update(updates, state, params=None):
        momentum, state = trace.update(updates, state, params)
        return jax.tree.map(jnp.add, updates, momentum), state

    return optax.GradientTransformation(trace.init, update)
