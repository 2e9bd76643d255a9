"""Local processes: started, and ended whatever happens.

Each process reads its standard input and ends when that closes, so that none outlives this one,
even if this one is killed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

CHILD = "SIGNAX_CHILD"  # set in processes that must end with their parent
_GRACE = 5.0  # seconds between asking and ending


def end_with_parent() -> None:
    """Ends this process when its standard input closes, if another `signax` has started it."""
    if not os.environ.get(CHILD):
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt too, so that `finally` runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        del frame
        raise KeyboardInterrupt(signum)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start(
    command: Sequence[str], environment: dict[str, str], output: int | None = None
) -> subprocess.Popen:
    """Starts a process that ends with this one; `output=subprocess.PIPE` to read what it prints."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env={**os.environ, CHILD: "1", **environment},
        start_new_session=True,  # Ctrl-C reaches only the parent, who ends the others in order
        text=True,
        errors="replace",
    )


def end(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started: asks first."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_all_of(process, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def kill(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started, at once; a stopped one, too."""
    _signal_all_of(process, signal.SIGKILL)
    process.wait()
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def python(*arguments: str) -> list[str]:
    """The command line of this `signax`."""
    return [sys.executable, "-m", "signax.experiments.cli", *arguments]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _signal_all_of(process: subprocess.Popen, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)
