"""Rosenbrock's function, one worker: noise levels, batch sizes, and success probabilities.

Top: f(x_k) for three noise levels nu (mini-batch 1) and three mini-batch sizes (nu = 1), mean and
standard deviation of the repetitions. Bottom: the mean over the coordinates of the *exact* success
probability at x_k, and how many coordinates satisfy SPB (rho > 1/2).

Left open by the paper, chosen here (its Appendix A has such plots):
  noise       nu = 0.1, 1, 10
  mini-batch  1, 4, 16
  x0          (-0.5, ..., -0.5), where f = 526.5; the minimum is 0 at (1, ..., 1)
  step        0.02, K = 5,000, 10 repetitions
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import signax
from signax.experiments.compare import compare
from signax.experiments.comparison import Comparison
from signax.experiments.comparison_plot import draw_band
from signax.experiments.figures import rosenbrock_problem as problem
from signax.experiments.figures.made import Claim, Made, tidy

_STEP = 0.02
Case = tuple[float, int]  # nu, mini-batch
_NOISES: tuple[Case, ...] = ((0.1, 1), (1.0, 1), (10.0, 1))
_SIZES: tuple[Case, ...] = ((1.0, 1), (1.0, 4), (1.0, 16))


def make(is_quick: bool) -> Made:
    """Runs every noise level and batch size, and draws values and success probabilities."""
    num_steps, repetitions = (500, 3) if is_quick else (5000, 10)
    groups = (_NOISES[1:], _SIZES[::2]) if is_quick else (_NOISES, _SIZES)
    cases = sorted({case for group in groups for case in group})
    results = {case: _run(*case, num_steps, repetitions) for case in cases}
    parts = []
    for (noise, size), result in results.items():
        count = result["loss"].size
        case = {"noise": np.full(count, noise), "batch_size": np.full(count, size)}
        parts.append(result.columns() | case)
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    settings = f"K = {num_steps:,}, {repetitions} repetitions"
    return Made(_draw(results, groups), {"": table}, settings, _claims(results, groups))


def _run(noise: float, batch_size: int, num_steps: int, repetitions: int) -> Comparison:
    def rho(x):
        return problem.success_probabilities(x, noise, batch_size)

    return compare(
        problem.loss,
        problem.START,
        problem.sampler(noise, batch_size),
        {"signSGD": lambda rate: signax.sign_sgd(rate, axis_name="workers")},
        learning_rates=[_STEP],
        num_steps=num_steps,
        seeds=range(repetitions),
        metrics={
            "f": problem.value,
            "mean_rho": lambda x: jnp.mean(rho(x)),
            "share_spb": lambda x: jnp.mean(rho(x) > 0.5),
        },
        eval_steps=200,
    )


def _claims(results: dict[Case, Comparison], groups: Any) -> tuple[Claim, ...]:
    ends = {case: float(result["f"][..., -50:].mean()) for case, result in results.items()}
    by_noise, by_size = ([ends[case] for case in group] for group in groups)
    rho = {case: result["mean_rho"].mean(axis=(0, 1, 2, 3)) for case, result in results.items()}
    early, late = rho[1.0, 1][:5].mean(), rho[1.0, 1][-20:].mean()
    spb = results[1.0, 1]["share_spb"].mean()
    return (
        Claim(
            "less noise, better convergence (f over the last quarter, mini-batch 1)",
            ", ".join(f"nu = {c[0]:g}: {e:.3g}" for c, e in zip(groups[0], by_noise, strict=True)),
            bool(np.all(np.diff(by_noise) > 0)),
        ),
        Claim(
            "larger mini-batches, better convergence (f over the last quarter, nu = 1)",
            ", ".join(f"{c[1]}: {e:.3g}" for c, e in zip(groups[1], by_size, strict=True)),
            bool(np.all(np.diff(by_size) < 0)),
        ),
        Claim(
            "success probabilities are larger at the start (mean over the coordinates, nu = 1,"
            " mini-batch 1)",
            f"{early:.3f} at the start, {late:.3f} at the end",
            bool(early > late),
        ),
        Claim(
            "SPB (Assumption 1) holds along the path for every coordinate (nu = 1, mini-batch 1)",
            f"for {100 * spb:.1f} % of coordinates and points: where f_(i-1) and f_i pull apart,"
            " the one that is drawn decides",
            bool(spb == 1.0),
        ),
    )


def _draw(results: dict[Case, Comparison], groups: Any) -> Figure:
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    panels: Any = figure.subplots(3, 2, sharex=True, sharey="row", height_ratios=[1.5, 1, 1])
    rows = (
        ("f", "f($x_k$)"),
        ("mean_rho", "mean success\nprobability"),
        ("share_spb", "share of coordinates\nwith $\\rho_i$ > 1/2"),
    )
    for column, group in enumerate(groups):
        for row, (metric, label) in enumerate(rows):
            ax = panels[row, column]
            for case in group:
                name = f"$\\nu$ = {case[0]:g}" if column == 0 else f"mini-batch {case[1]}"
                result = results[case]
                draw_band(ax, result.steps, result[metric][0, 0, 0], label=name)
            tidy(ax)
            if column == 0:
                ax.set_ylabel(label)
        panels[0, column].set_yscale("log")
        panels[0, column].set_ylim(0.3, 1000)  # a band may reach below zero
        panels[1, column].axhline(0.5, color="0.4", ls=":")
        panels[2, column].set_ylim(top=1.02)  # a share, but for its band
        panels[0, column].legend(loc="upper right")
        panels[-1, column].set_xlabel("iterations k")
    panels[0, 0].set_title("mini-batch 1", fontsize=10)
    panels[0, 1].set_title("$\\nu$ = 1", fontsize=10)
    return figure
