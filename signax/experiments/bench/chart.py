"""The picture: one panel for each group, a bar for each contestant."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: a file, never a window

_FLOOR, _TEXTBOOK, _OURS = "tab:gray", "tab:orange", "tab:blue"
_BAR = 0.26  # inches


def draw(
    results: Sequence[dict[str, Any]], bits: Sequence[dict[str, Any]], title: str, path: Path
) -> None:
    """Writes the PNG."""
    most = max((row["num_workers"] for row in bits), default=0)
    bits = [row for row in bits if row["num_workers"] == most]
    heights = [len(result["rows"]) + 3 for result in results] + ([len(bits) + 3] if bits else [])
    figure = Figure(figsize=(11, 0.6 + _BAR * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, result in zip(panels, results, strict=False):
        _draw_group(ax, result)
    if bits:
        _draw_bits(panels[-1], bits, most)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw_group(ax: Any, result: dict[str, Any]) -> None:
    rows = result["rows"]
    is_local = result["part"] == "kernels"
    factor = 1e6 / result["num_coordinates"] if is_local else 1.0
    median, low, high = zip(*(row["milliseconds"] for row in rows), strict=True)
    values = [factor * x for x in median]
    errors = [
        [factor * (m - x) for m, x in zip(median, low, strict=True)],
        [factor * (x - m) for m, x in zip(median, high, strict=True)],
    ]
    colors = [_color(row["name"], result) for row in rows]
    ax.barh(range(len(rows)), values, xerr=errors, color=colors, height=0.7, error_kw={"lw": 0.8})
    _label(ax, [_beside(row, result) for row in rows], [factor * x for x in high])
    unit = "ns per coordinate" if is_local else "milliseconds"
    _finish(ax, [row["name"] for row in rows], f"{result['title']} [{unit}]")


def _draw_bits(ax: Any, rows: Sequence[dict[str, Any]], num_workers: int) -> None:
    values = [row["bits_per_coordinate"] for row in rows]
    colors = [_TEXTBOOK if row["wire"] == "all-reduce" else _OURS for row in rows]
    ax.barh(range(len(rows)), values, color=colors, height=0.7)
    _label(ax, [f"{value:.3g}" for value in values], values)
    names = [f"{row['algorithm']}, {row['wire']}" for row in rows]
    _finish(ax, names, f"bits per coordinate, worker and step, {num_workers} workers (from HLO)")


def _color(name: str, result: dict[str, Any]) -> str:
    if name == result["floor"]:
        return _FLOOR
    dense = ("float32 pmean", "bfloat16", "int8", "optax")
    return _TEXTBOOK if name == result["textbook"] or name.startswith(dense) else _OURS


def _beside(row: dict[str, Any], result: dict[str, Any]) -> str:
    parts = []
    if row["name"] != result["floor"] and "over_floor" in row:
        parts.append(f"{row['over_floor'][0]:.2f} x {result['floor']}")
    if row["name"] not in (result["textbook"], result["floor"]) and "faster_than_textbook" in row:
        parts.append(f"{row['faster_than_textbook'][0]:.1f} x as fast as {result['textbook']}")
    return ", ".join(parts)


def _label(ax: Any, texts: list[str], ends: list[float]) -> None:
    for i, (text, end) in enumerate(zip(texts, ends, strict=True)):
        ax.annotate(
            text, (end, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )


def _finish(ax: Any, names: list[str], title: str) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_title(title, loc="left", fontsize=9)
    ax.margins(x=0.45)
    ax.set_xlim(left=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
