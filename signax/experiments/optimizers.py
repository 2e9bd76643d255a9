"""From `config.optimizer` to an Optax transformation.

A new optimizer is one line in `OPTIMIZERS`; its keyword arguments are the fields of the config
that are not None. A field that the function does not take is an error, never ignored.
"""

import inspect
from collections.abc import Callable
from typing import Any

import optax

import signax
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError, unknown_name
from signax.experiments.resolve import resolve

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "bfloat16_sgd": signax.baselines.bfloat16_sgd,
    "dense_sgd": signax.dense_sgd,
    "distributed_lion": signax.distributed_lion,
    "double_squeeze": signax.double_squeeze,
    "ef_sign_sgd": signax.ef_sign_sgd,
    "power_sgd": signax.baselines.power_sgd,
    "qsgd": signax.baselines.qsgd,
    "random_k_sgd": signax.baselines.random_k_sgd,
    "sign_sgd": signax.sign_sgd,
    "signum": signax.signum,
    "ssdm": signax.ssdm,
    "tern_grad": signax.baselines.tern_grad,
    "top_k_sgd": signax.baselines.top_k_sgd,
}

SCHEDULES: dict[str, Callable[[float, int], optax.ScalarOrSchedule]] = {
    "constant": lambda peak, num_steps: peak,
    "cosine": lambda peak, num_steps: optax.cosine_decay_schedule(peak, num_steps),
    "linear": lambda peak, num_steps: optax.linear_schedule(peak, 0.0, num_steps),
}

_NOT_ARGUMENTS = ("name", "learning_rate", "schedule", "scale")


def make_optimizer(config: Config, axis_name: str) -> optax.GradientTransformation:
    """Returns the transformation that `config.optimizer` describes, voting over `axis_name`."""
    function = resolve(config.optimizer.name, OPTIMIZERS)
    schedule = _lookup("schedule", config.optimizer.schedule, SCHEDULES)
    learning_rate = schedule(config.optimizer.learning_rate, config.num_steps)
    arguments = _arguments(config.optimizer)
    accepted = inspect.signature(function).parameters
    for name in arguments:
        if name not in accepted:
            takes = [field for field in config.optimizer if field in accepted]
            raise UsageError(
                f"{config.optimizer.name} takes no {name!r}: leave config.optimizer.{name} out. "
                f"It takes: {', '.join(takes)}."
            )
    if "key" in accepted:
        arguments["key"] = config.seed
    try:
        return function(learning_rate, axis_name=axis_name, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"config.optimizer: {error}") from error


def ties_of(optimizer: Config) -> str | None:
    """Returns which `ties` this optimizer's vote uses; None where nobody votes."""
    ties = inspect.signature(resolve(optimizer.name, OPTIMIZERS)).parameters.get("ties")
    return ties and (optimizer.ties or ties.default)


def _arguments(optimizer: Config) -> dict[str, Any]:
    arguments = {
        name: value
        for name, value in optimizer.items()
        if name not in _NOT_ARGUMENTS and value is not None
    }
    scale = {name: value for name, value in optimizer.scale.items() if value is not None}
    if scale:
        arguments["scale"] = signax.Scale(**scale)
    return arguments


def _lookup(kind: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]
