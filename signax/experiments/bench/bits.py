"""(b) Bits per coordinate of every algorithm and wire: a formula, and what the compiler made of it.

The formulas count sign planes, counts and averages. The rest is small and does not grow with the
model: padding of a word or a slice, who votes, one scale for each leaf, the step's metrics.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signax
from signax import baselines
from signax.experiments.workers import AXIS_NAME
from signax.wire import _cost

# A matrix, for PowerSGD. Its size is divisible by 8 M for each M up to 8: nothing is padded.
_SHAPE = (160, 168)
_SIZE = 160 * 168
# Bits on top of the formula, in all: the mean loss (two float32, all-reduced), scales of one leaf
# sent to each server and back, who votes.
_OVERHEAD = 2 * 2 * 32 + 8 * (2 * 32 + 16)

MakeTx = Callable[..., optax.GradientTransformation]
Formula = Callable[[int, str], float]  # number of workers, wire -> bits per coordinate


class Algorithm(NamedTuple):
    """One algorithm in one setting."""

    name: str
    make: MakeTx  # called with axis_name=, and wire= where there are several
    wires: tuple[str, ...]
    formula: Formula  # of the wires that lay out bits: packed and radix
    num_planes: int = 1  # counted for each coordinate: what the lanes must hold is M times this


def _up_and_down(up: float, down: float) -> Formula:
    return lambda m, wire: (up + down) * (m - 1) / m


_BITS = ("packed", "lanes", "float32")
_ALL = ("packed", "radix", "lanes", "float32")
_ONE = ("packed",)


def algorithms() -> Iterator[Algorithm]:
    """Every algorithm of the library that sends something."""
    one = lambda m, wire: _cost.majority_bits(m, "random", wire)  # noqa: E731
    two = lambda m, wire: _cost.majority_bits(m, "zero", wire)  # noqa: E731
    yield Algorithm("dense_sgd", _with(signax.dense_sgd), (), lambda m, wire: _cost.dense_bits(m))
    for ties, formula, planes in (("random", one, 1), ("zero", two, 2)):
        for fn in (signax.sign_sgd, signax.signum):
            name = f'{fn.__name__}(ties="{ties}")'
            wires = _ALL if ties == "zero" else _BITS
            yield Algorithm(name, _with(fn, ties=ties), wires, formula, planes)
    yield Algorithm(
        'noisy_sign_sgd(ties="random")',
        _with(signax.noisy_sign_sgd, noise_scale=1.0, ties="random"), _BITS, one,
    )  # fmt: skip
    yield Algorithm(
        'distributed_lion(ties="random")',
        _with(signax.distributed_lion, ties="random"), _BITS, one,
    )  # fmt: skip
    yield Algorithm("ssdm", _with(signax.ssdm), _ALL, _cost.average_signs_bits)
    yield Algorithm(
        "ssdm(rescale=True)", _with(signax.ssdm, rescale=True), _ONE, _up_and_down(1, 32)
    )
    yield Algorithm("ef_sign_sgd", _with(signax.ef_sign_sgd), _ONE, _up_and_down(1, 32))
    yield Algorithm(
        'ef_sign_sgd(down_dtype="bfloat16")',
        _with(signax.ef_sign_sgd, down_dtype="bfloat16"), _ONE, _up_and_down(1, 16),
    )  # fmt: skip
    yield Algorithm("double_squeeze", _with(signax.double_squeeze), _ONE, _up_and_down(1, 1))
    yield from _baselines()


def _baselines() -> Iterator[Algorithm]:
    yield Algorithm("bfloat16_sgd", _with(baselines.bfloat16_sgd), _ONE, _up_and_down(16, 16))
    yield Algorithm("qsgd(levels=7)", _with(baselines.qsgd, levels=7), _ONE, _up_and_down(4, 32))
    rank, (rows, columns) = 4, _SHAPE
    factors = 32 * rank * (rows + columns) / _SIZE
    yield Algorithm(
        f"power_sgd(rank={rank}), {rows} by {columns}",
        _with(baselines.power_sgd, rank=rank), ("two all-reduces",), _up_and_down(factors, factors),
    )  # fmt: skip
    # A value and a position of 32 bits each; everyone's go to everyone.
    kept = 64 * math.ceil(0.01 * _SIZE) / _SIZE
    yield Algorithm(
        "top_k_sgd(fraction=0.01)",
        _with(baselines.top_k_sgd, fraction=0.01), ("all-gather",), lambda m, wire: kept * (m - 1),
    )  # fmt: skip


def rows(most_workers: int, *, is_quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row for each algorithm, wire and number of workers; quick: one wire and one number."""
    for num_workers in range(most_workers if is_quick else 2, most_workers + 1):
        for algorithm in algorithms():
            for wire in (algorithm.wires or (None,))[: 1 if is_quick else None]:
                yield row(algorithm, wire, num_workers)


def tolerance(num_workers: int) -> float:
    """By how many bits per coordinate the compiled program may exceed a formula."""
    return _OVERHEAD * (num_workers - 1) / _SIZE


def row(algorithm: Algorithm, wire: str | None, num_workers: int) -> dict[str, Any]:
    arguments = {} if wire is None or len(algorithm.wires) == 1 else {"wire": wire}
    report = _compiled(algorithm.make(axis_name=AXIS_NAME, **arguments), num_workers)
    return {
        "algorithm": algorithm.name,
        "wire": wire or "all-reduce",
        "num_workers": num_workers,
        "formula": _formula(algorithm, wire, num_workers),
        "bits_per_coordinate": report.bits_per_coordinate,
        "num_collectives": report.num_collectives,
        "collectives": [f"{c.kind} {c.dtype}[{c.elements}]" for c in report.collectives],
    }


def _formula(algorithm: Algorithm, wire: str | None, num_workers: int) -> float:
    if wire == "lanes":
        lane_bits = (algorithm.num_planes * num_workers).bit_length()
        return _cost.dense_bits(num_workers) / (32 // lane_bits)
    if wire == "float32":
        return _cost.dense_bits(num_workers)
    return algorithm.formula(num_workers, wire or "packed")


def _compiled(tx: optax.GradientTransformation, num_workers: int) -> signax.WireReport:
    mesh = signax.make_worker_mesh(num_workers, AXIS_NAME)
    params = np.ones(_SHAPE, np.float32)
    step = signax.make_train_step(lambda p, batch: jnp.sum(p) * jnp.mean(batch), tx, mesh)
    state = signax.init_train_state(params, tx, mesh)
    batch = jax.ShapeDtypeStruct((num_workers, 1), jnp.float32)
    return signax.wire_bits(step, state, batch)


def _with(fn: Callable[..., Any], **fixed: Any) -> MakeTx:
    return lambda **arguments: fn(0.1, **fixed, **arguments)
