"""N local processes that are one run: what they print, what they are told, how they end.

When one dies the run is over, and the others are stopped at once: they could only wait for it. The
one to blame is often not the first to end. Its peers notice that it is gone (a connection that
breaks, a heartbeat that stays away) and end by themselves, with statuses that say "lost".
"""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from signax.experiments import cluster, processes

Write = Callable[[int, str, IO[str]], None]  # rank, line, sys.stdout or sys.stderr
_LOST = (cluster.LostError.exit_status, -signal.SIGABRT)  # a peer's end: see `native_log`
_STOPPED = 130
_GRACE = 3.0  # seconds for the one to blame to be seen, after the first of its peers has ended
_PAUSE = 0.05
_NOISE = ("[Gloo]",)  # lines that gloo prints for itself


class End(NamedTuple):
    """How a run ended."""

    status: int  # 0, 130 after SIGINT or SIGTERM, or that of the process to blame
    rank: int | None = None  # who is to blame
    how: str = ""


def run(
    commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], write: Write
) -> End:
    """Starts the processes, passes their lines and our signals on, and waits for their end.

    Args:
      commands: one for each process.
      environments: what each process gets besides this one's environment.
      write: called with each line that a process prints.

    Raises:
      OSError: what the processes printed could not be written, such as on a full disk. They have
        ended as they would have: a run is worth more than its lines.
    """
    unwritten: list[OSError] = []
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen] = []
        signals = stack.enter_context(_signals_passed_on(started))
        for rank, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            process = processes.start(command, environment, subprocess.PIPE)
            stack.enter_context(_relayed(process, rank, write, unwritten))
            stack.callback(processes.kill, process)
            started.append(process)
        end = _wait(started, signals)
    if unwritten and end.rank is None:
        raise unwritten[0]
    return end


def meeting_environment(rank: int, num: int, address: str) -> dict[str, str]:
    """What tells a process who the others are, and that it has one CPU device until it asks."""
    return {
        cluster.COORDINATOR: address,
        cluster.NUM_PROCESSES: str(num),
        cluster.PROCESS_ID: str(rank),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _wait(started: Sequence[subprocess.Popen], signals: Sequence[int]) -> End:
    """Until all have ended well, or one has not."""
    first_loss = None
    while True:
        statuses = [process.poll() for process in started]
        is_over = all(status is not None for status in statuses)
        is_lost = any(status not in (None, 0, _STOPPED) for status in statuses)
        if is_over and not is_lost:
            return End(max(status or 0 for status in statuses))
        if is_lost and first_loss is None:
            first_loss = time.monotonic()
        must = is_over or (is_lost and time.monotonic() - (first_loss or 0.0) > _GRACE)
        if (signals and must) or len(signals) > 1:
            return End(_STOPPED)
        if is_lost and not signals and (end := _blamed(started, statuses, must)):
            return end
        time.sleep(_PAUSE)


def _blamed(
    started: Sequence[subprocess.Popen], statuses: Sequence[int | None], must: bool
) -> End | None:
    """Who is to blame; None as long as it may still turn out, unless it `must` be said."""
    for rank, status in enumerate(statuses):
        if status and status not in (*_LOST, _STOPPED):
            return End(status, rank, _how(status))
    silent = [rank for rank, status in enumerate(statuses) if status is None]
    for rank in silent:
        if _is_stopped(started[rank].pid):
            return End(1, rank, "is stopped and no longer answers")
    if not must:
        return None
    if silent:
        return End(1, silent[0], "no longer answers")
    rank, status = next((r, s) for r, s in enumerate(statuses) if s)
    return End(status or 1, rank, _how(status or 1))


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP or a debugger; only Linux says so."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


@contextlib.contextmanager
def _signals_passed_on(started: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to every process, and into a list; the second one ends them at once."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def pass_on(signum: int, frame: Any) -> None:
        del frame
        signals.append(signum)
        for process in started:
            process.send_signal(signum)

    signums = (signal.SIGINT, signal.SIGTERM)
    before = {signum: signal.signal(signum, pass_on) for signum in signums}
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _relayed(
    process: subprocess.Popen, rank: int, write: Write, unwritten: list[OSError]
) -> Iterator[None]:
    """Passes on what the process prints, to its last line, as far as it can be written."""

    def relay(output: IO[str], to: IO[str]) -> None:
        with output:
            for line in output:
                if line.strip() and not line.startswith(_NOISE):
                    try:
                        write(rank, line, to)
                    except BrokenPipeError:  # `signax launch ... | head`: nobody reads on
                        pass
                    except OSError as error:  # reading on: the process would wait for a reader
                        unwritten.append(error)

    pipes = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    threads = [threading.Thread(target=relay, args=pipe, daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(_GRACE)
