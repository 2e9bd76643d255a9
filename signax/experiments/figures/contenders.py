"""Every method of the library, and its rivals, as `signax figures methods` runs them.

A method is a function from a learning rate (a number or a schedule) to a transformation; all have
their default momentum. The grids are in the units of the step: a sign moves every coordinate by the
learning rate; a mean of signs by at most that, and mostly by far less; a gradient by its own size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optax

import signax
from signax import baselines
from signax.experiments.resolve import resolve
from signax.experiments.workers import AXIS_NAME

_SIGN = (0.0001, 0.0003, 0.001, 0.003)
_MEAN_OF_SIGNS = (0.003, 0.01, 0.03, 0.1)
_PAPER = (0.01, 0.1, 1.0, 10.0)  # R is the l2 norm: the mean of a sign is about 1 / sqrt(d)
_GRADIENT = (0.03, 0.1, 0.3, 1.0)
_ADAM = (0.0003, 0.001, 0.003, 0.01)


DENSE_STEPS = {"one_bit_adam": 100}  # at the start, sent in full


class Contender(NamedTuple):
    """A method, how it is grouped in the picture, and the learning rates to try."""

    make: Callable[..., optax.GradientTransformation]  # (learning_rate, *, axis_name)
    kind: str
    grid: tuple[float, ...]


def _compressed_adamw(learning_rate: Any, *, axis_name: Any) -> optax.GradientTransformation:
    return optax.chain(signax.compressed_mean(axis_name), optax.adamw(learning_rate))


def _ssdm(**scale: Any) -> Callable[..., optax.GradientTransformation]:
    return partial(signax.ssdm, scale=signax.Scale(**scale))


DENSE, VOTE, MEAN, MEMORY, RIVAL = (
    "dense",
    "a vote",
    "a mean of signs",
    "signs with error memory",
    "not a sign",
)

CONTENDERS = {
    "SGD, momentum": Contender(partial(signax.dense_sgd, momentum=0.9), DENSE, _GRADIENT),
    "SGD": Contender(signax.dense_sgd, DENSE, _GRADIENT),
    "sign_sgd": Contender(signax.sign_sgd, VOTE, _SIGN),
    "sign_sgd, random ties": Contender(partial(signax.sign_sgd, ties="random"), VOTE, _SIGN),
    "signum": Contender(signax.signum, VOTE, _SIGN),
    "signum, random ties": Contender(partial(signax.signum, ties="random"), VOTE, _SIGN),
    "noisy_sign_sgd": Contender(partial(signax.noisy_sign_sgd, noise_scale=0.01), VOTE, _SIGN),
    "distributed_lion": Contender(signax.distributed_lion, VOTE, _SIGN),
    "lion, averaged": Contender(
        partial(signax.distributed_lion, aggregate="average"), MEAN, _MEAN_OF_SIGNS
    ),
    "ssdm, as printed": Contender(signax.ssdm, MEAN, _PAPER),
    "ssdm, deterministic sign": Contender(
        partial(signax.ssdm, sign="deterministic"), MEAN, _MEAN_OF_SIGNS
    ),
    "ssdm, norms sent": Contender(partial(signax.ssdm, rescale=True), MEAN, _GRADIENT),
    "ssdm, linf of a leaf": Contender(_ssdm(norm="linf", scope="leaf"), MEAN, _MEAN_OF_SIGNS),
    "ssdm, shared linf of a leaf": Contender(
        _ssdm(norm="linf", scope="leaf", shared=True), MEAN, _MEAN_OF_SIGNS
    ),
    "ssdm, shared linf of 256": Contender(
        _ssdm(norm="linf", scope=256, shared=True), MEAN, _MEAN_OF_SIGNS
    ),
    "ssdm, shared linf of 32": Contender(
        _ssdm(norm="linf", scope=32, shared=True), MEAN, _MEAN_OF_SIGNS
    ),
    "ssdm, shared running linf": Contender(
        _ssdm(norm="linf", scope="leaf", shared=True, running=True), MEAN, _MEAN_OF_SIGNS
    ),
    "sto-sign, R = 0.1": Contender(partial(signax.ssdm, beta=0.0, scale=0.1), MEAN, _MEAN_OF_SIGNS),
    "ef_sign_sgd": Contender(signax.ef_sign_sgd, MEMORY, _GRADIENT),
    "double_squeeze": Contender(signax.double_squeeze, MEMORY, _GRADIENT),
    "ef21": Contender(signax.ef21, MEMORY, _GRADIENT),
    "diana": Contender(signax.diana, MEMORY, _GRADIENT),
    "one_bit_sgd": Contender(signax.one_bit_sgd, MEMORY, _GRADIENT),
    "one_bit_adam": Contender(
        partial(signax.one_bit_adam, freeze_steps=DENSE_STEPS["one_bit_adam"]), MEMORY, _ADAM
    ),
    "compressed_mean, adamw": Contender(_compressed_adamw, MEMORY, _ADAM),
    "qsgd, 7 levels": Contender(baselines.qsgd, RIVAL, _GRADIENT),
    "tern_grad": Contender(baselines.tern_grad, RIVAL, _GRADIENT),
    "power_sgd, rank 4": Contender(baselines.power_sgd, RIVAL, _GRADIENT),
    "random_k_sgd, 1 %": Contender(baselines.random_k_sgd, RIVAL, _GRADIENT),
    "top_k_sgd, 1 %": Contender(baselines.top_k_sgd, RIVAL, _GRADIENT),
}
QUICK = ("SGD, momentum", "sign_sgd", "ssdm, shared linf of a leaf", "double_squeeze")


def optimizer(name: str, learning_rate: Any, num_steps: int) -> optax.GradientTransformation:
    """The contender with a step that decays linearly to zero."""
    schedule = optax.linear_schedule(learning_rate, 0.0, num_steps)
    return CONTENDERS[name].make(schedule, axis_name=AXIS_NAME)


def enter(name: str) -> None:
    """Adds the method `package.module:function`, whose units nobody knows: a wide grid."""
    CONTENDERS[name] = Contender(resolve(name, {}), RIVAL, (0.001, 0.01, 0.1, 1.0))
