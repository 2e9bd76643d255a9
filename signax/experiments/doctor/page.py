"""The picture of a report: one page, six panels, the verdict in its title."""

import textwrap
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure  # no pyplot: a file, never a window
from matplotlib.ticker import NullFormatter

from signax.diagnostics import LeafReport, Report

_RIGHT, _WRONG, _OPEN, _OTHER = "tab:blue", "tab:red", "tab:gray", "lightgray"


def draw_page(report: Report, name: str) -> Figure:
    """Draws the report; `savefig` writes it."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(2, 3)
    _draw_rho(panels[0, 0], report)
    _draw_leaves(panels[0, 1], report)
    _draw_gain(panels[0, 2], report)
    _draw_shape(panels[1, 0], report)
    _draw_signal(panels[1, 1], report)
    _draw_cost(panels[1, 2], report)
    title = f"{name}: {report.verdict.name}. {report.verdict.summary}"
    figure.suptitle("\n".join(textwrap.wrap(title, 110)))
    return figure


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def _draw_rho(ax: Any, report: Report) -> None:
    rho, size = _flat(report.coordinates.rho), np.abs(_flat(report.coordinates.gradient))
    known = np.isfinite(rho)
    bins = np.linspace(0, 1, 41)
    share = np.full(known.sum(), 100 / max(known.sum(), 1))
    ax.hist(rho[known], bins, weights=share, color=_OTHER, label="coordinates")
    weight = 100 * size[known] / size[known].sum()
    ax.hist(
        rho[known], bins, weights=weight, histtype="step", color=_RIGHT, label="weighted by |g|"
    )
    ax.axvline(0.5, color="black", lw=1, ls="--")
    ax.legend(fontsize=8)
    _finish(ax, "success probability rho", "share [%]", "How often is a sign right?")


def _draw_leaves(ax: Any, report: Report) -> None:
    shown = _widest(report.leaves)
    left = np.zeros(len(shown))
    parts = {
        "rho > 1/2": ("num_right", _RIGHT),
        "rho < 1/2": ("num_wrong", _WRONG),
        "1/2 inside its interval": ("num_open", _OPEN),
        "no clear gradient": ("num_unresolved", _OTHER),
        "gradient zero": ("num_dead", "white"),
    }
    for label, (field, color) in parts.items():
        share = np.array([100 * getattr(x, field) / x.num_coordinates for x in shown])
        ax.barh(range(len(shown)), share, left=left, color=color, label=label, ec="gray", lw=0.4)
        left += share
    _name_leaves(ax, shown)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    _finish(ax, "coordinates [%]", "", f"Sure at {report.confidence:.0%}?")


def _draw_gain(ax: Any, report: Report) -> None:
    total, workers = report.total, range(1, len(report.total.gain) + 1)
    ax.plot(workers, 100 * np.array(total.gain) / total.l1_norm, ".-", ms=3, label="predicted")
    if report.num_workers > 1:
        ax.errorbar(
            [min(report.num_workers, 64)], [100 * total.vote_norm / total.l1_norm],
            [100 * total.vote_norm_error / total.l1_norm], fmt="s", color=_WRONG, capsize=3,
            label=f"measured, M = {report.num_workers}",
        )  # fmt: skip
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(top=103)
    ax.legend(fontsize=8)
    _finish(ax, "workers M", "rho_M-norm / l1 norm [%]", "What a vote of M workers gains")


def _draw_shape(ax: Any, report: Report) -> None:
    skewness, kurtosis = _flat(report.coordinates.skewness), _flat(report.coordinates.kurtosis)
    known = np.isfinite(skewness)
    pick = np.random.default_rng(0).permutation(np.flatnonzero(known))[:3000]
    x, y = skewness[pick], kurtosis[pick]
    size, alpha = (3, 0.4) if len(x) > 200 else (9, 1.0)
    ax.plot(x, y, ".", ms=size, alpha=alpha, color=_RIGHT)
    reach = np.linspace(*_span(x), 200)
    ax.plot(reach, reach**2 - 2, color="black", lw=1, label="two values (no law lies below)")
    ax.plot(reach, reach**2 - 186 / 125, color=_WRONG, lw=1, label="unimodal laws lie above")
    ax.plot(0, 0, "k+", ms=9, label="normal")
    if np.max(y, initial=0.0) > 3:
        ax.set_yscale("symlog", linthresh=3)
        ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=7, loc="upper center")
    _finish(ax, "skewness", "excess kurtosis", "Shape of the noise, by coordinate")


def _draw_signal(ax: Any, report: Report) -> None:
    names = list(report.total.signal)
    shown = _widest(report.leaves)
    for name, marker in zip(names, "oxs+", strict=True):
        values = [max(leaf.signal[name], 1e-6) for leaf in shown]
        ax.plot(values, range(len(shown)), marker, label=name)
    _name_leaves(ax, shown)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    least = min(value for leaf in shown for value in leaf.signal.values())
    ax.set_xlim(max(min(least / 2, 0.05), 1e-6), 1.2)  # never less than a decade
    ax.legend(fontsize=7)
    _finish(ax, "mean |g_i| / R", "", "Signal of one stochastic sign, by scale R")


def _draw_cost(ax: Any, report: Report) -> None:
    cost = report.cost
    names = [method.name.replace("majority vote", "vote") for method in cost.methods]
    rows = range(len(names))
    if cost.bandwidth is None:
        values = [method.bits_per_coordinate for method in cost.methods]
        ax.barh(rows, values, color=_RIGHT)
        label = "bits per coordinate, worker and step"
    else:
        label = f"milliseconds at {cost.bandwidth / 1e6:,.4g} Mbit/s"
        start = np.zeros(len(names))
        compute = np.full(len(names), cost.compute_seconds)
        local = np.array([method.local_seconds for method in cost.methods])
        sending = np.array([method.step_seconds for method in cost.methods]) - compute - local
        parts = {"gradient": compute, "local work": local, "sending": sending}
        for color, (part, seconds) in zip(
            (_OTHER, "tab:orange", _RIGHT), parts.items(), strict=True
        ):
            ax.barh(rows, 1e3 * seconds, left=1e3 * start, color=color, label=part)
            start = start + seconds
        ax.legend(fontsize=8)
    ax.set_yticks(rows, names, fontsize=8)
    ax.invert_yaxis()
    _finish(
        ax, label, "", f"One step, {cost.num_workers} workers, {cost.num_coordinates:,} coordinates"
    )


def _widest(leaves: tuple[LeafReport, ...]) -> list[LeafReport]:
    """At most a dozen, the largest, in their order."""
    largest = sorted(leaves, key=lambda leaf: -leaf.num_coordinates)[:12]
    return [leaf for leaf in leaves if leaf in largest]


def _name_leaves(ax: Any, leaves: list[LeafReport]) -> None:
    ax.set_yticks(range(len(leaves)), [leaf.name[-24:] for leaf in leaves], fontsize=8)
    ax.set_ylim(len(leaves) - 0.5, -0.5)


def _span(values: np.ndarray) -> tuple[float, float]:
    largest = float(np.max(np.abs(values), initial=1.0))
    return -largest, largest


def _finish(ax: Any, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
