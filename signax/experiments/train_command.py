"""`signax train`: flags only; what they start is `signax.experiments.train`.

Exit status: 0 finished, 1 the workers' parameters drifted apart, 2 a mistake in what was asked for,
3 another process is lost, 130 stopped by SIGINT or SIGTERM (with a checkpoint).
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from signax.experiments import cluster
from signax.experiments.compare_command import comparison
from signax.experiments.config_flag import parse_flags
from signax.experiments.default_config import Config, get_config
from signax.experiments.errors import UsageError
from signax.experiments.folder import named
from signax.experiments.launch_command import LAUNCHED_AT
from signax.experiments.report import report
from signax.experiments.train import train
from signax.experiments.workdir import require_no_run
from signax.experiments.workers import make_cpu_devices

_HELP = """usage: signax train [--config=FILE.py] [--config.FIELD=VALUE ...] [flags]

Train a network with M workers that vote on every step.

  signax train
  signax train --config=configs/mnist.py:signum
  signax train --config.optimizer.name=ssdm --config.batch_size=128

  --workdir=DIR      where to write; default: runs/NAME, named after the config and what was changed
  --resume           continue the run that lies there, bit for bit
  --resume_or_start  continue the run that lies there, or start it if there is none
  --overwrite        throw away the run that lies there
  --change_num_workers=mean|zero
                     with --resume and another number of workers: each starts with the mean of
                     the old workers' memories, or with none
  --check_sync_every=N
                     every N steps (default 100; 0: never) compare the workers' parameters bit for
                     bit, and stop if they differ
  --seeds=0,1,2      one run for each seed, and a table of mean and spread

Several processes, on one host or many (the first one prints and writes); `signax launch` starts
local ones. Under srun, mpirun and on GKE's TPUs they are found without a flag.

  --coordinator=HOST:PORT --num_processes=N --process_id=I
                     where process 0 listens, how many there are, and which one this is: 0, 1, ...
  --distributed      let JAX find the others (SLURM, Open MPI, Cloud TPU, Kubernetes);
                     --nodistributed: train alone, whatever the environment says
  --heartbeat_timeout=SECONDS
                     after which a silent process counts as dead and all others end (default 30);
                     as long is waited, at the start, for all to come

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
    if flag["overwrite"] and (flag["resume"] or (flag["resume_or_start"] and not _LAUNCHED_AT)):
        raise UsageError("--resume continues a run and --overwrite throws it away: choose one.")
    if flag["change_num_workers"] and not (flag["resume"] or flag["resume_or_start"]):
        raise UsageError("--change_num_workers changes a run that goes on: add --resume.")
    default = Path("runs") / chosen.name
    folder = default if flag["workdir"] is None else named(flag["workdir"])
    runs = _one_per_seed(chosen.config, folder, flag["seeds"])
    timeout: Any = flag_values["heartbeat_timeout"].value
    return cluster.run_joined(_meeting(flag_values), timeout, lambda: _train(runs, flag, argv))


def _train(runs: Sequence[tuple[Config, Path]], flag: Any, argv: Sequence[str]) -> int:
    first, _ = runs[0]
    # Before the first process is asked for anything: that starts JAX.
    make_cpu_devices(first.num_workers, first.devices_per_worker)
    if not any(flag[name] for name in _SWITCHES):
        cluster.from_first(lambda: [require_no_run(path) for _, path in runs])
    others = {name: flag[name] for name in _OTHERS}
    results = []
    for config, path in runs:
        resume = flag["resume"] or flag["resume_or_start"]
        # Of several seeds, the first may be finished and the last not begun.
        if flag["resume_or_start"] or (resume and len(runs) > 1):
            since = _LAUNCHED_AT if flag["overwrite"] else 0.0
            resume = cluster.from_first(lambda path=path, since=since: _has_begun(path, since))
        overwrite = flag["overwrite"] and not resume
        result = train(config, path, resume=resume, overwrite=overwrite, **others)
        if not result.is_finished:
            return _interrupted(result.step, config.num_steps, path, argv)
        _say(f"\n{report(result)}\nwritten to           {path}{_FILES}")
        results.append((path, result.to_dict()))
    if len(results) > 1:
        _say(f"\n{comparison(results)}")
    return 0


