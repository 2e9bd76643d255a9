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
    """Returns the error for a name that does not exist, with the nearest ones that do."""
    known = sorted(known)
    within = [other for other in known if len(name) > 2 and name in other]
    near = within or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return UsageError(f"unknown {kind} {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return UsageError(f"unknown {kind} {name!r}. There is: {', '.join(known)}.")
