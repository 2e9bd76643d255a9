"""1-bit SGD: the first of the methods with error feedback, with two values for each column."""

from typing import Any

import jax
import optax

from signax import _columns, _feedback, _memory, _network
from signax._optimizers import _steps
from signax._workers import AxisName


def one_bit_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    down_dtype: jax.typing.DTypeLike = "float32",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""1-bit SGD: each worker says the two means of every column, and what is left out later.

    $$ p^n_k = \hat g^n_k + e^n_k, \qquad \delta^n_k = Q(p^n_k), \qquad
       e^n_{k+1} = p^n_k - \delta^n_k, \qquad
       x_{k+1} = x_k - \frac{\gamma_k}{M} \sum_{n=1}^{M} \delta^n_k $$

    Q replaces each coordinate by the mean of its side, positive or negative, of its column: the
    weights into one output of a layer (`scale_by_column_means` says what a column of a vector, a
    scalar and a convolution is).

    The paper's servers quantise the sum once more on its way back, with an error memory of their
    own. Here the mean comes back in full, or in bfloat16, and the workers' memory is the only one;
    for one bit each way use `double_squeeze`.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      momentum: Decay of a heavy-ball trace behind the network (`optax.trace`); None is none.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      down_dtype: The dtype of the mean on its way back, "float32" or "bfloat16". What bfloat16
        rounds off is not fed back.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the residual and the trace are kept; None is the
        parameters'.

    Returns:
      The transformation. One bit per coordinate and two floats per column up, `down_dtype` down. A
      zero is on the positive side of its column, whose mean it lowers, and what it is made to say
      is owed back; a column that is zero stays so. A worker whose gradient holds a NaN or an
      infinity abstains and keeps its residual.

    Raises:
      ValueError: For a `down_dtype` that is not floating, a momentum outside [0, 1) or an unknown
        `on_nonfinite`; at update, for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.one_bit_sgd(0.5)
      >>> params = jnp.array([1.0, 3.0, -4.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-1. -1.  2.]

    References:
      Seide, Fu, Droppo, Li and Yu, 1-bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs, Interspeech 2014, equations (1) and (2).
    """
    feedback = _feedback.error_feedback(
        _columns.scale_by_column_means(), accumulator_dtype=accumulator_dtype
    )
    return optax.chain(
        _memory.guarded(feedback, on_nonfinite),
        _columns.average_column_means(axis_name, down_dtype=down_dtype, on_nonfinite=on_nonfinite),
        *_steps.heavy_ball(momentum, accumulator_dtype, "one_bit_sgd"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
