"""AdamW on an averaged gradient: what most people would use in place of a sign method."""

from typing import Any, Literal, get_args

import jax
import optax

import signax
from signax.experiments.errors import UsageError

Average = Literal["float32", "bfloat16", "low_rank"]


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    axis_name: str,
    average: Average = "float32",
    rank: int = 4,
    key: jax.typing.ArrayLike = 0,
    weight_decay: float = 1e-4,
    accumulator_dtype: Any | None = None,
) -> optax.GradientTransformation:
    """`optax.adamw` behind an exact mean, a mean in bfloat16, or PowerSGD's of low rank.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      axis_name: the workers' axis.
      average: how the gradients are averaged: "float32" (64 bits per coordinate), "bfloat16" (32),
        or "low_rank" (`signax.baselines.average_low_rank`, with its error memory).
      rank: of "low_rank".
      key: of the first factors of "low_rank".
      weight_decay: decoupled, times the learning rate.
      accumulator_dtype: the dtype of the first moment.

    Returns:
      The transformation. Its moments stand behind the network, equal on all workers.
    """
    links = {
        "float32": lambda: signax.average_gradients(axis_name),
        "bfloat16": lambda: signax.baselines.average_bfloat16(axis_name),
        "low_rank": lambda: signax.baselines.average_low_rank(axis_name, rank=rank, key=key),
    }
    if average not in links:
        raise UsageError(
            f"adamw: average={average!r} is none of {', '.join(map(repr, get_args(Average)))}."
        )
    step = optax.adamw(
        learning_rate, b1, b2, eps, mu_dtype=accumulator_dtype, weight_decay=weight_decay
    )
    return optax.chain(links[average](), step)
