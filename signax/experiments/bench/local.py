"""`signax bench --processes=N`: the same benchmark in N local processes, over a network or not."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from signax.experiments import fleet, processes
from signax.experiments.bench import network
from signax.experiments.errors import UsageError
from signax.experiments.folder import make_folder


def run(command: Sequence[str], num: int, bandwidth: int | None, logs: Path) -> int:
    """Runs `command` in `num` processes joined by JAX; returns the exit status.

    The first process's output is shown, the others' is written to `logs`/process-N.log.
    """
    make_folder(logs)
    paths = [logs / f"process-{rank}.log" for rank in range(num)]
    with contextlib.ExitStack() as stack:
        if bandwidth is None:
            prefixes, address = [[]] * num, f"127.0.0.1:{processes.free_port()}"
        else:
            links = stack.enter_context(network.slow_network(num, bandwidth))
            prefixes, address = links.prefixes, links.address
        files = [stack.enter_context(path.open("w")) for path in paths]

        def write(rank: int, line: str, to: IO[str]) -> None:
            print(line, end="", file=files[rank] if rank else to, flush=True)

        environments = [fleet.meeting_environment(rank, num, address) for rank in range(num)]
        end = fleet.run([[*prefix, *command] for prefix in prefixes], environments, write)
    if end.rank is None:
        return end.status
    raise UsageError(
        f"process {end.rank} of {num} {end.how}, and the others were stopped."
        f"{_last_words(paths[end.rank])}"
    )


def _last_words(log: Path) -> str:
    lines = log.read_text().splitlines()[-3:]
    return f" {log} ends: {' '.join(lines)}" if lines else ""
