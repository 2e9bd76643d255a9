"""Mistakes of the person at the keyboard: one clear line, never a traceback."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """What was asked for cannot be done; the message says what, why, and what to write instead.

    The command line prints it as one line on stderr and ends with exit status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(known)}."
    return UsageError(f"unknown {kind} {name!r}. {hint}")
