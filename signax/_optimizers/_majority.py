"""Majority votes over signs: of gradients, of momenta, of gradients plus noise."""

from typing import Any

import jax
import optax

from signax import _memory, _network, _rules, _votes
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.signs import _noisy
from signax.wire import _server


def sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
    ties: _rules.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
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
      wire: "packed", "radix", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.

    Returns:
      The transformation. Zero, NaN and abstention: `majority_vote`.

    Raises:
      ValueError: For unknown `ties`, `wire` or `on_nonfinite`; at update, for an unbound axis or
        gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

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
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def signum(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    axis_name: AxisName | None = None,
    ties: _rules.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
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
      wire: "packed", "radix", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      The transformation. A worker whose gradient holds a NaN or an infinity abstains and keeps its
      momentum; zeros and ties: `majority_vote`.

    Raises:
      ValueError: For beta outside [0, 1), unknown `ties`, `wire` or `on_nonfinite`; at update, for
        an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

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
        _memory.guarded(momentum, on_nonfinite),
        _votes.majority_vote(axis_name, ties=ties, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )


def noisy_sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    noise_scale: jax.typing.ArrayLike,
    *,
    noise: _noisy.Noise = "normal",
    axis_name: AxisName | None = None,
    ties: _rules.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Noisy signSGD: majority vote over the signs of gradients plus noise.

    $$ x_{k+1} = x_k - \gamma_k \operatorname{sign} \left[ \sum_{n=1}^{M}
       \operatorname{sign}(\hat g^n(x_k) + b \, \xi^n_k) \right] $$

    Without noise a vote finds the sign of the workers' *median*, and with workers that differ this
    leads nowhere near a stationary point of their mean. The paper's condition for it to find the
    mean's: xi is symmetric and unimodal with a smooth density (normal noise is), and b is large
    against how far the workers' gradients lie from their mean; b must grow as the accuracy that is
    asked for. Then E sign(g + b xi) = 2 F'(0) g / b + O((g / b)^3), and the sign of their sum is
    that of the mean. The price is noise: what M workers' vote can see is of size b / sqrt(M).

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      noise_scale: b, in the units of the gradient: the standard deviation of normal noise, half the
        width of uniform noise.
      noise: "normal", or "uniform" (then it is sto-sign: for |g| <= b the mean is g / b exactly).
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      ties: "zero" (2 bits per coordinate each way) or "random" (1 bit): `majority_vote`. A worker
        never says zero here, so it is only a tie of the vote that differs.
      key: An integer seed or a PRNG key for the noise and coins, the same on all workers.
      wire: "packed", "radix", "lanes" or "float32": `majority_vote`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.

    Returns:
      The transformation. A zero coordinate is a fair coin on each worker; NaN and abstention:
      `majority_vote`.

    Raises:
      ValueError: For an unknown noise, `ties`, `wire` or `on_nonfinite`, or a negative b; at
        update, for an unbound axis or gradients already summed over the workers.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.noisy_sign_sgd(0.01, noise_scale=0.1)
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates)
      [-0.01  0.01]

    References:
      Chen, Chen, Sun, Wu and Hong, Distributed Training with Heterogeneous Data: Bridging Median-
      and Mean-Based Algorithms, NeurIPS 2020, arXiv:1906.01736 (Noisy signSGD).
    """
    return optax.chain(
        _noisy.scale_by_noisy_sign(key, noise_scale, axis_name=axis_name, noise=noise),
        _votes.majority_vote(axis_name, ties=ties, key=key, wire=wire, on_nonfinite=on_nonfinite),
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
