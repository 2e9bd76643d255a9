"""What a figure's `make` returns, and how it becomes files and words."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

Columns = Mapping[str, Any]  # arrays of one length, by name


class Claim(NamedTuple):
    """A sentence of the paper beside what was measured; `holds` is computed, never written down."""

    text: str
    measured: str
    holds: bool


class Made(NamedTuple):
    """A figure, the numbers behind it, and what they say."""

    figure: Figure
    tables: Mapping[str, Columns]  # by the ending of the CSV's name; "" for the main one
    settings: str  # what was run this time, in one line
    claims: tuple[Claim, ...]


def write(made: Made, stem: str, workdir: Path) -> list[Path]:
    """Writes `STEM.png` and a CSV for each table; returns the paths."""
    paths = [workdir / f"{stem}.png"]
    made.figure.savefig(paths[0], dpi=150)
    for ending, columns in made.tables.items():
        paths.append(workdir / f"{stem}{ending}.csv")
        with paths[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    return paths


def _cells(column: Any) -> list[Any]:
    return [f"{x:.7g}" if isinstance(x, float) else x for x in np.asarray(column).tolist()]


def describe(claim: Claim) -> str:
    """Three lines for the terminal."""
    verdict = "holds" if claim.holds else "DOES NOT HOLD"
    return f"  claim     {claim.text}\n  measured  {claim.measured}\n            {verdict}"


def tidy(ax: Any) -> None:
    """The look that all panels share."""
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
