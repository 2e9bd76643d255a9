"""The named algorithms, each one chain: the worker's links, the network link, the common step.

A sign has no unit, so the learning rate of a sign method is in parameter units per step: with 1e-3
every coordinate moves by 1e-3. With `axis_name=None` there is one worker and no network.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from signax import _memory, _votes
from signax._workers import AxisName
from signax.signs import _stochastic
from signax.wire import _server

Mask = Any | Callable[[optax.Params], Any] | None


def sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
    ties: _votes.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _votes.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""signSGD with majority vote: step by the sign that most workers' gradients have.

    $$ x_{k+1} = x_k - \gamma_k \operatorname{sign}
       \left[ \sum_{n=1}^{M} \operatorname{sign} \hat g^n(x_k) \right] $$

    With `axis_name=None` it is signSGD, x - gamma sign g, and equals `optax.sign_sgd`.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      ties: "zero" (the paper; 2 bits per coordinate each way) or "random" (1 bit): `majority_vote`.
      key: An integer seed or a PRNG key for the coins of `ties="random"`.
      wire: "packed", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.

    Returns:
      The transformation. Zero, NaN and abstention: `majority_vote`.

    Raises:
      ValueError: For unknown `ties` or `wire`; at update, for an unbound axis or gradients already
        summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype.

    Example:
      >>> tx = signax.sign_sgd(0.01)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.01  0.01]

    References:
      Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, 2018,
      arXiv:1802.04434; Safaryan and Richtarik, 2021, arXiv:1905.12938, Algorithms 1 and 2.
    """
    return optax.chain(
        _votes.majority_vote(axis_name, ties=ties, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_common_step(learning_rate, weight_decay, mask),
    )


def signum(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    axis_name: AxisName | None = None,
    ties: _votes.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _votes.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Signum: majority vote over the signs of the workers' momenta.

    $$ m^n_k = \beta m^n_{k-1} + (1 - \beta) \hat g^n_k, \quad m^n_{-1} = 0, \qquad
       x_{k+1} = x_k - \gamma_k \operatorname{sign}
       \left[ \sum_{n=1}^{M} \operatorname{sign} m^n_k \right] $$

    With `axis_name=None` it equals `optax.signum`.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      beta: Decay of the momentum, in [0, 1).
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      ties: "zero" (the paper; 2 bits per coordinate each way) or "random" (1 bit): `majority_vote`.
      key: An integer seed or a PRNG key for the coins of `ties="random"`.
      wire: "packed", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      The transformation. A worker whose gradient holds a NaN or an infinity abstains and keeps its
      momentum; zeros and ties: `majority_vote`.

    Raises:
      ValueError: For beta outside [0, 1), unknown `ties` or `wire`; at update, for an unbound axis
        or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype.

    Example:
      >>> tx = signax.signum(0.01, beta=0.9)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.01  0.01]

    References:
      Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, 2018,
      arXiv:1802.04434, Algorithm 2 (Signum), and 2019, arXiv:1810.05291.
    """
    _memory.require_decay(beta, "signum", "beta")
    momentum = optax.ema(beta, debias=False, accumulator_dtype=accumulator_dtype)
    return optax.chain(
        _safe(momentum, on_nonfinite),
        _votes.majority_vote(axis_name, ties=ties, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_common_step(learning_rate, weight_decay, mask),
    )


def ssdm(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: jax.typing.ArrayLike = 0,
    axis_name: AxisName | None = None,
    scale: _stochastic.Scale | float = _stochastic.Scale(),
    wire: _server.Wire = "packed",
    on_nonfinite: _votes.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic sign descent with momentum: step by the mean of the workers' stochastic signs.

    $$ m^n_k = \beta m^n_{k-1} + (1 - \beta) \hat g^n_k, \quad m^n_{-1} = \hat g^n_0, \qquad
       x_{k+1} = x_k - \frac{\gamma_k}{M} \sum_{n=1}^{M} \widetilde{\operatorname{sign}}\, m^n_k $$

    **What it can and cannot do.** The stochastic sign does not change when a worker's gradient is
    multiplied by a positive number, so the algorithm as printed (`Scale()`) cannot see how large
    the workers' gradients are. When the workers' losses differ it does not, in general, converge to
    a stationary point of their mean: with f_1 = (x-2)^2/4 and f_2 = 3(x+2)^2/4 it stays for ever at
    x = sqrt(2)-1, where |f'| = 1.41. (The authors' 2026 revision of the paper narrows its Theorem 4
    to homogeneous workers.) `Scale(shared=True)` is the cure: with one R for all workers, (R/M)
    times the sum of signs is an unbiased estimate of the mean momentum, however different the
    workers are. And the paper's R, the l2 norm of the whole gradient, leaves a signal of about
    1/sqrt(d) per coordinate: `Scale("linf", "leaf", shared=True)` carries far more.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      beta: Decay of the momentum, in [0, 1).
      key: An integer seed or a PRNG key for the stochastic signs, the same on all workers.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scale: R of the stochastic sign (`Scale`); a fixed number is sto-sign.
      wire: "packed", "lanes" or "float32": `average_signs`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      The transformation. One bit per coordinate up, ceil(log2(M+1)) down. A worker whose gradient
      holds a NaN or an infinity abstains and keeps its momentum; a worker whose momentum is zero
      everywhere abstains; the mean is over the others.

    Raises:
      ValueError: For beta outside [0, 1), an unknown scale or wire; at update, for an unbound axis
        or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype.

    Example:
      >>> tx = signax.ssdm(0.01, scale=signax.Scale("linf"))
      >>> params = jnp.array([-2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [0.01]

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods: New Algorithms and Better Theory,
      ICML 2021, arXiv:1905.12938, Algorithm 3.
    """
    _memory.require_decay(beta, "ssdm", "beta")
    momentum = _memory.ema_from_first_gradient(beta, accumulator_dtype=accumulator_dtype)
    return optax.chain(
        _safe(momentum, on_nonfinite),
        _stochastic.scale_by_stochastic_sign(key, axis_name=axis_name, scale=scale),
        _votes.average_signs(axis_name, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_common_step(learning_rate, weight_decay, mask),
    )


def dense_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    *,
    axis_name: AxisName | None = None,
    on_nonfinite: _votes.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
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
      ValueError: At update, for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype.

    Example:
      >>> tx = signax.dense_sgd(0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.1  0.2]
    """
    trace = [] if momentum is None else [optax.trace(momentum, accumulator_dtype=accumulator_dtype)]
    return optax.chain(
        _votes.average_gradients(axis_name, on_nonfinite=on_nonfinite),
        *trace,
        *_common_step(learning_rate, weight_decay, mask),
    )


def _safe(
    memory: optax.GradientTransformation, on_nonfinite: _votes.OnNonfinite
) -> optax.GradientTransformation:
    """The worker's memory, kept from a NaN unless the user wants to see it spread."""
    return memory if on_nonfinite == "propagate" else _memory.abstaining(memory)


def _common_step(
    learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule, mask: Mask
) -> list[optax.GradientTransformation]:
    """What runs everywhere alike. Without decay there is no link, and `params` is not needed."""
    is_off = not isinstance(weight_decay, jax.Array) and weight_decay == 0
    decay = [] if is_off else [optax.add_decayed_weights(weight_decay, mask)]
    return [*decay, optax.scale_by_learning_rate(learning_rate)]
