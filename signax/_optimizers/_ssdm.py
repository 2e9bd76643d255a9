"""Stochastic sign descent with momentum, and what is left of it when a part is taken away."""

from typing import Any, Literal

import jax
import optax

from signax import _choices, _memory, _network, _scaled, _votes
from signax._optimizers import _steps
from signax._workers import AxisName
from signax.signs import _scales, _stochastic
from signax.wire import _server

Sign = Literal["stochastic", "deterministic"]


def ssdm(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: jax.typing.ArrayLike = 0,
    axis_name: AxisName | None = None,
    scale: _scales.Scale | float = _scales.Scale(),
    rescale: bool = False,
    sign: Sign = "stochastic",
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
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
    1/sqrt(d) per coordinate: `Scale("linf", 256, shared=True)` carries far more.

    **What is left without a part** (section 4.3 of the paper): `beta=0` is no momentum, and with
    `rescale=True`, norms sent, the workers' norms travel with their signs and the step is the
    unbiased mean of R_n times sign: SGD with a compressor, `learning_rate` as for SGD.
    `sign="deterministic"` is Algorithm 3 with sign(m) in place of the stochastic sign; it can stay
    away from a stationary point for ever, even with full gradients.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      beta: Decay of the momentum, in [0, 1).
      key: An integer seed or a PRNG key for the stochastic signs, the same on all workers.
      axis_name: The workers' axis or a tuple of axes; None is one worker without a network.
      scale: R of the stochastic sign (`Scale`); a fixed number is sto-sign.
      rescale: Whether each worker's R travels with its signs (`average_scaled_signs`): one bit per
        coordinate and a scale per leaf up, 32 bits per coordinate down. The step is as large as R:
        for float16 leaves, an R above 65,504 is infinite and its worker abstains.
      sign: "stochastic", or "deterministic": no randomness, 2 bits per coordinate up as the zeros
        are the paper's, and `scale` is not used.
      wire: "packed", "radix", "lanes" or "float32": `average_signs`.
      on_nonfinite: "abstain", "propagate" or "error": `majority_vote`.
      weight_decay: Strength of the decoupled weight decay, times the learning rate.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.
      accumulator_dtype: The dtype in which the momentum is kept; None is the parameters'.

    Returns:
      The transformation. One bit per coordinate up, ceil(log2(M+1)) down. A worker whose gradient
      holds a NaN or an infinity abstains and keeps its momentum; a worker whose momentum is zero
      everywhere abstains (as printed, M counts it, with signs of 0; here with `rescale` alone); the
      mean is over the others.

    Raises:
      ValueError: For beta outside [0, 1), a scale that is not positive, an unknown sign, wire or
        `on_nonfinite`, or `rescale` with blocks, a wire other than "packed" or a deterministic
        sign; at update, for an unbound axis or gradients already summed over the workers.
      TypeError: If `scale` is neither a `Scale` nor a number; at update, if a leaf is not of a
        floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

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
    _choices.require(sign, Sign, "ssdm", "sign")
    _stochastic.require_scale(scale, "ssdm", rescale)
    if rescale and (sign == "deterministic" or wire != "packed"):
        raise ValueError(
            'signax.ssdm: rescale=True sends the scale R of the stochastic sign (sign="stochastic")'
            f' on the packed wire (wire="packed"), got sign={sign!r} and wire={wire!r}. For a'
            " deterministic sign with a scale use signax.ef_sign_sgd."
        )
    momentum = _memory.ema_from_first_gradient(beta, accumulator_dtype=accumulator_dtype)
    say = _stochastic.scale_by_stochastic_sign(
        key, axis_name=axis_name, scale=scale, rescale=rescale
    )
    if sign == "deterministic":
        say = optax.scale_by_sign()
        average = _votes.average_signs(
            axis_name, ties="zero", key=key, wire=wire, on_nonfinite=on_nonfinite
        )
    elif rescale:
        average = _scaled.average_scaled_signs(axis_name, key=key, on_nonfinite=on_nonfinite)
    else:
        average = _votes.average_signs(axis_name, key=key, wire=wire, on_nonfinite=on_nonfinite)
    return optax.chain(
        _memory.guarded(momentum, on_nonfinite),
        say,
        average,
        *_steps.common_step(learning_rate, weight_decay, mask),
    )
