"""The last links of every chain: what runs everywhere alike, behind the network."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from signax import _memory

Mask = Any | Callable[[optax.Params], Any] | None


def common_step(
    learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule, mask: Mask
) -> list[optax.GradientTransformation]:
    """Decay and step. Without decay there is no link, and `params` is not needed."""
    decay = [] if is_off(weight_decay) else [optax.add_decayed_weights(weight_decay, mask)]
    return [*decay, optax.scale_by_learning_rate(learning_rate)]


def common_step_in_units(
    learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule, mask: Mask
) -> list[optax.GradientTransformation]:
    """The same where the update already has its learning rate: only the decay still needs it."""
    if is_off(weight_decay):
        return [optax.scale(-1.0)]
    if callable(learning_rate) or callable(weight_decay):
        decay = lambda count: at(learning_rate, count) * at(weight_decay, count)  # noqa: E731
    else:
        decay = learning_rate * weight_decay
    return [optax.add_decayed_weights(decay, mask), optax.scale(-1.0)]


def heavy_ball(
    momentum: jax.typing.ArrayLike | None, accumulator_dtype: Any | None, function: str
) -> list[optax.GradientTransformation]:
    """A trace behind the network, or no link."""
    if momentum is None:
        return []
    _memory.require_decay(momentum, function, "momentum")
    return [optax.trace(momentum, accumulator_dtype=accumulator_dtype)]  # pyright: ignore[reportArgumentType]


def at(value: optax.ScalarOrSchedule, count: jax.Array) -> Any:
    return value(count) if callable(value) else value


def is_off(weight_decay: optax.ScalarOrSchedule) -> bool:
    return not isinstance(weight_decay, jax.Array) and weight_decay == 0
