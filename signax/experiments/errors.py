"""What ends a run with one clear line: a mistake at the keyboard, or replicas that drifted."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn


class OneLineError(Exception):
    """An error that the command line prints as one line on stderr, without a traceback."""

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class UsageError(OneLineError):
    """What was asked for cannot be done; the message says what, why, and what to write instead."""

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """Flags of one command, `prog`; a mistake in them is a `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` lists the flags.")

    def print_help(self, file: Any = None) -> None:
        """Prints it; argparse's own hides that it cannot be written."""
        print(self.format_help(), end="", file=file)


class DriftError(OneLineError):
    """The workers' parameters are no longer the same; nothing after that step can be trusted."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that does not exist, with the nearest ones that do."""
    known = sorted(known)
    within = [other for other in known if len(name) > 2 and name in other]
    near = within or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return UsageError(f"unknown {kind} {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return UsageError(f"unknown {kind} {name!r}. There is: {', '.join(known)}.")
