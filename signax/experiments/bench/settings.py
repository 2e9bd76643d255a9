"""What was asked for, and the parsers of its parts."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from signax.experiments.errors import UsageError

PARTS = ("kernels", "bits", "steps")
_MOST_DEVICES = 64  # that one process is made to play
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of `signax bench`."""

    parts: tuple[str, ...] = PARTS
    sizes: tuple[int, ...] = (10**6, 10**7)
    parameters: int = 10_500_000
    leaves: int = 195
    batch: int = 8  # examples for each worker
    workers: int | None = None
    only: tuple[str, ...] = ()
    rounds: int = 15
    seconds: float = 60.0  # for one group of contestants
    processes: int | None = None
    bandwidth: int | None = None  # bits per second
    mesh: tuple[int, int] | None = None  # hosts, devices of each
    workdir: Path = Path("runs/bench")
    quick: bool = False

    def to_json(self) -> dict[str, Any]:
        """The settings in types that JSON has."""
        fields = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


def quick(settings: Settings) -> Settings:
    """The smallest run that still takes every path: for a test."""
    return dataclasses.replace(
        settings,
        sizes=(20_000,),
        parameters=20_000,
        leaves=4,
        workers=settings.workers or 2,
        rounds=3,
        seconds=1.0,
        quick=True,
    )


def parse_sizes(text: str) -> tuple[int, ...]:
    """`1e6,10000000` as integers."""
    try:
        sizes = tuple(int(float(part)) for part in text.split(","))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--sizes={text}: write numbers such as --sizes=1e6,1e7.") from error
    if min(sizes) < 1000:
        raise UsageError(f"--sizes={text}: below 1000 coordinates only overheads are measured.")
    return sizes


def parse_parts(text: str) -> tuple[str, ...]:
    """`kernels,bits` as a tuple, in the order in which they run."""
    asked = text.split(",")
    for part in asked:
        if part not in PARTS:
            raise UsageError(f"--parts={text}: unknown part {part!r}. There is: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


def parse_mesh(text: str) -> tuple[int, int]:
    """`2x4` as the numbers of hosts and of each host's devices."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UsageError(f"--mesh={text}: write HOSTSxDEVICES, such as 2x4.")
    mesh = int(match[1]), int(match[2])
    if mesh[0] * mesh[1] > _MOST_DEVICES:
        raise UsageError(f"--mesh={text}: choose a mesh of at most {_MOST_DEVICES} devices.")
    return mesh


def parse_bandwidth(text: str) -> int:
    """`100mbit` as bits per second, in the units of `tc`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", text.lower())
    if not match or not float(match[1]):
        raise UsageError(f"--bandwidth={text}: write a rate such as 100mbit or 1gbit.")
    return int(float(match[1]) * _UNITS[match[2]])