def _has_begun(path: Path, since: float) -> bool:
    """Whether a run lies here that is no older than that, in seconds since the epoch."""
    described = path / "run.json"
    return described.exists() and described.stat().st_mtime >= since


def _say(text: str, file: Any = None) -> None:
    if cluster.is_first():
        print(text, file=file, flush=True)


def _meeting(flag_values: flags.FlagValues) -> cluster.Meeting | None:
    """Where the flags, or a launcher's environment, say that processes meet; None: one alone."""
    given = {name: flag_values[name].value for name in cluster.Meeting._fields}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing:
            raise UsageError(
                "--coordinator=HOST:PORT, --num_processes=N and --process_id=I belong together: "
                f"add {' and '.join(missing)}."
            )
        return cluster.checked(cluster.Meeting(**given))
    is_distributed = flag_values["distributed"].value
    if is_distributed is False:
        return None
    return cluster.meeting_of() or (cluster.Meeting() if is_distributed else None)


# When `signax launch` first started this run: what is older is what --overwrite speaks of.
_LAUNCHED_AT = float(os.environ.get(LAUNCHED_AT, "0"))
_SWITCHES = ("resume", "resume_or_start", "overwrite")
_OTHERS = ("change_num_workers", "check_sync_every")
_FILES = "/{curves.png, metrics.jsonl, result.json, checkpoints}"


def _define_flags() -> flags.FlagValues:
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where to write", flag_values=flag_values)
    for name in _SWITCHES:
        flags.DEFINE_bool(name, False, name, flag_values=flag_values)
    flags.DEFINE_enum("change_num_workers", None, ["mean", "zero"], "how", flag_values=flag_values)
    flags.DEFINE_integer("check_sync_every", 100, "steps", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_list("seeds", None, "one run for each seed", flag_values=flag_values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT", flag_values=flag_values)
    flags.DEFINE_integer("num_processes", None, "N", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "I", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_bool("distributed", None, "let JAX find the others", flag_values=flag_values)
    flags.DEFINE_integer(
        "heartbeat_timeout", cluster.HEARTBEAT_TIMEOUT, "seconds", lower_bound=1,
        flag_values=flag_values,
    )  # fmt: skip
    return flag_values


def _one_per_seed(
    config: Config, folder: Path, seeds: Sequence[str] | None
) -> list[tuple[Config, Path]]:
    if seeds is None:
        return [(config, folder)]
    if (
        not seeds
        or not all(seed.isdecimal() for seed in seeds)
        or len({*map(int, seeds)}) < len(seeds)
    ):
        raise UsageError(
            f"--seeds={','.join(seeds)}: seeds are whole numbers, each once, such as --seeds=0,1,2."
        )
    runs = []
    for seed in map(int, seeds):
        copy = config.copy_and_resolve_references()
        copy.seed = seed
        runs.append((copy, folder.with_name(f"{folder.name},seed={seed}")))
    return runs


def _interrupted(step: int, num_steps: int, path: Path, argv: Sequence[str]) -> int:
    again = [part for part in argv if part.lstrip("-").partition("=")[0] not in _SWITCHES]
    start = ["signax", "train"]
    if os.environ.get(LAUNCHED_AT):
        start = ["signax", "launch", "-n", str(jax.process_count()), "--", "train"]
    _say(
        f"\nstopped at step {step:,} of {num_steps:,}; the checkpoint is in {path}. Go on with:\n"
        f"  {shlex.join([*start, *again, '--resume'])}",
        sys.stderr,
    )
    return 130
