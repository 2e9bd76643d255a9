"""Distributed Lion: each worker runs Lion up to its sign, and the signs travel."""

from typing import Any, Literal

import jax
import optax

from signax import _choices, _memory, _network, _rules, _votes
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.wire import _server

Aggregate = Literal["majority", "average"]


def distributed_lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    *,
    axis_name: AxisName | None = None,
    aggregate: Aggregate = "majority",
    ties: _rules.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lion on every worker, one step for all: by majority vote or by the mean of the signs.

    $$ \delta^n_k = \operatorname{sign}(\beta_1 m^n_k + (1 - \beta_1) g^n_k), \qquad
       m^n_{k+1} = \beta_2 m^n_k + (1 - \beta_2) g^n_k, \quad m^n_0 = 0 $$

    $$ x_{k+1} = x_k - \gamma_k \left( \Delta_k + \lambda x_k \right), \qquad
       \Delta_k = \operatorname{sign} \sum_n \delta^n_k \quad \text{or} \quad
       \Delta_k = \frac{1}{M} \sum_n \delta^n_k $$

    With `axis_name=None` or one worker it equals `optax.lion(..., weight_decay=0.0)`, whose own
    default is 1e-3.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      b1: beta_1, the share of the momentum in what is said, in [0, 1).
      b2: beta_2, the decay of the momentum, in [0, 1).
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      aggregate: "majority" (D-Lion MaVo) or "average" (D-Lion Avg).
      ties: "zero" (the paper's ternary sign; 2 bits per coordinate up) or "random" (1 bit):
        `majority_vote`, `average_signs`.
      key: An integer seed or a PRNG key for the coins of `ties="random"`.
      wire: "packed", "radix", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: lambda, decoupled, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      The transformation. A worker whose gradient holds a NaN or an infinity abstains and keeps its
      momentum; zeros and ties: `majority_vote`. An average is over those who vote: with
      `on_nonfinite="propagate"` a worker that is zero everywhere counts too, as printed.

    Raises:
      ValueError: For b1 or b2 outside [0, 1), an unknown `aggregate`, `ties`, `wire` or
        `on_nonfinite`; at update, for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.distributed_lion(0.01)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.01  0.01]

    References:
      Liu, Wu, Chen, Liang, Zhu, Liu, Krishnamoorthi and Liu, Communication Efficient Distributed
      Training with Distributed Lion, NeurIPS 2024, arXiv:2404.00438, Algorithm 1.
    """
    _memory.require_decay(b1, "distributed_lion", "b1")
    _memory.require_decay(b2, "distributed_lion", "b2")
    _choices.require(aggregate, Aggregate, "distributed_lion", "aggregate")
    link = _votes.majority_vote if aggregate == "majority" else _votes.average_signs
    lion = optax.scale_by_lion(b1, b2, mu_dtype=accumulator_dtype)  # pyright: ignore[reportArgumentType]
    return optax.chain(
        _memory.guarded(lion, on_nonfinite),
        link(axis_name, ties=ties, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
