"""1-bit Adam: Adam until its variance has settled, then momentum SGD preconditioned by it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from signax import _average, _choices, _feedback, _memory, _network, _warmup, _workers
from signax._optimizers import _steps
from signax._workers import AxisName


class OneBitAdamState(NamedTuple):
    """State of 1-bit Adam's preconditioned momentum."""

    count: jax.Array  # int32[], steps so far
    mu: optax.Updates  # the mean momentum, equal on all workers
    nu: optax.Updates  # the variance, equal on all workers; frozen after the warm-up
    dense: Any  # of the dense mean
    link: Any  # of the compressed mean: the residuals


def one_bit_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    freeze_steps: jax.typing.ArrayLike,
    axis_name: AxisName | None = None,
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""1-bit Adam: dense Adam for K steps, then one bit per coordinate each way.

    $$ k < K: \quad m_k = \beta_1 m_{k-1} + (1 - \beta_1) \bar g_k, \qquad
       v_k = \beta_2 v_{k-1} + (1 - \beta_2) \bar g_k^2 $$

    $$ k \ge K: \quad m^n_k = \beta_1 m_{k-1} + (1 - \beta_1) g^n_k, \qquad
       m_k = \operatorname{compressed\_mean}(m^1_k, \dots, m^M_k), \qquad v_k = v_{K-1} $$

    $$ x_{k+1} = x_k - \gamma_k \frac{m_k}{\sqrt{v_k} + \epsilon} $$

    Adam's variance settles early, and with it fixed Adam is linear in the gradient, so that error
    feedback works. As in the paper there is no bias correction: start with a small learning rate.

    Args:
      learning_rate: gamma, as for Adam; a number or a schedule.
      b1: beta_1, the decay of the momentum, in [0, 1).
      b2: beta_2, the decay of the variance, in [0, 1).
      eps: epsilon.
      freeze_steps: K, at least 1. The paper takes it when the variance changes little from then
        on, usually 15 to 20 % of all steps.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      key: An integer seed or a PRNG key for the coins of zero coordinates.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which momentum, variance and residual are kept; None is the
        parameters'.

    Returns:
      The transformation. Its `init` must run where the axis is bound (`init_train_state` and
      `init_opt_state` see to it). A worker whose gradient holds a NaN or an infinity abstains and
      keeps its residual. A coordinate whose variance is zero when it is frozen has never had a
      gradient; its one bit would be divided by epsilon, so it stays where it is.

    Raises:
      ValueError: For b1 or b2 outside [0, 1), `freeze_steps` below 1 or an unknown `on_nonfinite`;
        at init or update, for an unbound axis; at update, for gradients already summed over the
        workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.one_bit_adam(0.1, b1=0.0, b2=0.0, freeze_steps=1)
      >>> params = jnp.array([1.0, -3.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.1  0.1]

    References:
      Tang, Gan, Awan, Rajbhandari, Li, Lian, Liu, Zhang and He, 1-bit Adam: Communication Efficient
      Large-Scale Training with Adam's Convergence Speed, ICML 2021, arXiv:2102.02888, Algorithm 1.
    """
    _memory.require_decay(b1, "one_bit_adam", "b1")
    _memory.require_decay(b2, "one_bit_adam", "b2")
    _require_dense_steps(freeze_steps)
    dense = optax.with_extra_args_support(
        _average.average_gradients(axis_name, on_nonfinite=on_nonfinite)
    )
    link = _feedback.compressed_mean(
        axis_name, key=key, on_nonfinite=on_nonfinite, accumulator_dtype=accumulator_dtype
    )

    def init(params):
        zeros = optax.tree.zeros_like(params, dtype=accumulator_dtype)
        count = jnp.zeros((), jnp.int32)
        return OneBitAdamState(count, zeros, zeros, dense.init(params), link.init(params))

    def update(updates, state, params=None):
        del params
        updates = jax.tree.map(jnp.asarray, updates)
        _memory.require_made_for(updates, state.mu, "one_bit_adam")

        def warm_up(updates, state):
            mean, dense_state = dense.update(updates, state.dense)
            mean = _memory.wide(mean)
            mu = optax.tree.update_moment(mean, _memory.wide(state.mu), b1, 1)
            nu = optax.tree.update_moment(mean, _memory.wide(state.nu), b2, 2)
            return _kept(state, mu, nu)._replace(dense=dense_state)

        def compressed(updates, state):
            gradient, mu = _memory.wide(updates), _memory.wide(state.mu)
            own = optax.tree.update_moment(gradient, mu, b1, 1)
            mean, link_state = link.update(optax.tree.cast_like(own, updates), state.link)
            num_abstained = optax.tree.get(link_state, "num_abstained")
            is_silent = num_abstained == _workers.num_workers(axis_name)

            def next_mu(mean, m, v):
                # Without voters the momentum decays, as it does in the warm-up.
                m = jnp.where(is_silent, b1 * m, mean.astype(m.dtype))
                return jnp.where(v > 0, m, jnp.zeros_like(m))

            mu = jax.tree.map(next_mu, mean, mu, state.nu)
            return _kept(state, mu, state.nu)._replace(link=link_state)

        state = _warmup.agreed_cond(
            state.count < freeze_steps, warm_up, compressed, updates, state
        )._replace(count=optax.safe_increment(state.count))
        preconditioned = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + jnp.asarray(eps, v.dtype)),
            _memory.wide(state.mu),
            _memory.wide(state.nu),
        )
        return optax.tree.cast_like(preconditioned, updates), state

    return optax.chain(
        optax.GradientTransformation(init, update),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def _require_dense_steps(freeze_steps: jax.typing.ArrayLike) -> None:
    _choices.require_number(freeze_steps, "one_bit_adam", "freeze_steps")
    if not isinstance(freeze_steps, Tracer) and not freeze_steps >= 1:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"signax.one_bit_adam: freeze_steps must be at least 1, got {freeze_steps}. Without a"
            " dense step the variance is zero and no parameter ever moves; 15 to 20 % of all steps"
            " are usual."
        )


def _kept(state: OneBitAdamState, mu: Any, nu: Any) -> OneBitAdamState:
    mu, nu = optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu)
    return _warmup.nobody_abstained(state)._replace(mu=mu, nu=nu)
