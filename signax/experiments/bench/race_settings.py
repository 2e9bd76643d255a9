"""What `signax bench --to_accuracy` was asked for, and the parsers of its flags."""

import argparse
import dataclasses
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from signax.experiments.bench import network
from signax.experiments.bench.settings import parse_bandwidth
from signax.experiments.config_flag import parse_flags
from signax.experiments.default_config import Config
from signax.experiments.errors import Parser, UsageError
from signax.experiments.folder import named

LOOPBACK = "loopback"
_DESCRIPTION = """\
Wall-clock time and megabytes until a target, for several runs of a config page, at several
bandwidths: what a user gets, and not what a step costs.

  signax bench --to_accuracy --config=configs/bytes.py --target=3.5 \\
      --runs=adamw,distributed_lion --bandwidths=loopback,100mbit
  signax bench --to_accuracy --config=configs/digits.py --target=95 --processes=2

--config.FIELD=VALUE changes all runs, as for `signax train`. An accuracy is a percentage. The local
processes are joined by the loopback, or by network namespaces of that bandwidth (Linux, root).

The clock runs while a step runs: not for compilation, and not for evaluation, which happens every
config.eval_every steps. Each run is trained at the first of the bandwidths, until it reaches the
target. A network changes no bit of a run, so at each other one only the first --timed_steps steps
are taken and timed; the time to the target is then the number of steps times their median, and it
is said whether their losses were the same bits. --full trains everywhere; runs with a dense phase
always do. Ctrl-C ends it with the tables of what is done, and --resume goes on behind that.

Results: WORKDIR/to_accuracy.json, WORKDIR/to_accuracy.png.
"""


@dataclasses.dataclass(frozen=True)
class Race:
    """The flags of `signax bench --to_accuracy`."""

    config: str = ""  # a page: FILE.py
    overrides: tuple[str, ...] = ()  # --config.FIELD=VALUE
    runs: tuple[str, ...] = ()
    target: float = 0.0
    bandwidths: tuple[str, ...] = (LOOPBACK,)
    processes: int = 4
    budget: float = 600.0  # seconds on the clock, for each run at each bandwidth
    timed_steps: int = 20
    full: bool = False
    resume: bool = False
    workdir: Path = Path("runs/to_accuracy")
    quick: bool = False
    share: Path | None = None  # of one of the processes: what it is to do

    def to_json(self) -> dict[str, Any]:
        """The settings in types that JSON has."""
        fields = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}

    def asked_of(self, run: str, timed_steps: int | None) -> dict[str, Any]:
        """What decides a run's outcome at a bandwidth: with the same, it need not run again."""
        asked = {
            "config": self.config_of(run).to_dict(),
            "processes": self.processes,
            "timed_steps": timed_steps,
            "target": None if timed_steps else self.target,
            "budget": self.budget,
        }
        return json.loads(json.dumps(asked))

    def config_of(self, run: str) -> Config:
        """The config of one run; a mistake is a `UsageError`."""
        page = f"{self.config}:{run}" if run else self.config
        chosen = [f"--config={page}"] if page else []
        config = parse_flags(flags.FlagValues(), [*chosen, *self.overrides]).config
        return _smallest(config) if self.quick else config


def parse(argv: Sequence[str]) -> Race:
    """The flags as settings; a mistake is a `UsageError`."""
    overrides = tuple(a for a in argv if a.lstrip("-").startswith("config."))
    rest = [a for a in argv if a not in overrides]
    given = {k: v for k, v in vars(_parser().parse_args(rest)).items() if v is not None}
    del given["to_accuracy"]
    for name in ("processes", "timed_steps", "budget"):
        if given.get(name, 1) <= 0:
            raise UsageError(f"--{name}={given[name]}: it must be above 0.")
    if given.get("processes", 2) < 2:
        raise UsageError("--processes=1: one process sends nothing; write 2 or more.")
    race = Race(overrides=overrides, **given)
    if not race.share and any(rate != LOOPBACK for rate in race.bandwidths):
        network.require_possible()
    return dataclasses.replace(race, runs=race.runs or _runs_of(race.config))


def parse_bandwidths(text: str) -> tuple[str, ...]:
    """`loopback,100mbit` as a tuple, each checked."""
    names = tuple(text.lower().split(","))
    for name in names:
        if name != LOOPBACK:
            parse_bandwidth(name)
    if len({*names}) < len(names):
        raise UsageError(f"--bandwidths={text}: one is named twice.")
    return names


def _runs_of(page: str) -> tuple[str, ...]:
    """All runs of a page; one without a name where it is no page of several."""
    if not Path(page).is_file():
        return ("",)  # the default config, or an error that the config's parser words better
    return tuple(runpy.run_path(page).get("RUNS", ("",)))


def _smallest(config: Config) -> Config:
    """The shortest run that still takes every path: for a test."""
    k = config.local_steps
    config.num_steps, config.eval_every, config.batch_size = 4 * k, 2 * k, 32
    config.hidden_size = 16
    text = {"sequence_length": 16, "num_layers": 1, "num_heads": 2, "scored_bytes": 1024}
    config.text.update(text)
    return config


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="signax bench --to_accuracy",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("--to_accuracy", action="store_true", help="this benchmark")
    add("--config", help="a page of runs, such as configs/bytes.py; default: the default run")
    add("--runs", type=_names, help="of the page, by commas; ratios are to the first; default: all")
    add("--target", type=float, required=True, help="test accuracy [%%], or bits per byte")
    add("--bandwidths", type=parse_bandwidths, help="loopback,1gbit,100mbit; default: loopback")
    add("--processes", type=int, help="local processes; default: 4")
    add("--budget", type=float, help="seconds on the clock for a run at a bandwidth; default: 600")
    add("--timed_steps", type=int, help="at all bandwidths but the first; default: 20")
    add("--full", action="store_true", default=None, help="train at every bandwidth")
    add("--resume", action="store_true", default=None, help="keep what WORKDIR has of this already")
    add("--workdir", type=named, help="where to write; default: runs/to_accuracy")
    add("--quick", action="store_true", default=None, help="the smallest of everything")
    add("--share", type=Path, help=argparse.SUPPRESS)
    return parser
