"""From `config.optimizer` to an Optax transformation.

A new optimizer is one line in `OPTIMIZERS`; its keyword arguments are the fields of the config
that are not None. A field that the function does not take is an error, never ignored.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

import signax
from signax.experiments.adamw import adamw
from signax.experiments.default_config import Config, get_config
from signax.experiments.errors import UsageError
from signax.experiments.inner_optimizer import make_inner
from signax.experiments.resolve import resolve
from signax.experiments.schedules import make_schedule

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "bfloat16_sgd": signax.baselines.bfloat16_sgd,
    "dense_sgd": signax.dense_sgd,
    "diana": signax.diana,
    "distributed_lion": signax.distributed_lion,
    "double_squeeze": signax.double_squeeze,
    "ef21": signax.ef21,
    "ef_sign_sgd": signax.ef_sign_sgd,
    "noisy_sign_sgd": signax.noisy_sign_sgd,
    "one_bit_adam": signax.one_bit_adam,
    "one_bit_sgd": signax.one_bit_sgd,
    "power_sgd": signax.baselines.power_sgd,
    "qsgd": signax.baselines.qsgd,
    "random_k_sgd": signax.baselines.random_k_sgd,
    "sign_sgd": signax.sign_sgd,
    "signum": signax.signum,
    "ssdm": signax.ssdm,
    "tern_grad": signax.baselines.tern_grad,
    "top_k_sgd": signax.baselines.top_k_sgd,
}

# First tries for `signax train`, from scikit-learn's digits: the units of the steps differ.
_OF_A_VOTE, _OF_A_MEAN_OF_SIGNS, _OF_A_GRADIENT, _OF_ADAM = 0.003, 0.03, 0.3, 0.003
_FIRST_RATES = dict.fromkeys(OPTIMIZERS, _OF_A_GRADIENT) | {
    "adamw": _OF_ADAM,
    "distributed_lion": _OF_A_VOTE,
    "noisy_sign_sgd": _OF_A_VOTE,
    "one_bit_adam": _OF_ADAM,
    "sign_sgd": _OF_A_VOTE,
    "signum": _OF_A_VOTE,
    "ssdm": _OF_A_MEAN_OF_SIGNS,
}

_NOT_ARGUMENTS = ("name", "learning_rate", "schedule", "scale", "dense")


def make_optimizer(config: Config, axis_name: str) -> optax.GradientTransformation:
    """Returns the transformation that `config.optimizer` describes, voting over `axis_name`."""
    inner = make_inner(config)
    outer = _exchanged(config, axis_name)
    return outer if inner is None else signax.local_updates(inner, outer)


def _exchanged(config: Config, axis_name: str) -> optax.GradientTransformation:
    """The chain with the network link."""
    name, dense = config.optimizer.name, config.optimizer.dense
    if name == "monotone_sign_sgd":
        raise UsageError(
            "monotone_sign_sgd is Algorithm 1, for one worker: it evaluates the loss once more at"
            " each step (update(..., value_fn=)), which workers with data of their own cannot agree"
            " on. Use it in a loop of your own."
        )
    function = resolve(name, OPTIMIZERS)
    # It steps once a round, and the schedule of what follows a dense warm-up starts behind it.
    num_steps = max(config.num_steps // config.local_steps - (dense.steps or 0), 1)
    peak = learning_rate_of(config.optimizer)
    rate: Any = make_schedule(config.optimizer.schedule, peak, num_steps)
    arguments = _arguments(config.optimizer)
    accepted = inspect.signature(function).parameters
    _check_arguments(name, arguments, accepted)
    if "key" in accepted:
        arguments["key"] = config.seed
    try:
        return _with_dense_part(function(rate, axis_name=axis_name, **arguments), config, axis_name)
    except (TypeError, ValueError) as error:
        raise UsageError(f"config.optimizer: {error}") from error


def _with_dense_part(
    tx: optax.GradientTransformation, config: Config, axis_name: str
) -> optax.GradientTransformation:
    """`tx`, with dense SGD for the small leaves or in the first steps if the config says so."""
    given = config.optimizer.dense
    if given.steps is None and given.below is None:
        for field, value in given.items():
            if value is not None:
                raise UsageError(
                    f"config.optimizer.dense.{field} has no effect: nothing is dense without"
                    " config.optimizer.dense.steps or config.optimizer.dense.below."
                )
        return tx
    if given.learning_rate is None:
        raise UsageError(
            "dense steps are in units of the gradient and need a learning rate of their own: set"
            " config.optimizer.dense.learning_rate."
        )
    rate: Any = make_schedule(config.optimizer.schedule, given.learning_rate, config.num_steps)
    decay = config.optimizer.weight_decay or 0.0
    dense = signax.dense_sgd(rate, given.momentum, axis_name=axis_name, weight_decay=decay)
    if given.below is not None:
        tx = signax.dense_below(given.below, tx, dense=dense)
    return tx if given.steps is None else signax.warmup(given.steps, tx, dense=dense)


def learning_rate_of(optimizer: Config) -> float:
    """Returns the learning rate of this optimizer, or a first try where the config names none."""
    if optimizer.learning_rate is not None:
        return optimizer.learning_rate
    if optimizer.name not in _FIRST_RATES:
        raise UsageError(
            f"nobody here knows the units of {optimizer.name}: set config.optimizer.learning_rate."
        )
    return _FIRST_RATES[optimizer.name]


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
        arguments["scale"] = _scale(scale)
    return arguments


def _scale(fields: dict[str, Any]) -> signax.Scale | float:
    if "fixed" in fields:
        if len(fields) > 1:
            raise UsageError(
                "config.optimizer.scale.fixed is R itself: leave the other fields of"
                " config.optimizer.scale out."
            )
        return fields["fixed"]
    scope = fields.get("scope", "")
    if scope.isdecimal():
        fields = fields | {"scope": int(scope)}
    try:
        return signax.Scale(**fields)
    except ValueError as error:
        raise UsageError(f"config.optimizer.scale: {error}") from error


def _check_arguments(
    name: str, arguments: dict[str, Any], accepted: Mapping[str, inspect.Parameter]
) -> None:
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for argument in arguments:
        if argument not in accepted and not takes_any:
            takes = [field for field in get_config().optimizer if field in accepted]
            raise UsageError(
                f"{name} takes no {argument!r}: leave config.optimizer.{argument} out. "
                f"It takes: {', '.join(takes)}."
            )
    for argument, parameter in accepted.items():
        if _is_needed(parameter) and argument not in ("learning_rate", "axis_name", *arguments):
            raise UsageError(f"{name} needs a {argument}: set config.optimizer.{argument}.")


def _is_needed(parameter: inspect.Parameter) -> bool:
    is_collector = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_collector
