"""`signax train`: flags only; what they start is `signax.experiments.train`.

Exit status: 0 finished, 1 the workers' parameters drifted apart, 2 a mistake in what was asked for,
130 stopped by SIGINT or SIGTERM (with a checkpoint).
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from signax.experiments.compare_command import comparison
from signax.experiments.config_flag import parse_flags
from signax.experiments.default_config import Config, get_config
from signax.experiments.errors import UsageError
from signax.experiments.report import report
from signax.experiments.train import train

_HELP = """usage: signax train [--config=FILE.py] [--config.FIELD=VALUE ...] [flags]

Train a network with M workers that vote on every step.

  signax train
  signax train --config=configs/mnist_signum.py
  signax train --config.optimizer.name=ssdm --config.batch_size=128

  --workdir=DIR      where to write; default: runs/NAME, named after the config and what was changed
  --resume           continue the run that lies there, bit for bit
  --overwrite        throw away the run that lies there
  --change_num_workers=mean|zero
                     with --resume and another number of workers: each starts with the mean of
                     the old workers' memories, or with none
  --check_sync_every=N
                     every N steps (default 100; 0: never) compare the workers' parameters bit for
                     bit, and stop if they differ
  --seeds=0,1,2      one run for each seed, and a table of mean and spread

Fields of the default config:
"""


def main(argv: Sequence[str]) -> int:
    """Trains, prints the result, and returns the exit status."""
    if {"-h", "--help", "-help"} & {*argv}:
        print(f"{_HELP}\n{get_config()}".rstrip())
        return 0
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS tell stories at INFO and WARNING
    flag_values = _define_flags()
    chosen = parse_flags(flag_values, argv)
    flag: Any = {
        name: flag_values[name].value for name in ("workdir", *_SWITCHES, "seeds", *_OTHERS)
    }
    if flag["resume"] and flag["overwrite"]:
        raise UsageError("--resume continues a run and --overwrite throws it away: choose one.")
    if flag["change_num_workers"] and not flag["resume"]:
        raise UsageError("--change_num_workers changes a run that goes on: add --resume.")
    folder = Path(flag["workdir"] or Path("runs") / chosen.name)
    runs = _one_per_seed(chosen.config, folder, flag["seeds"])
    results = []
    for config, path in runs:
        # Of several seeds, the first may be finished and the last not begun.
        resume = flag["resume"] and (len(runs) == 1 or (path / "run.json").exists())
        others = {name: flag[name] for name in _OTHERS}
        result = train(config, path, resume=resume, overwrite=flag["overwrite"], **others)
        if not result.is_finished:
            return _interrupted(result.step, config.num_steps, path, argv)
        print(f"\n{report(result)}\nwritten to           {path}{_FILES}", flush=True)
        results.append((path, result._asdict()))
    if len(results) > 1:
        print(f"\n{comparison(results)}")
    return 0


_SWITCHES = ("resume", "overwrite")
_OTHERS = ("change_num_workers", "check_sync_every")
_FILES = "/{curves.png, metrics.jsonl, result.json, checkpoints}"


def _define_flags() -> flags.FlagValues:
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where to write", flag_values=flag_values)
    for name in _SWITCHES:
        flags.DEFINE_bool(name, False, name, flag_values=flag_values)
    flags.DEFINE_enum("change_num_workers", None, ["mean", "zero"], "how", flag_values=flag_values)
    flags.DEFINE_integer("check_sync_every", 100, "steps", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_list("seeds", [], "one run for each seed", flag_values=flag_values)
    return flag_values


def _one_per_seed(config: Config, folder: Path, seeds: Sequence[str]) -> list[tuple[Config, Path]]:
    if not seeds:
        return [(config, folder)]
    runs = []
    for seed in seeds:
        if not seed.isdecimal():
            raise UsageError(f"--seeds={','.join(seeds)}: seeds are whole numbers.")
        copy = config.copy_and_resolve_references()
        copy.seed = int(seed)
        runs.append((copy, folder.with_name(f"{folder.name},seed={seed}")))
    return runs


def _interrupted(step: int, num_steps: int, path: Path, argv: Sequence[str]) -> int:
    again = [argument for argument in argv if argument.lstrip("-") not in ("overwrite", "resume")]
    print(
        f"\nstopped at step {step:,} of {num_steps:,}; the checkpoint is in {path}. Go on with:\n"
        f"  {shlex.join(['signax', 'train', *again, '--resume'])}",
        file=sys.stderr,
    )
    return 130
