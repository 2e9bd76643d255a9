"""Local processes that play a cluster: started, watched, and ended whatever happens.

Each process reads its standard input and ends when that closes, so that none outlives this one,
even if this one is killed.
"""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from signax.experiments import cluster
from signax.experiments.bench import network
from signax.experiments.errors import UsageError

CHILD = "SIGNAX_BENCH_CHILD"  # set in processes that must end with their parent
_GRACE = 5.0  # seconds between asking and ending
_NOISE = ("[Gloo]",)  # lines that gloo prints for itself


def end_with_parent() -> None:
    """Ends this process when its standard input closes."""
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


def run(command: Sequence[str], num: int, bandwidth: int | None, logs: Path) -> int:
    """Runs `command` in `num` processes joined by JAX; returns the first exit status that is not 0.

    The first process's output is shown, the others' is written to `logs`/process-N.log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if bandwidth is None:
            prefixes, address = [[]] * num, f"127.0.0.1:{_free_port()}"
        else:
            links = stack.enter_context(network.slow_network(num, bandwidth))
            prefixes, address = links.prefixes, links.address
        started = []
        for rank, prefix in enumerate(prefixes):
            log = stack.enter_context((logs / f"process-{rank}.log").open("w"))
            output = subprocess.PIPE if rank == 0 else log
            process = start([*prefix, *command], _environment(rank, num, address), output)
            stack.callback(end, process)
            started.append(process)
        stack.enter_context(_relayed(started[0]))
        return _wait(started, logs)


def start(
    command: Sequence[str], environment: dict[str, str], output: Any = None
) -> subprocess.Popen:
    """Starts a process that ends with this one."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**os.environ, CHILD: "1", **environment},
        start_new_session=True,  # Ctrl-C reaches only the parent, who ends the others in order
        text=True,
    )


def end(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started: asks first."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def python(*arguments: str) -> list[str]:
    """The command line of this `signax`."""
    return [sys.executable, "-m", "signax.experiments.cli", *arguments]


def _environment(rank: int, num: int, address: str) -> dict[str, str]:
    names = (cluster.COORDINATOR, cluster.NUM_PROCESSES, cluster.PROCESS_ID)
    return {
        **dict(zip(names, (address, str(num), str(rank)), strict=True)),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _wait(started: Sequence[subprocess.Popen], logs: Path) -> int:
    """Until all have ended well, or one has not."""
    while True:
        statuses = [process.poll() for process in started]
        for rank, status in enumerate(statuses):
            if status:
                log = logs / f"process-{rank}.log"
                tail = " ".join(log.read_text().splitlines()[-3:])
                raise UsageError(
                    f"process {rank} of {len(started)} ended with exit status {status}, and the"
                    f" others were stopped. {f'{log} ends: {tail}' if tail else ''}"
                )
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(0.1)


@contextlib.contextmanager
def _relayed(process: subprocess.Popen) -> Iterator[None]:
    """Prints what the process prints, to its last line."""
    output = process.stdout or io.StringIO()

    def relay() -> None:
        for line in output:
            if not line.startswith(_NOISE):
                print(line, end="", flush=True)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end(process)
        thread.join(_GRACE)
        output.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
