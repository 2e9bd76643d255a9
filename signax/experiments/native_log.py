"""One line in place of a stack trace, when JAX's runtime ends the process.

A process that stops answering is noticed by JAX's coordination service, which then ends all the
others by `abort()`: nothing in Python can catch that, and it prints a page. So the native libraries
are given another standard error, a pipe to a small process that passes their lines on and puts one
readable line in place of that page. Python's own `sys.stderr` stays as it is.

Run as a program, this file is that small process: it imports no more than it needs to start fast.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

_QUIET = ("[Gloo]", "*** Check failure stack trace", "    @ ")
_POLLED = re.compile(r"^E\d+ .*(?:Polled an error from coordination|Use error polling)")
_FATAL = re.compile(r"^F\d+ .*Terminating process because the JAX distributed service")
_LINE = "signax: error: {}\n"


def condense() -> None:
    """Sends what native code writes on standard error through `condensed`, until this ends."""
    sys.stderr.flush()
    mine = os.dup(2)
    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=mine, text=True
    )
    assert helper.stdin is not None
    os.dup2(helper.stdin.fileno(), 2)
    helper.stdin.close()
    helper.returncode = 0  # nobody waits for it: it ends after this process has, with the pipe
    sys.stderr = os.fdopen(mine, "w", buffering=1, errors="backslashreplace")


def condensed(lines: Iterable[str]) -> Iterator[str]:
    """The lines, with one in place of what the runtime prints before it ends the process."""
    page: list[str] = []
    for line in lines:
        if page or _FATAL.match(line) or _POLLED.match(line):
            page.append(line)
        elif not line.startswith(_QUIET):
            yield line
    text = "".join(page)
    if "Terminating process" in text:
        yield _LINE.format(_reason(text))


def _reason(text: str) -> str:
    silent = re.search(r"stopped sending heartbeats\):\n((?:[^\n]*\d+\n)+)", text)
    if silent:
        who = ", ".join(re.findall(r"(\d+)$", silent[1], re.MULTILINE))
        return f"no heartbeat from process {who}: stopped, or cut off. This one ends."
    if "RegisterTask" in text:
        return "not all processes have come in time. This one ends. See --heartbeat_timeout."
    if "CoordinationService/Heartbeat" in text:
        return "no heartbeat from process 0, the coordinator: stopped, or cut off. This one ends."
    if "Failed to send RPC" in text or "Socket closed" in text:
        return "process 0, the coordinator, is gone. This one ends."
    status = re.search(r"Status: ([^\n]*)", text)
    return f"another process is lost, and this one ends: {status[1] if status else 'no reason'}"


if __name__ == "__main__":
    import signal

    for signum in (signal.SIGINT, signal.SIGTERM):  # it ends with its pipe, not before
        signal.signal(signum, signal.SIG_IGN)
    for line in condensed(sys.stdin):
        sys.stdout.write(line)
        sys.stdout.flush()
