"""`signax doctor`: flags only; what they start lies in the other files of this folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from signax.experiments.bench.settings import parse_bandwidth
from signax.experiments.config_flag import parse_flags
from signax.experiments.default_config import get_config
from signax.experiments.errors import UsageError, unknown_name
from signax.experiments.folder import make_folder, named

_HELP = """usage: signax doctor [--config=FILE.py] [--config.FIELD=VALUE ...] [flags]
       signax doctor --problem=rosenbrock|counterexample [flags]

Will sign methods work on this problem? Looks at one point: how often the signs of mini-batch
gradients are right, what shape the noise has, what more workers would bring, whether the workers
disagree for good, and whether it pays to compress. Then recommends.

  signax doctor
  signax doctor --config=configs/mnist_by_label.py:ssdm_shared --steps=200 --bandwidth=100mbit
  signax doctor --problem=counterexample

  --steps=N          train for N steps first (default 0: the first parameters), with the config's
                     optimizer; the verdict is about that point
  --batches=N        batches to look at (default 64, at least 8)
  --bandwidth=RATE   of each worker's link, such as 100mbit or 1gbit: predicts the time of a step
  --problem=NAME     a problem of the paper in place of a config
  --workdir=DIR      where to write; default: runs/doctor/NAME, named after the config

Writes report.txt, report.json and report.png. Fields of the default config:
"""


def main(argv: Sequence[str]) -> int:
    """Examines, prints the report, and returns the exit status."""
    if {"-h", "--help", "-help"} & {*argv}:
        print(f"{_HELP}\n{get_config()}".rstrip())
        return 0
    logging.set_verbosity(logging.ERROR)
    flag_values = _define_flags()
    chosen = parse_flags(flag_values, argv)
    flag: Any = {name: flag_values[name].value for name in _FLAGS}
    if flag["problem"] == "":
        raise UsageError("--problem= names no problem: write --problem=NAME, or leave it out.")
    bandwidth = parse_bandwidth(flag["bandwidth"]) if flag["bandwidth"] is not None else None
    name = flag["problem"] or f"{chosen.name}" + (
        f",steps={flag['steps']}" if flag["steps"] else ""
    )
    subject = _subject(chosen, argv, flag, name)
    default = Path("runs") / "doctor" / name
    folder = make_folder(default if flag["workdir"] is None else named(flag["workdir"]))
    report = subject.examine(flag["batches"], bandwidth)
    _write(report, subject.name, folder)
    print(f"{report}\n\nwritten to {folder}/{{report.txt, report.json, report.png}}")
    return 0


_FLAGS = ("steps", "batches", "bandwidth", "problem", "workdir")


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_integer("steps", 0, "steps", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("batches", 64, "batches", lower_bound=8, flag_values=values)
    flags.DEFINE_string("bandwidth", None, "bits per second", flag_values=values)
    flags.DEFINE_string("problem", None, "of the paper", flag_values=values)
    flags.DEFINE_string("workdir", None, "where to write", flag_values=values)
    return values


def _subject(chosen: Any, argv: Sequence[str], flag: Any, name: str) -> Any:
    # Loads JAX and Flax: not for a mistake in the flags.
    from signax.experiments.doctor.problems import PROBLEMS

    if not flag["problem"]:
        from signax.experiments.doctor.trained import trained

        return trained(chosen.config, flag["steps"], name)
    if flag["problem"] not in PROBLEMS:
        raise unknown_name("problem", flag["problem"], PROBLEMS)
    if flag["steps"] or any(a.lstrip("-").startswith("config") for a in argv):
        raise UsageError(
            f"--problem={flag['problem']} has a point and data of its own: leave out --steps and"
            " --config."
        )
    return PROBLEMS[flag["problem"]]()


def _write(report: Any, name: str, folder: Path) -> None:
    from signax.experiments.doctor.page import draw_page  # matplotlib is slow to import

    (folder / "report.txt").write_text(f"{report}\n")
    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    draw_page(report, name).savefig(folder / "report.png", dpi=110)
