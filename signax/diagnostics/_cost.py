r"""Should I compress at all? The step's time on a network of a given speed.

$$ \text{step} = \text{gradient} + \text{local work} + \frac{\text{bits sent}}{\text{bandwidth}} $$

The first two are measured here, on one device (the local work is the optimizer's); the bits are the
formulas that `signax.wire_bits` confirms. Latency, overlap of computing and sending, and a backward
pass slower under load are left out. At high bandwidth the local work of packing and counting is
what signs cost; the break-even bandwidth is where they stop to pay.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax

from signax._optimizers import _dense, _majority, _ssdm
from signax.wire import _cost

DENSE = "dense_sgd"
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class MethodCost:
    """What one step of one method costs one worker."""

    name: str
    bits_per_coordinate: float  # sent by one worker in one step
    local_seconds: float | None  # of the optimizer on one worker, measured; None without bandwidth
    step_seconds: float | None  # predicted
    speedup: float | None  # of dense SGD's step


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a step by method, for `num_workers` workers."""

    num_workers: int
    num_coordinates: int
    bandwidth: float | None  # bits per second that one worker sends, and receives at the same time
    compute_seconds: float | None  # one worker's gradient
    methods: tuple[MethodCost, ...]
    break_even_bandwidth: float | None  # majority vote of two bits: slower links gain by it

    def of(self, name: str) -> MethodCost:
        return next(method for method in self.methods if method.name == name)


METHODS: dict[str, tuple[Callable, Callable[[int], float]]] = {
    DENSE: (lambda: _dense.dense_sgd(0.1), _cost.dense_bits),
    'majority vote, ties="zero"': (
        lambda: _majority.sign_sgd(0.1),
        lambda m: _cost.majority_bits(m, "zero"),
    ),
    'majority vote, ties="random"': (
        lambda: _majority.sign_sgd(0.1, ties="random"),
        lambda m: _cost.majority_bits(m, "random"),
    ),
    "ssdm": (lambda: _ssdm.ssdm(0.1), _cost.average_signs_bits),
}
VOTE = 'majority vote, ties="zero"'


def cost_of(
    params: Any,
    num_workers: int,
    bandwidth: float | None,
    gradient: Callable[[], Any],
    compute_seconds: float | None,
) -> Cost:
    """Bits by formula; with a bandwidth also times, `gradient()` being one worker's."""
    d = sum(x.size for x in jax.tree.leaves(params))
    bits = {name: formula(num_workers) for name, (_, formula) in METHODS.items()}
    if bandwidth is None:
        rows = tuple(MethodCost(name, bits[name], None, None, None) for name in METHODS)
        return Cost(num_workers, d, None, compute_seconds, rows, None)
    compute = seconds_of(gradient) if compute_seconds is None else compute_seconds
    local = {name: _local_seconds(name, params) for name in METHODS}
    step = {name: compute + local[name] + bits[name] * d / bandwidth for name in METHODS}
    rows = tuple(
        MethodCost(name, bits[name], local[name], step[name], step[DENSE] / step[name])
        for name in METHODS
    )
    extra = local[VOTE] - local[DENSE]
    saved = (bits[DENSE] - bits[VOTE]) * d
    return Cost(num_workers, d, bandwidth, compute, rows, saved / extra if extra > 0 else None)


def seconds_of(fn: Callable[[], Any]) -> float:
    """The median of a few calls, after one that compiles."""
    jax.block_until_ready(fn())
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - start)
    return median(times)


def _local_seconds(name: str, params: Any) -> float:
    init, update = _jitted(name)
    state = init(params)
    return seconds_of(lambda: update(params, state, params))


@functools.cache
def _jitted(name: str) -> tuple[Callable, Callable]:
    tx = METHODS[name][0]()
    return jax.jit(tx.init), jax.jit(tx.update)
