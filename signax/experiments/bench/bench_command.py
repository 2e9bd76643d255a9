"""`signax bench`: flags only; what they start lies in the other files of this folder."""

import argparse
import dataclasses
import importlib
import math
from collections.abc import Sequence
from typing import Any

from signax.experiments import processes
from signax.experiments.bench import network, race_settings
from signax.experiments.bench.settings import (
    Settings,
    parse_bandwidth,
    parse_mesh,
    parse_parts,
    parse_sizes,
    quick,
)
from signax.experiments.errors import Parser, UsageError
from signax.experiments.folder import named

_DESCRIPTION = """\
What sign methods cost here: ratios measured in turns within one run, medians with their spread.

  signax bench                                       everything, on the devices at hand
  signax bench --quick                               the smallest of everything, in seconds
  signax bench --parts=kernels --sizes=1e8           one worker alone, large arrays
  signax bench --processes=4                         4 local processes on the loopback
  signax bench --processes=4 --bandwidth=100mbit     the same over a slow network (Linux, root)
  signax bench --mesh=2x4                            2 hosts of 4 devices, the model cut inside
  srun -N 8 signax bench                             your cluster, under your own launcher
  signax bench --to_accuracy --help                  time and megabytes until a target, instead

Numbers in brackets are 10 to 90 % of the rounds. Results: WORKDIR/bench.json, WORKDIR/bench.png.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit status."""
    is_race = "--to_accuracy" in argv
    try:
        settings: Any = (race_settings.parse if is_race else parse)(argv)
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    # These load JAX: not for a mistake in the flags.
    name = f"signax.experiments.bench.{'race_run' if is_race else 'run'}"
    runner = importlib.import_module(name)
    with processes.interruptible():
        return runner.run(settings, argv)


def parse(argv: Sequence[str]) -> Settings:
    """The flags as settings; a mistake is a `UsageError`."""
    flags = vars(_parser().parse_args(argv)).items()
    given: dict[str, Any] = {k: v for k, v in flags if v is not None and v is not False}
    if "bandwidth" in given:
        given.setdefault("processes", 4)
        network.require_possible()
    for name in ("parameters", "leaves", "batch", "workers", "rounds", "processes"):
        if given.get(name, 1) < 1:
            raise UsageError(f"--{name}={given[name]}: it must be at least 1.")
    if "mesh" in given and {"processes", "parts"} & {*given}:
        raise UsageError("--mesh is compiled in this process: leave out --processes and --parts.")
    if given.get("processes", 2) < 2:
        raise UsageError("--processes=1: one process has nobody to talk to; leave it out.")
    settings = Settings(workers=given.get("workers"))
    if given.get("quick"):
        settings = quick(settings)
    settings = dataclasses.replace(settings, **given)
    # Small leaves have 1 / (50.5 leaves) of the coordinates: see `model.tree`.
    if (
        "steps" in settings.parts
        and not settings.mesh
        and settings.parameters < 51 * settings.leaves
    ):
        raise UsageError(
            f"--parameters={settings.parameters}: too few for --leaves={settings.leaves}, of which"
            f" half are small: at least {51 * settings.leaves:,}."
        )
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="signax bench",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    default = Settings()
    add("--parts", type=parse_parts, help="of kernels,bits,steps; default: all")
    add("--sizes", type=parse_sizes, help="coordinates of the kernels' arrays; default: 1e6,1e7")
    add("--parameters", type=_count, help=f"of the network; default: {default.parameters:,}")
    add("--leaves", type=_count, help="of the tree with many leaves; default: 195")
    add("--batch", type=_count, help="examples for each worker; default: 8")
    add("--workers", type=_count, help="devices to use; default: all accelerators, or 4 of the CPU")
    add(
        "--only",
        type=_words,
        help="of the steps: words of names, or package.module:function; by ;",
    )
    add("--rounds", type=_count, help="at most; default: 15")
    add("--seconds", type=_seconds, help="after which a group begins no new round; default: 60")
    add("--processes", type=_count, help="local processes, joined by gloo")
    add("--bandwidth", type=parse_bandwidth, help="of each process's link: 100mbit, 1gbit")
    add("--mesh", type=parse_mesh, help="HOSTSxDEVICES: memory and bits of a model cut inside")
    add("--workdir", type=named, help="where to write; default: runs/bench")
    add("--to_accuracy", action="store_true", help="another benchmark, with its own --help")
    add("--quick", action="store_true", help="the smallest of everything")
    return parser


def _count(text: str) -> int:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)  # which argparse says
    return int(number)


def _seconds(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError(text)
    return number


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(";"))
