"""The picture: test score against seconds at each bandwidth, and against megabytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: a file, never a window

from signax.experiments.bench.race_report import Outcome, Row
from signax.experiments.metric import METRICS


def draw(rows: Sequence[Row], outcomes: Sequence[Outcome], target: float, path: Path) -> None:
    """Writes the PNG."""
    metric = METRICS[rows[0].metric]
    trained: dict[str, Outcome] = {}
    for outcome in outcomes:
        trained.setdefault(outcome["run"], outcome)
    networks = list(dict.fromkeys(row.network for row in rows))
    figure = Figure(figsize=(4.6 * (len(networks) + 1), 4.6), layout="constrained")
    *panels, last = figure.subplots(1, len(networks) + 1, sharey=True)
    colors = {run: f"C{i % 10}" for i, run in enumerate(trained)}
    for ax, network in zip(panels, networks, strict=True):
        for row, outcome in zip(rows, outcomes, strict=True):
            if row.network == network:
                x, y = _curve(row, outcome, trained[row.run])
                ax.plot(x, y, ".-" if row.is_measured else ".--", ms=4, color=colors[row.run],
                        label=row.run)  # fmt: skip
        ax.set_xlabel("seconds on the clock")
        ax.set_xlim(left=0)
        ax.set_title(network)
    for run, outcome in trained.items():
        points = outcome["points"]
        x = [point["megabytes"] for point in points]
        last.plot(x, [p["score"] for p in points], ".-", ms=4, color=colors[run], label=run)
    last.set_xlabel("megabytes sent by one worker")
    last.set_xscale("log")
    last.legend(fontsize=8)
    panels[0].set_ylabel(f"test {metric.label}")
    for ax in (*panels, last):
        ax.axhline(target, color="black", lw=0.8, ls=":")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle("solid: measured; dashed: steps times the median step", fontsize=9)
    figure.savefig(path, dpi=130)


def _curve(row: Row, outcome: Outcome, original: Outcome) -> tuple[list[float], list[float]]:
    source: Any = outcome if row.is_measured else original
    points = source["points"]
    median = row.step_seconds[0]
    x = [p["seconds"] if row.is_measured else p["step"] * median for p in points]
    return x, [point["score"] for point in points]
