"""Figure 4: majority vote of M workers on Rosenbrock's function with d = 10.

f(x_k) against k, mean of 10 repetitions, mini-batch 1; left a constant step of 0.02, right
0.02 / sqrt(k + 1).

Left open by the paper, chosen here:
  noise       nu = 1. The draw of i alone is noise enough: seven or eight of the nine f_i do not
              touch a coordinate, whose sign is then a coin of the added noise
  x0          (-0.5, ..., -0.5), where f = 526.5; the minimum is 0 at (1, ..., 1)
  steps       K = 6,000
  M           1 to 16, all of them; the plot has 1, 2, 3, 4, 7, 8, 15, 16
  plateau     mean of f over the last half of the steps
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import signax
from signax.experiments.compare import compare
from signax.experiments.comparison import Comparison
from signax.experiments.figures import rosenbrock_problem as problem
from signax.experiments.figures.made import Claim, Made, tidy

_NOISE, _STEP = 1.0, 0.02
_DRAWN = (1, 2, 3, 4, 7, 8, 15, 16)
_POWERS = {"constant": 0.0, "decreasing": 0.5}


def make(is_quick: bool) -> Made:
    """Runs 10 repetitions of both step sizes for every M."""
    num_steps, repetitions = (1000, 4) if is_quick else (6000, 10)
    workers = [1, 2, 7, 8] if is_quick else list(range(1, 17))
    result = compare(
        problem.loss,
        problem.START,
        problem.sampler(_NOISE, 1),
        {"majority vote": _vote},
        learning_rates=[*_POWERS.values()],
        num_workers=workers,
        num_steps=num_steps,
        seeds=range(repetitions),
        metrics={"f": problem.value},
        eval_steps=num_steps // 20,
    )
    plateau = _plateau(result)
    settings = f"K = {num_steps:,}, {repetitions} repetitions, M = {workers[0]} to {workers[-1]}"
    table = result.columns()
    table["power"] = table.pop("learning_rate")
    return Made(_draw(result), {"": table}, settings, _claims(workers, plateau))


def _vote(power: Any) -> Any:
    """gamma_k = 0.02 / (k + 1)^power: both steps are rows of one program, on the same batches."""
    return signax.sign_sgd(lambda count: _STEP * (count + 1.0) ** -power, axis_name="workers")


def _plateau(result: Comparison) -> np.ndarray:
    """Mean of f over the last half of the steps: [step size, M, seed]."""
    is_late = result.steps >= result.steps[-1] // 2
    return result["f"][0][..., is_late].mean(axis=-1)


def _claims(workers: list[int], plateau: np.ndarray) -> tuple[Claim, ...]:
    mean = plateau.mean(axis=-1)  # [step size, M]
    error = plateau.std(axis=-1, ddof=1) / np.sqrt(plateau.shape[-1])
    first, last = 0, len(workers) - 1
    pairs = [i for i in range(1, len(workers)) if workers[i] == workers[i - 1] + 1]
    pairs = [i for i in pairs if workers[i] % 2 == 0]  # M = 2l at i, 2l - 1 at i - 1
    apart = [
        bool(np.any(np.abs(m[i] - m[i - 1]) > 3 * np.hypot(e[i], e[i - 1])))
        for m, e in zip(mean, error, strict=True)
        for i in pairs
    ]
    names = [f"{workers[i - 1]} to {workers[i]}" for i in pairs]
    ratios = [
        f"{name}: " + ", ".join(f"{n} {r:.2f}" for n, r in zip(names, row, strict=True))
        for name, row in zip(_POWERS, mean[:, pairs] / mean[:, [i - 1 for i in pairs]], strict=True)
    ]
    return (
        Claim(
            "more workers improve convergence (plateau of f, both steps)",
            "; ".join(
                f"{name}: {m[first]:.3g} at M = {workers[first]}, {m[last]:.3g} at M ="
                f" {workers[last]}"
                for name, m in zip(_POWERS, mean, strict=True)
            ),
            bool(np.all(mean[:, last] < mean[:, first])),
        ),
        Claim(
            "no improvement from 2l - 1 to 2l workers (plateaus within 3 standard errors for every"
            " l and both steps). True of the expected sign; ties are steps of zero, so a constant"
            " step ends lower with 2l",
            "plateau with 2l over 2l - 1, " + "; ".join(ratios),
            not any(apart),
        ),
    )


def _draw(result: Comparison) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    colors = matplotlib.colormaps["viridis_r"]
    titles = (f"constant step {_STEP}", rf"decreasing step {_STEP} / $\sqrt{{k+1}}$")
    for i, (ax, title) in enumerate(zip(panels, titles, strict=True)):
        for j, count in enumerate(result.num_workers):
            if count in _DRAWN:
                curve = result["f"][0, i, j].mean(axis=0)
                style = "--" if count % 2 == 0 else "-"
                color = colors(0.1 + 0.9 * np.log2(2 * ((count + 1) // 2)) / 4)
                ax.plot(result.steps, curve, style, color=color, lw=1.3, label=f"M = {count}")
        ax.axhline(0, color="tab:blue", ls="--", lw=1)
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set_ylim(bottom=-0.3)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("iterations k")
        tidy(ax)
    panels[0].set_ylabel("f($x_k$), mean of repetitions")
    panels[1].legend(ncols=2, fontsize=9)
    return figure
