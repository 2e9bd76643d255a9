"""signSGD that never goes uphill: Algorithm 1 with Option 2."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signax import _network
from signax._optimizers import _majority, _steps


def monotone_sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    on_nonfinite: _network.OnNonfinite = "abstain",
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: _steps.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""signSGD on one worker that takes a step only if it lowers the loss.

    $$ x_{k+1} = \operatorname{arg\,min}
       \{ f(x_k), \; f(x_k - \gamma_k \operatorname{sign} g_k) \} $$

    It costs one evaluation of f more at each step; f never rises. As for Optax's line searches,
    `update` is given the loss and the function: `tx.update(g, state, x, value=f_x, value_fn=f)`.

    Args:
      learning_rate: gamma, in parameter units per step and coordinate; a number or a schedule.
      on_nonfinite: What a NaN or an infinity in the gradient does: "abstain" (no step but that of
        the decay), "propagate" or "error".
      weight_decay: Strength of the decoupled weight decay, times the learning rate. It is part of
        the step, and not of f.
      mask: Which leaves decay: a tree of bools, or a function from parameters to one.

    Returns:
      The transformation. Its `update` also takes `value`, f at the parameters, and `value_fn`,
      which is called once as `value_fn(new_params)`, with those further extra arguments that it
      names. Where the new value is not smaller (equal, or NaN) the update is zero.

    Raises:
      ValueError: For an unknown `on_nonfinite`; at update, without `params`, `value` or `value_fn`.
      TypeError: At update, if a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> f = lambda x: jnp.sum(x ** 2)
      >>> tx = signax.monotone_sign_sgd(1.0)
      >>> x = jnp.array([3.0, 0.25])
      >>> u, state = tx.update(2 * x, tx.init(x), x, value=f(x), value_fn=f)
      >>> print(u)
      [-1. -1.]

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods: New Algorithms and Better Theory,
      ICML 2021, arXiv:1905.12938, Algorithm 1, Option 2.
    """
    option_1 = _majority.sign_sgd(
        learning_rate, on_nonfinite=on_nonfinite, weight_decay=weight_decay, mask=mask
    )

    def update(updates, state, params=None, *, value=None, value_fn=None, **extra_args):
        if params is None or value is None or value_fn is None:
            raise ValueError(
                "signax.monotone_sign_sgd compares the loss before and after the step, so `update`"
                " needs the parameters, their loss and the loss function: tx.update(grads, state,"
                " params, value=loss, value_fn=loss_fn)."
            )
        step, state = option_1.update(updates, state, params)
        candidate = optax.apply_updates(params, step)
        is_lower = value_fn(candidate, **_accepted(value_fn, extra_args)) < value
        return jax.tree.map(lambda u: jnp.where(is_lower, u, jnp.zeros_like(u)), step), state

    return optax.GradientTransformationExtraArgs(option_1.init, update)


def _accepted(fn: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that `fn` names."""
    return {k: v for k, v in arguments.items() if k in inspect.signature(fn).parameters}
