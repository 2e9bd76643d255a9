"""`signax bench --to_accuracy`: N local processes for each bandwidth, and what they measured."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import signax
from signax.experiments import cluster, processes
from signax.experiments.bench import local, race, race_chart, race_report, report
from signax.experiments.bench.race_settings import LOOPBACK, Race
from signax.experiments.bench.run import without
from signax.experiments.bench.settings import parse_bandwidth
from signax.experiments.errors import UsageError
from signax.experiments.folder import make_folder

_OF_THE_PARENT = ("--bandwidths", "--workdir", "--share")


def run(settings: Race, argv: Sequence[str]) -> int:
    """Measures, prints the tables, writes JSON and PNG; returns the exit status."""
    meeting = cluster.meeting_of()
    if settings.share:
        share = settings.share
        return cluster.run_joined(
            meeting, cluster.HEARTBEAT_TIMEOUT, lambda: race.run_share(settings, share)
        )
    if meeting:
        raise UsageError(
            "--to_accuracy starts its own processes on one machine: run it without a launcher."
        )
    has_dense_phase = {run: _has_dense_phase(settings, run) for run in settings.runs}
    make_folder(settings.workdir)
    outcomes: list[dict[str, Any]] = []
    status = 0
    for name in settings.bandwidths:
        is_trained = settings.full or name == settings.bandwidths[0]
        steps = {
            run: None if is_trained or has_dense_phase[run] else settings.timed_steps
            for run in settings.runs
        }
        status = _at(settings, name, steps, argv)
        outcomes += _outcomes(settings.workdir / name, settings.runs)
        if status:
            break
    if outcomes:
        _write(settings, race_report.rows_of(outcomes, settings.target), outcomes)
    return status


def _has_dense_phase(settings: Race, run: str) -> bool:
    """Whether the first exchanges differ from the rest; reading the config is a check as well."""
    optimizer = settings.config_of(run).optimizer
    return bool(optimizer.dense.steps or optimizer.freeze_steps)


def _at(settings: Race, name: str, steps: dict[str, int | None], argv: Sequence[str]) -> int:
    """All runs at one bandwidth, by N processes that are started once."""
    folder = settings.workdir / name
    kept = {
        outcome["run"]
        for outcome in (_outcomes(folder, settings.runs) if settings.resume else ())
        if outcome["asked"] == settings.asked_of(outcome["run"], steps[outcome["run"]])
    }
    steps = {run: num for run, num in steps.items() if run not in kept}
    if not steps:
        return 0
    share = folder / "share.json"
    make_folder(folder)
    for run in steps:
        (folder / f"{run or 'run'}.json").unlink(missing_ok=True)
    share.write_text(json.dumps({"network": name, "runs": steps}) + "\n")
    flags = [*without(argv, *_OF_THE_PARENT), f"--share={share}"]
    bandwidth = None if name == LOOPBACK else parse_bandwidth(name)
    return local.run(processes.python("bench", *flags), settings.processes, bandwidth, folder)


def _outcomes(folder: Path, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Of the runs that came to an end."""
    files = [folder / f"{run or 'run'}.json" for run in runs]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _write(settings: Race, rows: list[race_report.Row], outcomes: list[dict[str, Any]]) -> None:
    print(race_report.tables(rows, settings.target), flush=True)
    content = {
        "signax": signax.__version__,
        "machine": report.machine(),
        "settings": settings.to_json(),
        "rows": [row._asdict() for row in rows],
        "outcomes": outcomes,
    }
    path = settings.workdir / "to_accuracy.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    race_chart.draw(rows, outcomes, settings.target, path.with_suffix(".png"))
    print(f"\nwritten to {settings.workdir}{os.sep}{{to_accuracy.json, to_accuracy.png}}")
