"""Scaled signs with error feedback: what could not be said at one step is said at a later one."""

from typing import Any

import jax
import optax

from signax import _feedback, _memory, _network, _scaled
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.signs import _sign


def ef_sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
    scope: _sign.Scope = "leaf",
    down_dtype: jax.typing.DTypeLike = "float32",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""EF-signSGD: step by the mean of the workers' scaled signs, each with error feedback.

    $$ p^n_k = \gamma_k \hat g^n_k + e^n_k, \qquad
       \delta^n_k = \frac{\lVert p^n_k \rVert_1}{d} \operatorname{sign} p^n_k, \qquad
       e^n_{k+1} = p^n_k - \delta^n_k, \qquad
       x_{k+1} = x_k - \frac{1}{M} \sum_{n=1}^{M} \delta^n_k $$

    The learning rate stands inside the error feedback, so that the residual is in units of the
    parameters and a schedule does not change what is owed. Scales are sent, so the step follows how
    large the workers' gradients are, and heterogeneous workers reach the minimum of their mean.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scope: What a scale is a mean of: "leaf" or "global", the paper's (`scale_by_scaled_sign`).
      down_dtype: The dtype of the mean on its way back, "float32" or "bfloat16"
        (`average_scaled_signs`). What bfloat16 rounds off is not fed back.
      key: An integer seed or a PRNG key for the coins of zero coordinates.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate; it does not
        pass through the network.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      The transformation. One bit per coordinate and a scale per leaf up, `down_dtype` down. A zero
      coordinate of p is a coin, and what the coin says is owed back. A worker whose gradient holds
      a NaN or an infinity abstains and keeps its residual.

    Raises:
      ValueError: For an unknown scope or `on_nonfinite`; at update, for an unbound axis or
        gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.ef_sign_sgd(0.5)
      >>> params = jnp.array([1.0, -3.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-1.  1.]

    References:
      Karimireddy, Rebjock, Stich and Jaggi, Error Feedback Fixes SignSGD and other Gradient
      Compression Schemes, ICML 2019, arXiv:1901.09847, Algorithm 1 (EF-signSGD).
    """
    say = _sign.scale_by_scaled_sign(key, axis_name=axis_name, scope=scope)
    memory = optax.chain(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        _feedback.error_feedback(say, accumulator_dtype=accumulator_dtype),
    )
    return optax.chain(
        _memory.guarded(memory, on_nonfinite),
        _scaled.average_scaled_signs(
            axis_name, down_dtype=down_dtype, key=key, on_nonfinite=on_nonfinite
        ),
        *_steps.common_step_in_units(learning_rate, weight_decay, mask),
    )


def double_squeeze(
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
    scope: _sign.Scope = "leaf",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DoubleSqueeze: one bit per coordinate each way, with error memory at both ends.

    $$ v^n = \hat g^n + e^n, \quad \delta^n = Q(v^n), \quad e^n \leftarrow v^n - \delta^n; \qquad
       v = \frac{1}{M} \sum_{n=1}^{M} \delta^n + e, \quad u = Q(v), \quad e \leftarrow v - u; \qquad
       x \leftarrow x - \gamma u $$

    with Q(v) = mean|v| sign v: SGD on `compressed_mean`.

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scope: What a worker's scale is a mean of: "leaf" or "global" (`scale_by_scaled_sign`). A
        server's is a mean over each leaf's part in its slice.
      key: An integer seed or a PRNG key for the coins of zero coordinates.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which a worker's residual is kept; None is the parameters'.

    Returns:
      The transformation. Its `init` must run where the axis is bound (`init_train_state` and
      `init_opt_state` see to it), as the servers' memory lies in slices on the workers. A worker
      whose gradient holds a NaN or an infinity abstains and keeps its residual.

    Raises:
      ValueError: For an unknown scope or `on_nonfinite`; at init or update, for an unbound axis; at
        update, for gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.double_squeeze(0.5)
      >>> params = jnp.array([1.0, -3.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-1.  1.]

    References:
      Tang, Yu, Lian, Zhang and Liu, DoubleSqueeze: Parallel Stochastic Gradient Descent with
      Double-pass Error-Compensated Compression, ICML 2019, arXiv:1905.05957, Algorithm 1.
    """
    return optax.chain(
        _feedback.compressed_mean(
            axis_name,
            key=key,
            scope=scope,
            on_nonfinite=on_nonfinite,
            accumulator_dtype=accumulator_dtype,
        ),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
