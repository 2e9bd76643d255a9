"""SGD on gradients of fewer bits: rounded at random (QSGD, TernGrad) or to bfloat16."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from signax import _choices, _network
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.baselines import _quantized, _rounded
from signax.signs import _norms


def bfloat16_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD on the mean of gradients that travel in bfloat16: 16 bits per coordinate each way.

    $$ x_{k+1} = x_k - \gamma_k \operatorname{bf} \left[ \tfrac{1}{M} \sum_{n=1}^{M}
       \operatorname{bf}(\hat g^n(x_k)) \right] $$

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      momentum: Decay of a heavy-ball trace over the mean (`optax.trace`); None is none.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the trace is kept; None is the parameters'.

    Returns:
      The transformation: `average_bfloat16` and a step.

    Raises:
      ValueError: For a momentum outside [0, 1) or an unknown `on_nonfinite`; at update, for an
        unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.bfloat16_sgd(0.5)
      >>> g = jnp.array([1.0, -2.0])
      >>> print(tx.update(g, tx.init(g), g)[0])
      [-0.5  1. ]
    """
    return optax.chain(
        _rounded.average_bfloat16(axis_name, on_nonfinite=on_nonfinite),
        *_steps.heavy_ball(momentum, accumulator_dtype, "bfloat16_sgd"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def qsgd(
    learning_rate: optax.ScalarOrSchedule,
    levels: int = 7,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    norm: _norms.Norm = "l2",
    down_dtype: jax.typing.DTypeLike = "float32",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""QSGD: SGD on gradients whose coordinates are rounded at random to 2s + 1 values.

    $$ x_{k+1} = x_k - \frac{\gamma_k}{M} \sum_{n=1}^{M} Q_s(\hat g^n(x_k)), \qquad E[Q_s(g)] = g $$

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      levels: s; 1, 3, 7 and 127 fill 2, 3, 4 and 8 bits per coordinate up (`average_quantized`).
      momentum: Decay of a heavy-ball trace over the mean (`optax.trace`); None is none.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      norm: R, each leaf's own "l2", the paper's (a leaf is a bucket), or "linf".
      down_dtype: The dtype in which the mean travels down, float32 or bfloat16.
      key: An integer seed or a PRNG key, the same on all workers.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the trace is kept; None is the parameters'.

    Returns:
      The transformation: `average_quantized` and a step.

    Raises:
      ValueError: For levels, norm, dtype, momentum or `on_nonfinite` that cannot be; at update, for
        an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.qsgd(0.5, norm="linf")
      >>> g = jnp.array([1.0, -1.0])
      >>> print(tx.update(g, tx.init(g), g)[0])
      [-0.5  0.5]

    References:
      Alistarh, Grubic, Li, Tomioka and Vojnovic, QSGD: Communication-Efficient SGD via Gradient
      Quantization and Encoding, NeurIPS 2017, arXiv:1610.02132, Algorithm 1.
    """
    link = _quantized.average_quantized(
        axis_name,
        levels=levels,
        norm=norm,
        down_dtype=down_dtype,
        key=key,
        on_nonfinite=on_nonfinite,
    )
    return optax.chain(
        link,
        *_steps.heavy_ball(momentum, accumulator_dtype, "qsgd"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def tern_grad(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    clip_sigmas: float | None = None,
    down_dtype: jax.typing.DTypeLike = "float32",
    key: jax.typing.ArrayLike = 0,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""TernGrad: SGD on ternary stochastic signs of the gradients, one scale for each leaf.

    $$ x_{k+1} = x_k - \frac{\gamma_k}{M} \sum_{n=1}^{M} s^n \operatorname{sign}(\hat g^n)
       \circ b^n, \qquad P[b^n_i = 1] = \frac{|\hat g^n_i|}{s^n}, \quad s^n = \max_i |\hat g^n_i| $$

    Args:
      learning_rate: gamma, as for SGD; a number or a schedule.
      momentum: Decay of a heavy-ball trace over the mean (`optax.trace`); None is none.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      clip_sigmas: c of the paper's gradient clipping, which cuts each leaf at c standard
        deviations before it is made ternary (2.5 there, at the price of a bias); None is none.
      down_dtype: The dtype in which the mean travels down, float32 or bfloat16.
      key: An integer seed or a PRNG key, the same on all workers.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the trace is kept; None is the parameters'.

    Returns:
      The transformation: `average_quantized` with one level and the largest magnitude of each leaf
      for a scale, and a step; 2 bits per coordinate up. The paper's shared scale is left out: what
      goes down is the mean in full.

    Raises:
      ValueError: For a dtype, clip_sigmas, momentum or `on_nonfinite` that cannot be; at update,
        for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.baselines.tern_grad(0.5)
      >>> g = jnp.array([1.0, -1.0])
      >>> print(tx.update(g, tx.init(g), g)[0])
      [-0.5  0.5]

    References:
      Wen, Xu, Yan, Wu, Wang, Chen and Li, TernGrad: Ternary Gradients to Reduce Communication in
      Distributed Deep Learning, NeurIPS 2017, arXiv:1705.07878, Algorithm 1 and section 3.2.
    """
    clip = [] if clip_sigmas is None else [_clip_at_sigmas(clip_sigmas)]
    link = _quantized.average_quantized(
        axis_name,
        levels=1,
        norm="linf",
        down_dtype=down_dtype,
        key=key,
        on_nonfinite=on_nonfinite,
    )
    return optax.chain(
        *clip,
        link,
        *_steps.heavy_ball(momentum, accumulator_dtype, "tern_grad"),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def _clip_at_sigmas(c: float) -> optax.GradientTransformation:
    """Wen et al., (15): each leaf's coordinates are cut at c standard deviations of that leaf."""
    _choices.require_number(c, "baselines.tern_grad", "clip_sigmas")
    if not isinstance(c, Tracer) and not c > 0:
        raise ValueError(
            f"signax.baselines.tern_grad: clip_sigmas must be positive, got {c}. The paper uses "
            "2.5; None does not clip."
        )

    def clip(g: Any) -> jax.Array:
        g = jnp.asarray(g)
        if not g.size:
            return g
        bound = c * jnp.std(g.astype(jnp.float32))
        # Equal coordinates, as of every scalar, have no spread to be cut at, though their rounded
        # deviation is seldom 0. A NaN passes on.
        is_flat = jnp.max(g) == jnp.min(g)
        return jnp.where(is_flat, g, jnp.clip(g, -bound, bound)).astype(g.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))
