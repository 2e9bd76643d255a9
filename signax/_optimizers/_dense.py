"""The dense baseline, with which every sign method is compared."""

from typing import Any

import optax

from signax import _average, _network
from signax._optimizers import _steps
from signax._workers import AxisName


def dense_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The dense baseline: SGD on the mean of the workers' gradients, 64 bits per coordinate.

    $$ x_{k+1} = x_k - \frac{\gamma_k}{M} \sum_{n=1}^{M} \hat g^n(x_k) $$

    Args:
      learning_rate: gamma, the usual one of SGD; a number or a schedule.
      momentum: Decay of a heavy-ball trace over the mean gradient (`optax.trace`); None is none.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the trace is kept; None is the parameters'.

    Returns:
      The transformation. Its memory stands after the network, equal on all workers. A worker whose
      gradient holds a NaN or an infinity is left out of the mean.

    Raises:
      ValueError: For a momentum outside [0, 1) or an unknown `on_nonfinite`; at update, for an
        unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.dense_sgd(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.1  0.2]
    """
    return optax.chain(
        _average.average_gradients(axis_name, on_nonfinite=on_nonfinite),
        *_steps.heavy_ball(momentum, accumulator_dtype, "dense_sgd"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
