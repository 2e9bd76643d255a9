"""Figure 3: signSGD and SGD on MNIST at a fixed budget of gradient communication.

Batches are dealt out in order from a training set that is shuffled before each epoch; one curve for
each batch size, mean and standard deviation of 3 repetitions.

Left open by the paper, chosen here:
  network     784 - 64 (relu) - 10: 50,890 parameters, LeCun's initialisation
  budget      100 MB that one worker sends: 2 bits per coordinate and step for signSGD, as the
              paper's sign(0) is 0 (ties="zero"), and 32 for SGD. The one-bit wire (ties="random")
              makes a coin of every zero, and MNIST's dark pixels have many
  batch size  32, 128, 512 for signSGD and for SGD
  tuning      {10, 1, 0.1, 0.01, 0.001} on a tenth of the budget, then {0.1, 0.2, 0.5, 1, 2} times
              the best on 0.3 of it, by the training loss; a seed that is not one of the 3
  accuracy    train: on 10,000 of the 60,000 images
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from signax.experiments.comparison_plot import draw_band
from signax.experiments.figures.made import Claim, Columns, Made, tidy
from signax.experiments.figures.mnist_runs import (
    METHODS,
    Tuned,
    at_megabytes,
    load_images,
    megabytes,
    tune_and_run,
)

_GRID = (10.0, 1.0, 0.1, 0.01, 0.001)
Runs = dict[tuple[str, int], Tuned]


def make(is_quick: bool) -> Made:
    """Tunes and runs every method and batch size, and draws train and test accuracy."""
    images = load_images()
    budget = 2.0 if is_quick else 100.0
    sizes = (32, 128) if is_quick else (32, 128, 512)
    runs: Runs = {}
    for method in METHODS:
        for batch_size in sizes:
            runs[method, batch_size] = tune_and_run(
                method,
                images.train,
                budget,
                _GRID,
                is_quick=is_quick,
                images=images,
                batch_size=batch_size,
            )
    rates = {f"{method} {size}": run.learning_rate for (method, size), run in runs.items()}
    settings = f"budget {budget:g} MB; learning rates found: " + ", ".join(
        f"{name}: {rate:.3g}" for name, rate in rates.items()
    )
    return Made(_draw(runs, budget), {"": _table(runs)}, settings, _claims(runs, budget))


def _claims(runs: Runs, budget: float) -> tuple[Claim, ...]:
    sizes = sorted({size for _, size in runs})
    ends = [float(runs["signSGD", size].result.final("train_accuracy").mean()) for size in sizes]
    early = min(1.0, budget)
    sign, dense = (at_megabytes(runs[m, 128], m, "train_accuracy", early) for m in METHODS)
    tests = [float(runs["signSGD", size].result.final("test_accuracy").mean()) for size in sizes]
    return (
        Claim(
            "a larger batch improves signSGD (end of the budget, train accuracy)",
            ", ".join(f"batch {s}: {e:.2f} %" for s, e in zip(sizes, ends, strict=True)),
            bool(np.all(np.diff(ends) > 0)),
        ),
        Claim(
            f"early on signSGD is more efficient (batch 128 at {early:g} MB; by 20 points or more)",
            f"signSGD {sign:.1f} %, SGD {dense:.1f} %: {sign - dense:+.1f} points",
            sign - dense >= 20,
        ),
        Claim(
            "with standard batches test accuracy grows with train accuracy",
            ", ".join(f"batch {s}: {e:.2f} %" for s, e in zip(sizes, tests, strict=True)),
            bool(np.all(np.diff(tests) > 0)),
        ),
    )


def _draw(runs: Runs, budget: float) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    greys = {32: 0.45, 128: 0.7, 512: 0.95}
    for ax, metric in zip(panels, ("train_accuracy", "test_accuracy"), strict=True):
        for (method, size), run in runs.items():
            color = _shade(method, greys[size])
            x = megabytes(method, run.result.steps)
            label = f"{method}, batch {size}, lr {run.learning_rate:.2g}"
            curves = run.result[metric][0, 0, 0]
            draw_band(ax, x[1:], curves[:, 1:], color=color, label=label)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(0.05, budget)
        ax.set_ylim(0, 101)
        ax.set_xlabel("gradient communication of one worker [MB]")
        ax.set_ylabel(f"{metric.split('_')[0]} accuracy [%]")
        tidy(ax)
    panels[0].legend(loc="lower right", fontsize=9)
    return figure


def _shade(method: str, depth: float) -> Any:
    import matplotlib

    return matplotlib.colormaps["Blues" if method == "signSGD" else "Oranges"](depth)


def _table(runs: Runs) -> Columns:
    parts = []
    for (method, size), run in runs.items():
        columns = run.result.columns()
        count = len(columns["step"])
        parts.append(
            columns
            | {"batch_size": np.full(count, size), "megabytes": megabytes(method, columns["step"])}
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
