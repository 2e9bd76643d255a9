"""The table of named algorithms: one row each, over which every generic property is tested."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import daily
from signax import baselines
from workers import WORKERS

LINF = signax.Scale("linf", "leaf", shared=True)


class Row(NamedTuple):
    """An optimizer and what sets it apart."""

    make: Callable[..., optax.GradientTransformationExtraArgs]  # (learning_rate, **kwargs)
    learning_rate: float = 0.01
    tolerance: float = 0.15  # how near to the optimum of the quadratic it must come
    hyperparams: tuple[str, ...] = ("learning_rate",)  # those that inject_hyperparams may trace
    takes_accumulator: bool = False
    is_ternary: bool = True  # an update is -lr, 0 or +lr
    equals: Callable[[float], optax.GradientTransformation] | None = None  # for one worker
    sums_floats: bool = False  # so that mappings agree to rounding, and replicas exactly
    init_needs_axis: bool = False
    num_memories: int = 2  # float leaves in the state, for parameters of two leaves


def lion(learning_rate: float) -> optax.GradientTransformation:
    """`optax.lion` without decay, whose link would ask for the parameters."""
    return optax.chain(optax.scale_by_lion(), optax.scale_by_learning_rate(learning_rate))


OPTIMIZERS = {
    "sign_sgd": Row(signax.sign_sgd, equals=optax.sign_sgd),
    "sign_sgd coins": Row(functools.partial(signax.sign_sgd, ties="random")),
    "signum": Row(
        signax.signum,
        hyperparams=("learning_rate", "beta"),
        takes_accumulator=True,
        equals=lambda lr: optax.signum(lr, 0.9),
    ),
    "ssdm": Row(
        functools.partial(signax.ssdm, scale=LINF),
        hyperparams=("learning_rate", "beta", "key"),
        takes_accumulator=True,
        is_ternary=False,
        tolerance=0.5,
    ),
    "ssdm of the paper": Row(
        signax.ssdm,
        hyperparams=("learning_rate", "beta", "key"),
        takes_accumulator=True,
        is_ternary=False,
        tolerance=0.5,
    ),
    "ssdm running": Row(
        functools.partial(signax.ssdm, scale=signax.Scale("linf", 4, shared=True, running=True)),
        hyperparams=("learning_rate", "beta", "key"),
        is_ternary=False,
        tolerance=0.5,
    ),
    "ssdm norms sent": Row(
        functools.partial(signax.ssdm, rescale=True),
        hyperparams=("learning_rate", "beta", "key"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        tolerance=0.5,
    ),
    "ssdm deterministic": Row(
        functools.partial(signax.ssdm, sign="deterministic"),
        hyperparams=("learning_rate", "beta"),
        takes_accumulator=True,
        is_ternary=False,
    ),
    "noisy_sign_sgd": Row(
        functools.partial(signax.noisy_sign_sgd, noise_scale=0.25),
        hyperparams=("learning_rate", "noise_scale", "key"),
    ),
    "distributed_lion": Row(
        signax.distributed_lion,
        hyperparams=("learning_rate", "b1", "b2"),
        takes_accumulator=True,
        tolerance=0.3,  # its momentum remembers 100 steps
        equals=lion,
    ),
    "distributed_lion average": Row(
        functools.partial(signax.distributed_lion, aggregate="average"),
        hyperparams=("learning_rate", "b1", "b2"),
        takes_accumulator=True,
        is_ternary=False,
        tolerance=0.3,
        equals=lion,
    ),
    "ef_sign_sgd": Row(
        signax.ef_sign_sgd, 0.1, takes_accumulator=True, is_ternary=False, sums_floats=True
    ),
    "double_squeeze": Row(
        signax.double_squeeze,
        0.1,
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        init_needs_axis=True,
        num_memories=3,  # two residuals on a worker and its slice of the servers'
    ),
    "ef21": Row(
        signax.ef21,
        0.1,
        hyperparams=("learning_rate", "beta", "key"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,  # the mean of the workers' scales
        num_memories=6,  # momentum, h_n and h
    ),
    "diana": Row(
        signax.diana,
        0.1,
        hyperparams=("learning_rate", "alpha", "key"),
        is_ternary=False,
    ),
    "diana momentum": Row(
        functools.partial(signax.diana, momentum=0.5, scale=signax.Scale("linf")),
        0.05,
        hyperparams=("learning_rate", "alpha", "key"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        num_memories=6,  # h_n, h and the trace
    ),
    "one_bit_sgd": Row(
        signax.one_bit_sgd, 0.1, takes_accumulator=True, is_ternary=False, sums_floats=True
    ),
    "one_bit_adam": Row(
        functools.partial(signax.one_bit_adam, b2=0.9, freeze_steps=2),
        hyperparams=("learning_rate", "b1"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        init_needs_axis=True,
        num_memories=7,  # momentum and variance as well
    ),
    "dense_sgd": Row(signax.dense_sgd, 0.1, is_ternary=False, equals=optax.sgd, sums_floats=True),
    "dense_sgd momentum": Row(
        functools.partial(signax.dense_sgd, momentum=0.5),
        0.1,
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        equals=lambda lr: optax.sgd(lr, 0.5),
    ),
    # One baseline for each way to the network: bytes to servers, all-reduces, an all-gather.
    "qsgd": Row(
        functools.partial(baselines.qsgd, momentum=0.5),
        0.05,
        hyperparams=("learning_rate", "momentum", "key"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
    ),
    "power_sgd": Row(
        functools.partial(baselines.power_sgd, rank=1),  # fewer numbers than a 3 by 2 matrix
        0.1,
        hyperparams=("learning_rate", "key"),
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
        num_memories=3,  # residuals, and Q of the matrix
    ),
    "top_k_sgd": Row(
        functools.partial(baselines.top_k_sgd, fraction=0.5),
        0.1,
        takes_accumulator=True,
        is_ternary=False,
        sums_floats=True,
    ),
}
every = pytest.mark.parametrize("name", OPTIMIZERS)
# One row for each kind of memory and each way to the network and back.
KINDS = (
    "signum",
    "ssdm",
    "noisy_sign_sgd",
    "double_squeeze",
    "ef21",
    "one_bit_adam",
    "dense_sgd momentum",
    "power_sgd",
)
every_kind = pytest.mark.parametrize("name", daily(OPTIMIZERS, KINDS))
NUM_WORKERS = 3


def params(dtype: Any = jnp.float32) -> dict[str, Any]:
    return {"kernel": jnp.ones((3, 2), dtype), "bias": jnp.ones((), dtype)}


def gradients(num_workers: int, step: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    rows = jax.tree.map(lambda p: rng.normal(size=(num_workers, *p.shape)), params())
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), rows)


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: (jnp.shape(x), jnp.asarray(x).dtype, jnp.asarray(x).weak_type), tree
    )


def init_on_workers(tx: optax.GradientTransformation, params: Any) -> Any:
    """The states of all workers, one row each."""
    return jax.vmap(lambda _: tx.init(params), axis_name=WORKERS)(jnp.arange(NUM_WORKERS))


def one_worker(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
