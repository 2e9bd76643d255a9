r"""Error feedback: what a worker could not say at this step, it says later.

$$ p = u + e, \qquad \delta = Q(p), \qquad e' = p - \delta $$

A compressor Q alone may be biased for ever (a sign is); with this memory the sum of all that was
said stays within one residual of the sum of all that was meant. `compressed_mean` is the whole of
it as one link: error memory on the workers and on the servers, one bit each way.

Sources: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al.,
"Error Feedback Fixes SignSGD", ICML 2019, arXiv:1901.09847; Tang et al., "DoubleSqueeze", ICML
2019, arXiv:1905.05957.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _memory, _network, _scaled, _workers
from signax.signs import _sign


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`: this worker's own."""

    residual: optax.Updates  # e, like the parameters
    inner_state: Any


def error_feedback(
    inner: optax.GradientTransformation, *, accumulator_dtype: Any | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds what the compressor left out at earlier steps to what it is given at this one.

    $$ p_k = u_k + e_k, \qquad \delta_k = \operatorname{inner}(p_k), \qquad
       e_{k+1} = p_k - \delta_k, \qquad e_0 = 0 $$

    What is subtracted is exactly what travels: the output of `inner`, rounded to the dtype of the
    update. So nothing behind it may alter the values (a coin for a zero coordinate must be drawn
    inside, as `scale_by_scaled_sign` does), and the link must carry them as they are
    (`average_scaled_signs`).

    Args:
      inner: The compressor, a transformation that stands before the network link:
        `scale_by_scaled_sign`, for example.
      accumulator_dtype: The dtype in which the residual is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes; the sum is taken in float32 or wider. A NaN
      stays in the residual: wrap it in `abstaining`, as the named algorithms do. An empty tree
      passes. What is scaled behind it (a learning-rate schedule) scales old residuals by the new
      step size; put the learning rate before it to keep them in units of the parameters.

    Raises:
      ValueError: If the tree is not that of `init`.

    Example:
      >>> tx = signax.error_feedback(signax.scale_by_scaled_sign(axis_name=None))
      >>> said, state = tx.update(jnp.array([1.0, -3.0]), tx.init(jnp.zeros(2)))
      >>> print(said, state.residual)
      [ 2. -2.] [-1. -1.]

    References:
      Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML
      2019, arXiv:1901.09847, Algorithm 2.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        residual = optax.tree.zeros_like(params, dtype=accumulator_dtype)
        return ErrorFeedbackState(residual, inner.init(params))

    def update(updates, state, params=None, **extra_args):
        _sign.require_real(updates, "error_feedback")
        _workers.require_own(updates, _workers.axes_of_memory(state), "error_feedback")
        _memory.require_made_for(updates, state.residual, "error_feedback")
        meant = jax.tree.map(jnp.add, _memory.wide(updates), _memory.wide(state.residual))
        said, inner_state = inner.update(meant, state.inner_state, params, **extra_args)
        said = optax.tree.cast_like(said, updates)
        residual = jax.tree.map(jnp.subtract, meant, _memory.wide(said))
        residual = optax.tree.cast_like(residual, state.residual)
        return said, ErrorFeedbackState(residual, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def compressed_mean(
    axis_name: _workers.AxisName | None,
    *,
    key: jax.typing.ArrayLike = 0,
    scope: _sign.Scope = "leaf",
    on_nonfinite: _network.OnNonfinite = "abstain",
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""In place of `lax.pmean` before an optimizer that you trust: one bit per coordinate each way.

    $$ p^n = g^n + e^n, \quad \delta^n = Q(p^n), \quad e^n \leftarrow p^n - \delta^n; \qquad
       v = \frac{1}{M} \sum_{n=1}^{M} \delta^n + e, \quad u = Q(v), \quad e \leftarrow v - u $$

    with Q(p) = mean|p| sign p. Every update is the mean gradient plus an error that later updates
    take back. Optimizers that use the gradient linearly (SGD, momentum) lose little by it; Adam's
    second moment sees magnitudes that the compression made equal, so warm it up on dense gradients
    (`one_bit_adam`) or tune its learning rate again.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker.
      key: An integer seed or a PRNG key for the coins of zero coordinates.
      scope: What a worker's scale is a mean of: "leaf" or "global" (`scale_by_scaled_sign`).
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      accumulator_dtype: The dtype in which a worker's residual is kept; None is the parameters'.

    Returns:
      A transformation that keeps shapes and dtypes; its updates are the same on all workers. Its
      memory is one residual on each worker and one that lies in slices on the workers, so `init`
      must run where the axis is bound: `init_train_state` and `init_opt_state` see to it. A worker
      whose gradient holds a NaN or an infinity abstains and keeps its residual. An empty tree
      passes.

    Raises:
      ValueError: For an unknown scope or `on_nonfinite`; at init or update, if an axis is not
        bound.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = optax.chain(signax.compressed_mean("workers"), optax.adamw(1e-3))
      >>> state = signax.init_train_state(jnp.zeros(3), tx, 8)
      >>> print(state.opt_state[0][0].residual.shape)
      (8, 3)

    References:
      Tang et al., DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass
      Error-Compensated Compression, ICML 2019, arXiv:1905.05957, Algorithm 1.
    """
    say = _sign.scale_by_scaled_sign(key, axis_name=axis_name, scope=scope)
    feedback = error_feedback(say, accumulator_dtype=accumulator_dtype)
    return optax.chain(
        _memory.guarded(feedback, on_nonfinite),
        _scaled.average_scaled_signs(
            axis_name, bidirectional=True, key=key, on_nonfinite=on_nonfinite
        ),
    )
