"""The picture of a run: loss and score against steps and against megabytes sent."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: a file, never a window
from matplotlib.ticker import LogLocator

from signax.experiments.metric import Metric
from signax.experiments.workdir import Row


def draw_curves(rows: list[Row], result: Any, metric: Metric, path: Path) -> None:
    """Writes the learning curves of one run.

    Args:
      rows: of `metrics.jsonl`.
      result: a `signax.experiments.train.Result`, for the title and dense SGD's megabytes.
      metric: of the lower panels.
      path: the PNG to write.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    steps = [row["step"] for row in rows]
    for column, (x, label) in enumerate(
        [
            (steps, "steps"),
            ([row["megabytes_sent"] for row in rows], "megabytes sent by one worker [MB]"),
        ]
    ):
        _draw_loss(axes[0, column], x, rows)
        _draw_score(axes[1, column], x, rows, metric)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("training loss [nats]")
    axes[1, 0].set_ylabel(metric.label)
    axes[1, 0].legend(loc="best", framealpha=0.8)
    figure.suptitle(_title(result))
    figure.savefig(path, dpi=150)


def _draw_loss(ax: Any, x: list[float], rows: list[Row]) -> None:
    ax.plot(x, [row["loss"] for row in rows], color="tab:blue")
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")  # 0.2, not 2 x 10^-1
    ax.yaxis.set_minor_formatter("{x:g}")
    _tidy(ax)


def _draw_score(ax: Any, x: list[float], rows: list[Row], metric: Metric) -> None:
    names = {"training batches": metric.name, "test set": f"test_{metric.name}"}
    for (label, name), color in zip(names.items(), ("tab:blue", "tab:orange"), strict=True):
        ax.plot(x, [metric.scale * row[name] for row in rows], color=color, label=label)
    if metric.more_is_better:
        ax.set_ylim(top=1.005 * metric.best)
    _tidy(ax)


def _tidy(ax: Any) -> None:
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _title(result: Any) -> str:
    ties = f', ties="{result.ties}"' if result.ties else ""
    return (
        f"{result.optimizer}{ties}: {result.num_workers} workers, {result.partition} data, "
        f"{result.bits_per_coordinate:.3g} bits per coordinate, worker and step "
        f"(dense SGD: {result.dense_bits_per_coordinate:.3g})"
    )
