"""`signax launch -n N -- COMMAND ...`: one machine plays a cluster.

Exit status: 0 finished, 130 stopped by SIGINT or SIGTERM, else that of the process which ended the
run (1 where a signal did).
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from signax.experiments import fleet, processes
from signax.experiments.errors import OneLineError, Parser, UsageError

LAUNCHED_AT = "SIGNAX_LAUNCHED_AT"  # seconds since the epoch: a younger run is ours
_MISTAKE = 2  # exit status: the next try would make it, too
_DESCRIPTION = """\
Starts N local processes on the CPU that train together, as hosts of a cluster would.

  signax launch -n 4 -- train --config=configs/digits.py:ssdm
  signax launch -n 4 --restarts=3 -- train --config.checkpoint_every=100
  signax launch -n 4 --restarts=3 --restart_with=3 -- train --config.batch_size=252
  signax launch -n 3 -- train --config.batch_size=252 --resume --change_num_workers=mean

Every line is printed with the number of its process. SIGINT and SIGTERM are passed on: training
ends after the steps in hand, with a checkpoint. When a process dies the others are stopped at once.
"""


class LaunchError(OneLineError):
    """A process has ended the run."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def main(argv: Sequence[str]) -> int:
    """Starts the processes, again if need be, and returns the exit status."""
    try:
        flags, command = _parse(argv)
    except SystemExit as ended:  # --help
        return int(ended.code or 0)
    num, launched_at = flags.n, str(time.time())
    for restart in range(flags.restarts + 1):
        end = _run(num, command, {LAUNCHED_AT: launched_at})
        if end.rank is None:
            return end.status
        reason = f"process {end.rank} of {num} {end.how}, and the others were stopped"
        if restart == flags.restarts or end.status == _MISTAKE:
            break
        num_before, num = num, flags.restart_with or num
        command = _going_on(command, num != num_before)
        print(
            f"signax: {reason}; restart {restart + 1} of {flags.restarts}, with {num} processes, "
            "from the last checkpoint",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    raise LaunchError(f"{reason}.{_advice(num, command, end)}", max(1, end.status))


def _run(num: int, command: Sequence[str], environment: dict[str, str]) -> fleet.End:
    address = f"127.0.0.1:{processes.free_port()}"
    # A platform that the user names is the user's business.
    named = {name: os.environ[name] for name in ("JAX_PLATFORMS",) if name in os.environ}
    environments = [
        {**fleet.meeting_environment(rank, num, address), **named, **environment}
        for rank in range(num)
    ]
    return fleet.run([processes.python(*command)] * num, environments, _write)


def _write(rank: int, line: str, to: IO[str]) -> None:
    print(f"[{rank}] {line.rstrip()}", file=to, flush=True)


def _going_on(command: Sequence[str], is_other_number: bool) -> list[str]:
    """`train`, continuing what it has begun; `--overwrite` stays, for what lay there before."""
    wanted = ["--resume_or_start", *["--change_num_workers=mean"] * is_other_number]
    kept = [flag for flag in command if flag not in ("--resume", "--resume=true")]
    return [*kept, *[flag for flag in wanted if flag not in kept]]


def _advice(num: int, command: Sequence[str], end: fleet.End) -> str:
    if end.status == _MISTAKE:
        return ""
    kept = [flag for flag in command if "overwrite" not in flag and "resume" not in flag]
    again = shlex.join(["signax", "launch", "-n", str(num), "--", *kept, "--resume_or_start"])
    return f" Go on from the last checkpoint, if there is one, with: {again}"


def _parse(argv: Sequence[str]) -> tuple[Any, list[str]]:
    parser = Parser(
        prog="signax launch",
        usage="signax launch -n N [flags] -- train [flags of train]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("-n", type=int, required=True, metavar="N", help="how many processes")
    add("--restarts", type=int, default=0, metavar="K", help="how often to start again; default: 0")
    add("--restart_with", type=int, metavar="N", help="processes of a restart; default: as many")
    if "--" not in argv and "train" in argv:
        at = argv.index("train")
        divided = shlex.join(["signax", "launch", *argv[:at], "--", *argv[at:]])
        raise UsageError(f"-- must stand before what is launched: {divided}")
    split = [*argv, "--"].index("--")
    flags, command = parser.parse_args(argv[:split]), [*argv[split + 1 :]]
    if command[:1] != ["train"]:
        what = f"{command[0]!r} cannot be launched, only train can" if command else "say what"
        raise UsageError(f"{what}: signax launch -n {flags.n} -- train --config=FILE.py.")
    for name, least in (("n", 1), ("restarts", 0), ("restart_with", 1)):
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UsageError(f"{'-' if name == 'n' else '--'}{name}={value}: at least {least}.")
    return flags, command
