"""From `config.inner` to the optimizer of one worker between two exchanges.

With `config.local_steps=k` above 1 every worker takes k steps of `config.inner` on its own, and
then `config.optimizer` is given how far it came: `signax.local_updates`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import optax

from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError, unknown_name
from signax.experiments.schedules import make_schedule

INNER_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "lion": optax.lion,
    "sgd": optax.sgd,
}
_NOT_ARGUMENTS = ("name", "learning_rate", "schedule")


def make_inner(config: Config) -> optax.GradientTransformation | None:
    """Returns the inner optimizer; None where every step is exchanged."""
    inner = config.inner
    given = {k: v for k, v in inner.items() if k not in _NOT_ARGUMENTS and v is not None}
    if config.local_steps == 1:
        for field in ({"learning_rate": inner.learning_rate} | given).items():
            if field[1] is not None:
                raise UsageError(
                    f"config.inner.{field[0]} has no effect: a worker takes steps of its own only"
                    " with config.local_steps above 1."
                )
        return None
    _check_steps(config)
    if inner.name not in INNER_OPTIMIZERS:
        raise unknown_name("inner optimizer", inner.name, INNER_OPTIMIZERS)
    if inner.learning_rate is None:
        raise UsageError(
            f"config.local_steps={config.local_steps} takes steps of {inner.name} on each worker:"
            " set config.inner.learning_rate. config.optimizer.learning_rate is that of the"
            " exchange after them."
        )
    function = INNER_OPTIMIZERS[inner.name]
    accepted = inspect.signature(function).parameters
    for argument in given:
        if argument not in accepted:
            takes = ", ".join(field for field in inner if field in accepted)
            raise UsageError(
                f"{inner.name} takes no {argument!r}: leave config.inner.{argument} out. It takes:"
                f" {takes}."
            )
    rate: Any = make_schedule(inner.schedule, inner.learning_rate, config.num_steps)
    return function(rate, **given)


def _check_steps(config: Config) -> None:
    """All steps are counted in gradients; what happens between exchanges must fit into them."""
    every = config.local_steps
    for field in ("num_steps", "eval_every"):
        value = config[field]
        if value % every:
            near = max(1, round(value / every)) * every
            raise UsageError(
                f"config.{field}={value} is no multiple of config.local_steps={every}, after which"
                f" the workers meet: {near} is."
            )
    for field, value in config.optimizer.dense.items():
        if value is not None:
            raise UsageError(
                f"config.optimizer.dense.{field} is for steps that are all exchanged: leave it out"
                " with config.local_steps above 1."
            )
