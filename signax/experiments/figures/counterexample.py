"""The counterexample (5)-(6) to signSGD: who leaves the line z1 + z2 = 2?

f is the mean of two squares <a_n, x>^2 with a_1 = (1 + e, -1 + e), a_2 = (-1 + e, 1 + e) and its
minimum at the origin. On the line both gradients have the signs (1, -1) or (-1, 1), so signs alone
can only walk along it. One worker draws n at each step (section 3.2); two workers own one square
each and have full gradients (section 4.3).

Left open by the paper, chosen here:
  e           0.5
  x0          (2, 0) on the line
  step        0.01 for all but SGD, 0.1 for SGD; K = 4,000
  methods     the paper's, and the cures of this library
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import signax
from signax.experiments.compare import compare
from signax.experiments.comparison import Comparison
from signax.experiments.figures.made import Claim, Made, tidy

_E, _RATE, _AXIS = 0.5, 0.01, "workers"
_A = jnp.array([[1 + _E, -1 + _E], [-1 + _E, 1 + _E]])
_START = jnp.array([2.0, 0.0])
_SHARED = signax.Scale(shared=True)

# With one worker, n is drawn; with two, worker n has a_n.
_STUCK = {
    "signSGD": lambda rate: signax.sign_sgd(rate, axis_name=_AXIS),
    "Signum": lambda rate: signax.signum(rate, axis_name=_AXIS),
    "SSDM, deterministic sign": lambda rate: signax.ssdm(
        rate, axis_name=_AXIS, sign="deterministic"
    ),
}
_METHODS = {
    **_STUCK,
    "SSDM": lambda rate: signax.ssdm(rate, axis_name=_AXIS),
    "SSDM, shared scale": lambda rate: signax.ssdm(rate, axis_name=_AXIS, scale=_SHARED),
    "noisy signSGD, b = 3": lambda rate: signax.noisy_sign_sgd(rate, 3.0, axis_name=_AXIS),
    "EF-signSGD": lambda rate: signax.ef_sign_sgd(rate, axis_name=_AXIS),
    "SGD": lambda rate: signax.dense_sgd(10 * rate, axis_name=_AXIS),
}

_QUICK = ("signSGD", "Signum", "SSDM", "SGD")
_CASES = ("1 worker, drawn square", "2 workers, a square each")


def make(is_quick: bool) -> Made:
    """Runs every method with one worker that draws, and with two that own a square each."""
    num_steps, seeds = (1000, range(2)) if is_quick else (4000, range(5))
    methods = {name: _METHODS[name] for name in _QUICK} if is_quick else _METHODS
    results = {
        case: _run(methods, num_workers, num_steps, seeds)
        for num_workers, case in enumerate(_CASES, start=1)
    }
    columns = [
        result.columns() | {"case": np.full(result["loss"].size, case)}
        for case, result in results.items()
    ]
    table = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    settings = f"K = {num_steps:,}, {len(seeds)} repetitions"
    claims = tuple(_claim(case, result) for case, result in results.items())
    return Made(_draw(results), {"": table}, settings, claims)


def _run(methods: Any, num_workers: int, num_steps: int, seeds: range) -> Comparison:
    def sample(key, worker):
        drawn = jax.random.randint(key, (1,), 0, 2)
        return _A[drawn if num_workers == 1 else worker[None]]

    return compare(
        lambda x, a: jnp.sum(a @ x) ** 2,
        _START,
        sample,
        methods,
        learning_rates=[_RATE],
        num_workers=num_workers,
        num_steps=num_steps,
        seeds=seeds,
        metrics={
            "from_line": lambda x: jnp.abs(jnp.sum(x) - 2.0),
            "distance": optax.tree.norm,
            "x": lambda x: x,
        },
        eval_steps=min(num_steps, 1000),
    )


def _claim(case: str, result: Comparison) -> Claim:
    """Who ever leaves the line, and how far from the minimum it ends."""
    farthest = result["from_line"].max(axis=(1, 2, 3, 4))
    end = result.final("distance").mean(axis=(1, 2, 3))
    rounding = 1e-3  # 4,000 float32 additions of 0.01 to numbers up to 40
    leaves = farthest > rounding
    measured = "; ".join(
        f"{name}: {'leaves' if leave else 'stays'}, ends {d:.2g} from the minimum"
        for name, leave, d in zip(result.methods, leaves, end, strict=True)
    )
    # With one worker a momentum mixes the two squares and can leave the line: what the paper says
    # of momentum is about workers that own one square each.
    claimed = {"signSGD"} if case == _CASES[0] else {*_STUCK} & {*result.methods}
    text = f"{case}: {', '.join(sorted(claimed))} stay on the line, SSDM and SGD leave it"
    stays = dict(zip(result.methods, ~leaves, strict=True))
    holds = all(stays[name] for name in claimed) and not (stays["SSDM"] or stays["SGD"])
    return Claim(text, measured, bool(holds))


def _draw(results: dict[str, Comparison]) -> Figure:
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    panels: Any = figure.subplots(2, 2, width_ratios=[1, 1.3])
    for row, (case, result) in zip(panels, results.items(), strict=True):
        _draw_paths(row[0], result)
        for i, name in enumerate(result.methods):
            distance = result["distance"][i, 0, 0].mean(axis=0)
            row[1].plot(result.steps, distance, label=name, **_style(name))
        row[0].set_title(f"{case}: paths", fontsize=10)
        row[1].set_title(f"{case}: distance", fontsize=10)
        row[1].set_yscale("log")
        row[1].set_xlabel("steps")
        row[1].set_ylabel("distance to the minimum")
        row[1].set_ylim(1e-3, 5)
        tidy(row[1])
    figure.legend(*panels[1, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _style(name: str) -> dict[str, Any]:
    """Every other one dashed: some take the same way."""
    index = [*_METHODS].index(name)
    return {"color": f"C{index}", "ls": "--" if index % 2 else "-", "zorder": 2 + index}


def _draw_paths(ax: Any, result: Comparison) -> None:
    axis = np.linspace(-2, 4, 121)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)
    f = ((z @ np.asarray(_A).T) ** 2).mean(axis=-1)
    ax.contour(axis, axis, f, levels=np.geomspace(0.05, 50, 10), colors="0.85", linewidths=0.8)
    ax.plot([-2, 4], [4, -2], color="0.4", ls=":", lw=1)
    for i, name in enumerate(result.methods):
        path = result["x"][i, 0, 0, 0]
        ax.plot(path[:, 0], path[:, 1], lw=1, **_style(name))
    ax.plot(*_START, "k.")
    ax.plot(0, 0, "k*")
    ax.set_xlim(-1.5, 3.5)
    ax.set_ylim(-1.5, 2.5)
    ax.set_aspect("equal")
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
