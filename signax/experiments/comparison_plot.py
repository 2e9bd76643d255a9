"""The plots of a `Comparison`."""

from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure  # no pyplot: a file, never a window

from signax.experiments.comparison import Against, Comparison

_LABELS = {
    "step": "steps",
    "learning_rate": "learning rate",
    "num_workers": "number of workers M",
}


def plot_comparison(
    result: Comparison, metric: str, against: Against, largest: bool, ax: Any
) -> Figure:
    """See `Comparison.plot`."""
    if against not in get_args(Against):
        raise ValueError(f"plot: against={against!r} must be one of {get_args(Against)}.")
    if result[metric].ndim != 5:
        raise ValueError(
            f"plot: metric {metric!r} has shape {result[metric].shape[5:]} at each point; only a"
            " scalar can be drawn."
        )
    if ax is None:
        ax = Figure(figsize=(6.4, 4.4), layout="constrained").subplots()
    chosen = result.best(metric, largest=largest)
    for i, name in enumerate(result.methods):
        for j, count in enumerate(result.num_workers):
            label = name if len(result.num_workers) == 1 else f"{name}, M = {count}"
            curve = result[metric][i, chosen[i, j], j]  # [seed, point]
            if against == "step":
                rate = result.learning_rates[i, chosen[i, j]]
                draw_band(ax, result.steps, curve, label=f"{label}, lr {rate:.3g}")
            elif against == "learning_rate":
                draw_bars(ax, result.learning_rates[i], result.final(metric)[i, :, j], label)
        if against == "num_workers":
            final = np.stack(
                [result.final(metric)[i, k, j] for j, k in enumerate(chosen[i])]
            )  # [M, seed]
            draw_bars(ax, result.num_workers, final, name)
    if against != "step":
        ax.set_xscale("log")
    ax.set_xlabel(_LABELS[against])
    ax.set_ylabel(metric if against == "step" else f"{metric} after {result.steps[-1]:,} steps")
    ax.legend(framealpha=0.8)
    ax.grid(alpha=0.3)
    return ax.figure


def draw_band(ax: Any, x: np.ndarray, curves: np.ndarray, **style: Any) -> None:
    """The mean of curves [seed, point], and one standard deviation around it."""
    mean, spread = curves.mean(axis=0), _spread(curves.T)
    (line,) = ax.plot(x, mean, **style)
    ax.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, lw=0)


def draw_bars(ax: Any, x: np.ndarray, values: np.ndarray, label: str) -> None:
    """The mean of values [x, seed], with bars of one standard deviation."""
    ax.errorbar(x, values.mean(axis=1), _spread(values), label=label, marker="o", capsize=3)


def _spread(values: np.ndarray) -> np.ndarray:
    """Sample standard deviation over the last axis; zero for one seed."""
    if values.shape[-1] == 1:
        return np.zeros(values.shape[0])
    return values.std(axis=-1, ddof=1)
