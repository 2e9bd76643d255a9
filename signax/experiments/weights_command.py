"""`signax weights`: which methods follow the weights of workers that differ, as a Markdown table.

Three workers hold f_n = w_n / 2 |x - b_n|^2 in three dimensions. Their mean has its minimum at the
mean of the b_n weighted by w_n; a method that knows only signs cannot see the w_n. Beside it the
example in one dimension, f_1 = (x-2)^2/4 and f_2 = 3(x+2)^2/4 from x = sqrt(2)-1, whose mean has
its minimum at -1 and where the stochastic signs of SSDM as printed cancel for ever. The step falls
as 4 / (k + 80), but for one column, where it stays: which methods come to rest without a schedule?
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signax
from signax.experiments.errors import Parser, UsageError

_DESCRIPTION = """\
Runs every method on quadratics of workers that differ, with full gradients, and prints where each
ends as a table in Markdown, after a minute or more."""

_AXIS = "workers"
_SHARED = signax.Scale("linf", "leaf", shared=True)
CONSTANT_STEP = 0.01
EQUAL, UNEQUAL = (1.0, 1.0, 1.0), (1.0, 8.0, 0.5)
OPTIMA = ((-1.0, 0.5, 2.0), (1.0, -1.5, 0.0), (2.0, 1.0, -0.5))

# Each is called with a learning rate and the axis; the defaults are the library's own.
METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "dense_sgd": signax.dense_sgd,
    "ef_sign_sgd": signax.ef_sign_sgd,
    "double_squeeze": signax.double_squeeze,
    "one_bit_sgd": signax.one_bit_sgd,
    "ef21": signax.ef21,
    "ef21(shared=False)": lambda lr, **kw: signax.ef21(lr, shared=False, **kw),
    "diana": signax.diana,
    "ssdm(rescale=True)": lambda lr, **kw: signax.ssdm(lr, rescale=True, **kw),
    'ssdm(scale=Scale("linf", "leaf", shared=True))': lambda lr, **kw: signax.ssdm(
        lr, scale=_SHARED, **kw
    ),
    "ssdm": signax.ssdm,
    'ssdm(sign="deterministic")': lambda lr, **kw: signax.ssdm(lr, sign="deterministic", **kw),
    "sign_sgd": signax.sign_sgd,
    "signum": signax.signum,
    "noisy_sign_sgd(noise_scale=10)": lambda lr, **kw: signax.noisy_sign_sgd(lr, 10.0, **kw),
    "distributed_lion": signax.distributed_lion,
    'distributed_lion(aggregate="average")': lambda lr, **kw: signax.distributed_lion(
        lr, aggregate="average", **kw
    ),
}


class Row(NamedTuple):
    """Where a method ends."""

    method: str
    equal: float  # largest distance of a coordinate from the minimiser, equal weights
    unequal: float  # the same, unequal weights
    constant: float  # equal weights, `CONSTANT_STEP`
    moved: float  # the largest difference of the two ends
    in_one_dimension: float  # where it ends; the minimiser is -1


def main(argv: Sequence[str]) -> int:
    """Prints the table and returns the exit status."""
    parser = Parser(prog="signax weights", description=_DESCRIPTION, allow_abbrev=False)
    add: Any = parser.add_argument
    add("--num_steps", type=int, default=3000, metavar="N", help="of each method; default: 3000")
    try:
        num_steps = parser.parse_args(argv).num_steps
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    if num_steps < 1:
        raise UsageError(f"--num_steps={num_steps}: at least 1.")
    print(table([row(method, num_steps) for method in METHODS]))
    return 0


def row(method: str, num_steps: int) -> Row:
    """Runs one method on both problems with a falling step, and once with a constant one."""
    make = METHODS[method]
    decaying, constant = (
        make(step, axis_name=_AXIS) for step in (lambda k: 4.0 / (k + 80.0), CONSTANT_STEP)
    )
    start = (0.0, 0.0, 0.0)
    equal = _end(decaying, EQUAL, OPTIMA, start, num_steps)
    unequal = _end(decaying, UNEQUAL, OPTIMA, start, num_steps)
    resting = _end(constant, EQUAL, OPTIMA, start, num_steps)
    line = _end(decaying, (0.5, 1.5), ((2.0,), (-2.0,)), (math.sqrt(2) - 1,), num_steps)
    return Row(
        method,
        _distance(equal, EQUAL),
        _distance(unequal, UNEQUAL),
        _distance(resting, EQUAL),
        float(np.abs(equal - unequal).max()),
        float(line[0]),
    )


def _distance(end: np.ndarray, weights: Sequence[float]) -> float:
    minimiser = np.asarray(weights) @ np.asarray(OPTIMA) / sum(weights)
    return float(np.abs(end - minimiser).max())


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    weights = ", ".join(f"{w:g}" for w in UNEQUAL)
    lines = [
        f"| method | from the minimiser, weights 1, 1, 1 | weights {weights} | end moved by |"
        f" step {CONSTANT_STEP:g} | in one dimension |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{r.method}` | {r.equal:.3f} | {r.unequal:.3f} | {r.moved:.3f} | {r.constant:.3f} |"
        f" {r.in_one_dimension:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def _end(
    tx: optax.GradientTransformation,
    weights: Sequence[float],
    optima: Sequence[Sequence[float]],
    start: Sequence[float],
    num_steps: int,
) -> np.ndarray:
    """Where f_n = w_n / 2 |x - b_n|^2 with full gradients leads to from `start`."""

    def worker(weight, optimum):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(weight * (x - optimum), state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.asarray(start)
        return jax.lax.scan(step, (x, tx.init(x)), length=num_steps)[0][0]

    workers = jax.jit(jax.vmap(worker, axis_name=_AXIS))
    return np.asarray(workers(jnp.asarray(weights), jnp.asarray(optima)))[0]
