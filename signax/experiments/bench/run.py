"""Runs the parts: each in a process of its own, or one here, or one of several processes' share."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import signax
from signax.experiments import cluster, processes, workers
from signax.experiments.bench import bits, chart, hosts, kernels, local, report, steps
from signax.experiments.bench.settings import Settings
from signax.experiments.bench.timing import Group, measure
from signax.experiments.folder import make_folder, unwritable

_MOST_CPU_WORKERS = 8  # of the table of bits
_CPU_WORKERS = 4  # of the steps


def run(settings: Settings, argv: Sequence[str]) -> int:
    """Measures what was asked for, prints it, writes JSON and PNG; returns the exit status."""
    steps.require_known(settings.only)
    make_folder(settings.workdir)
    if meeting := cluster.meeting_of():
        return cluster.run_joined(
            meeting, cluster.HEARTBEAT_TIMEOUT, lambda: _measure(settings, ("steps",))
        )
    if settings.mesh:
        return _compile_on_hosts(settings, settings.mesh)
    if settings.processes:
        command = processes.python("bench", *without(argv, "--processes", "--bandwidth"))
        status = local.run(command, settings.processes, settings.bandwidth, settings.workdir)
        return status or _note_settings(settings)
    if len(settings.parts) == 1:
        return _measure(settings, settings.parts)
    return _run_apart(settings, argv)


def _run_apart(settings: Settings, argv: Sequence[str]) -> int:
    """Each part in a process of its own: with its number of devices, and a fresh allocator."""
    merged: dict[str, Any] = {}
    for part in settings.parts:
        folder = settings.workdir / part
        flags = [*without(argv, "--parts", "--workdir"), f"--parts={part}", f"--workdir={folder}"]
        process = processes.start(processes.python("bench", *flags), {"PYTHONUNBUFFERED": "1"})
        try:
            status = process.wait()
        finally:
            processes.end(process)
        if status:
            return status
        one = json.loads((folder / "bench.json").read_text())
        merged = {**one, **merged, **{k: merged.get(k, []) + one[k] for k in ("groups", "bits")}}
    merged["settings"] = settings.to_json()
    _write(settings.workdir, merged)
    return 0


def _note_settings(settings: Settings) -> int:
    """Writes down how many processes and what network: they themselves were not told."""
    path = settings.workdir / "bench.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": settings.to_json()}, indent=2) + "\n")
    return 0


def _measure(settings: Settings, parts: Sequence[str]) -> int:
    groups: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    for part in parts:
        if part == "bits":
            table = _bits(settings)
        else:
            groups += _timed(part, _groups(part, settings), settings)
    if cluster.is_first():
        content = {
            "signax": signax.__version__,
            "machine": report.machine(),
            "settings": settings.to_json(),
            "groups": groups,
            "bits": table,
        }
        _write(settings.workdir, content)
    return 0


def _compile_on_hosts(settings: Settings, mesh: tuple[int, int]) -> int:
    rows = []
    for row in hosts.rows(*mesh, settings.parameters, settings.batch):
        _say(f"compiled: {row['optimizer']}")
        rows.append(row)
    print(hosts.table(rows, mesh), flush=True)
    content = {
        "signax": signax.__version__,
        "machine": report.machine(),
        "settings": settings.to_json(),
        "hosts": rows,
    }
    _write(settings.workdir, content)
    return 0


def _groups(part: str, settings: Settings) -> Iterable[Callable[[], Group]]:
    if part == "kernels":
        makers = [
            kernels.groups(size, settings.leaves, is_quick=settings.quick)
            for size in settings.sizes
        ]
        return itertools.chain.from_iterable(makers)
    return steps.groups(settings, _mesh(settings.workers))


def _mesh(num_workers: int | None) -> Mesh:
    if cluster.num_processes() != 1:  # which does not start JAX: CPU devices are yet to be made
        return signax.make_worker_mesh(None, workers.AXIS_NAME)
    mesh = workers.make_mesh(num_workers)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return workers.make_mesh(_CPU_WORKERS) if num_workers is None and on_cpu else mesh


def _timed(
    part: str, makers: Iterable[Callable[[], Group]], settings: Settings
) -> list[dict[str, Any]]:
    results = []
    for make in makers:
        group = make()
        _say(f"measuring: {group.title}")
        times = measure(
            group,
            settings.rounds,
            settings.seconds,
            agree=cluster.agree,
            repeat=part == "kernels",
            on_round=_Progress(),
        )
        result = report.result_of(part, group, times)
        del group
        if cluster.is_first():
            print(report.table(result), flush=True)
        results.append(result)
    return results


def _bits(settings: Settings) -> list[dict[str, Any]]:
    most = settings.workers or _MOST_CPU_WORKERS
    workers.make_mesh(most)  # makes the CPU devices
    rows = []
    for row in bits.rows(min(most, len(jax.devices())), is_quick=settings.quick):
        _say(f"compiled: {row['algorithm']}, {row['wire']}, {row['num_workers']} workers")
        rows.append(row)
    print(report.bits_table(rows), flush=True)
    return rows


class _Progress:
    """A line now and then on stderr, so that a slow network is seen to be working."""

    def __init__(self):
        self._last = time.monotonic()

    def __call__(self, done: int, rounds: int) -> None:
        if time.monotonic() - self._last > 5 or done == 1:
            self._last = time.monotonic()
            _say(f"  round {done} of {rounds}")


def _say(line: str) -> None:
    if cluster.is_first():
        print(line, file=sys.stderr, flush=True)


def _write(workdir: Path, content: dict[str, Any]) -> None:
    try:
        (workdir / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
        where = content["machine"]
        title = f"signax {content['signax']} on {where['device']}, {where['cpu_count']} cores, "
        title += f"jax {where['jax']}"
        if "groups" in content:
            chart.draw(content["groups"], content["bits"], title, workdir / "bench.png")
    except OSError as error:
        raise unwritable(workdir, error) from error
    names = "{bench.json, bench.png}" if "groups" in content else "bench.json"
    print(f"\nwritten to {workdir}{os.sep}{names}", flush=True)


def without(argv: Sequence[str], *names: str) -> list[str]:
    """The flags but for these, written `--name value` or `--name=value`."""
    kept, skip = [], False
    for argument in argv:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif argument.partition("=")[0] not in names:
            kept.append(argument)
    return kept
