"""What was measured as tables on the screen and as JSON."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from signax.experiments.bench.timing import Group, Times, ratio, spread

Result = dict[str, Any]


def result_of(part: str, group: Group, times: Times) -> Result:
    """A group's result in types that JSON has: milliseconds, ratios as [median, 10 %, 90 %]."""
    rows = []
    for name in group.calls:
        seconds = spread(times[name])
        row = {
            "name": name,
            "milliseconds": [1e3 * value for value in seconds],
            "ns_per_coordinate": 1e9 * seconds.median / group.num_coordinates,
        }
        if group.floor:
            row["over_floor"] = [*ratio(times, name, group.floor)]
        if group.textbook in times:
            row["faster_than_textbook"] = [*ratio(times, group.textbook, name)]
        rows.append(row | dict(group.notes.get(name, {})))
    return {
        "part": part,
        "title": group.title,
        "num_coordinates": group.num_coordinates,
        "floor": group.floor,
        "textbook": group.textbook,
        "num_rounds": len(next(iter(times.values()))),
        "rows": rows,
    }


def machine() -> Result:
    """Where the numbers come from; the allocator's settings decide what a fresh array costs."""
    devices = jax.devices()
    return {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "jax": jax.__version__,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "allocator": {
            k: v
            for k, v in os.environ.items()
            if k.startswith(("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "XLA_"))
        },
    }


def table(result: Result) -> str:
    """One group as a table; in brackets 10 to 90 % of the rounds."""
    has_notes = any("bits_per_coordinate" in row for row in result["rows"])
    floor, textbook = result["floor"], result["textbook"]
    header = ["", "ms", "ns/coordinate"]
    header += [f"time / {floor}"] if floor else []
    header += [f"{textbook} / time"] if textbook else []
    header += ["bits/coordinate", "collectives"] if has_notes else []
    lines = [header]
    for row in result["rows"]:
        cells = [row["name"], f"{row['milliseconds'][0]:.3g}", f"{row['ns_per_coordinate']:.3g}"]
        cells += [_ratio(row.get("over_floor"))] if floor else []
        cells += [_ratio(row.get("faster_than_textbook"))] if textbook else []
        if has_notes:
            bits = row.get("bits_per_coordinate")
            cells += ["" if bits is None else f"{bits:.3f}", str(row.get("num_collectives", ""))]
        lines.append(cells)
    return f"\n{result['title']} ({result['num_rounds']} rounds)\n{aligned(lines)}"


def bits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formula and compiled program side by side."""
    lines = [["algorithm", "wire", "M", "formula", "compiled", "collectives"]]
    for row in rows:
        lines.append(
            [
                row["algorithm"],
                row["wire"],
                str(row["num_workers"]),
                f"{row['formula']:.4f}",
                f"{row['bits_per_coordinate']:.4f}",
                str(row["num_collectives"]),
            ]
        )
    return f"\nbits per coordinate, worker and step\n{aligned(lines)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns under each other: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        rows.append("  " + "   ".join(cells).rstrip())
    return "\n".join(rows)


def _ratio(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    median, low, high = (f"{value:.3g}" for value in values)
    return f"{median} [{low}-{high}]"
