"""`signax COMMAND ...`: find the command's module, import only that, run it.

A command is a module with `main(argv) -> exit status`, listed in `COMMANDS`. Exit status 0 is
success, 1 a run that cannot go on, 2 a mistake in what was asked for, 3 the loss of another process
(all one line on stderr), 130 an interrupted run.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import signax
from signax.experiments import processes
from signax.experiments.errors import OneLineError, unknown_name

COMMANDS = {
    "train": ("signax.experiments.train_command", "train a network with M voting workers"),
    "launch": (
        "signax.experiments.launch_command",
        "start N local processes that train together, and again if one dies",
    ),
    "bench": (
        "signax.experiments.bench.bench_command",
        "what a step costs here, in ratios and bits",
    ),
    "weights": (
        "signax.experiments.weights_command",
        "which methods follow the weights of workers that differ",
    ),
    "figures": (
        "signax.experiments.figures.figures_command",
        "the paper's figures and claims, measured again",
    ),
    "doctor": (
        "signax.experiments.doctor.doctor_command",
        "will sign methods work on this problem?",
    ),
    "compare": ("signax.experiments.compare_command", "table of finished runs, mean over seeds"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    processes.end_with_parent()
    for stream in ("stdout", "stderr"):  # closed by `>&-`
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    try:
        status = _run(name, rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `signax train --help | head`: nobody reads on, which is no mistake
        _stop_printing()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop_printing()
        where = error.filename or "what was printed or saved"
        return _fail(f"no room to write {where}: {error.strerror}. Free some space, then go on.", 1)
    except KeyboardInterrupt:
        return 130
    except OneLineError as error:
        return _fail(str(error), error.exit_status)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "signax":
            raise  # a mistake of ours, not a missing extra
        return _fail(
            f"`signax {name}` needs {error.name}, which is not installed: install signax-optax with"
            " its extra `train`, such as pip install './signax[train]' beside a clone."
        )


def _run(name: str, argv: Sequence[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"signax {signax.__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    module, _ = COMMANDS[name]
    return importlib.import_module(module).main(argv)


def _help() -> str:
    rows = [f"  {name:<9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: signax COMMAND [flags]",
            "",
            "Sign-based distributed training: one bit per coordinate.",
            "",
            *rows,
            "",
            "`signax COMMAND --help` lists a command's flags; `signax --version` says which one.",
        ]
    )


def _stop_printing() -> None:
    """What is still in the buffer goes nowhere: written at exit, it would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_status: int = 2) -> int:
    print(f"signax: error: {message}", file=sys.stderr)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
