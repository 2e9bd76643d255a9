"""A run's directory: `run.json`, `metrics.jsonl`, `curves.png`, `result.json`, `checkpoints/`.

A directory that holds a run is never written over unasked: `--resume` continues that run,
`--overwrite` throws it away.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signax.experiments.errors import UsageError

Row = dict[str, float]

_WRITTEN = ("run.json", "metrics.jsonl", "curves.png", "result.json")
# Fields that a continued run may change: they alter no step.
_FREE_FIELDS = ("checkpoint_every", "eval_every", "mnist_dir")


class Workdir:
    """One run's directory and its rows of metrics."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        num_workers: int,
        *,
        resume: bool,
        overwrite: bool,
        may_change_workers: bool = False,
    ):
        """Makes or opens the directory.

        Args:
          path: the directory.
          config: what is going to be run; a resumed run must have been run with the same.
          num_workers: M, as found: the config may leave it open.
          resume: whether to continue the run that lies here.
          overwrite: whether to throw away the run that lies here.
          may_change_workers: whether the resumed run may have had another number of workers.
        """
        self.path = path
        self.saved_num_workers = num_workers
        self._may_change_workers = may_change_workers
        run = {"num_workers": num_workers, "config": config}
        try:
            self._open(json.loads(json.dumps(run)), resume, overwrite)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"cannot write in the work directory {path}: {reason}.") from error

    def _open(self, run: dict[str, Any], resume: bool, overwrite: bool) -> None:
        described = self.path / "run.json"
        has_begun = self._metrics.exists() and self._metrics.stat().st_size > 0
        if resume and not described.exists():
            raise UsageError(f"{self.path} holds no run to resume: leave --resume out.")
        if has_begun and not (resume or overwrite):
            raise UsageError(
                f"{self.path} already holds a run: --resume continues it, --overwrite starts it "
                "again, --workdir=DIR starts a new one elsewhere."
            )
        if resume:
            saved = json.loads(described.read_text())
            if self._may_change_workers:
                self.saved_num_workers = saved["num_workers"]
            _check_same_run(saved, run, self._may_change_workers)
        if overwrite:
            self._remove_run()
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics.touch()
        self._run = run
        if self.saved_num_workers == run["num_workers"]:
            self.describe_run()

    def describe_run(self) -> None:
        """Writes `run.json`; with another number of workers, not before their first checkpoint."""
        self.write_json("run.json", self._run)

    def _remove_run(self) -> None:
        """Removes what a run writes, and nothing else that may lie here."""
        if (self.path / "checkpoints").exists():
            shutil.rmtree(self.path / "checkpoints")
        for name in _WRITTEN:
            (self.path / name).unlink(missing_ok=True)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def rewind(self, step: int) -> list[Row]:
        """Drops the rows after `step` (written after the last checkpoint) and returns the rest."""
        rows = [json.loads(line) for line in self._metrics.read_text().splitlines()]
        kept = [row for row in rows if row["step"] <= step]
        self._metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def append(self, row: Row) -> None:
        """Adds one row to `metrics.jsonl`."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one of the JSON files."""
        (self.path / name).write_text(json.dumps(content, indent=2) + "\n")


def _check_same_run(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], may_change_workers: bool
) -> None:
    if saved["num_workers"] != wanted["num_workers"] and not may_change_workers:
        raise UsageError(
            f"the checkpoint holds the memory of {saved['num_workers']} workers and this run has "
            f"{wanted['num_workers']}: pass --config.num_workers={saved['num_workers']}, or "
            "--change_num_workers=mean to go on with the mean of their memories."
        )
    free = (*_FREE_FIELDS, "num_workers") if may_change_workers else _FREE_FIELDS
    old, new = _flat(saved["config"]), _flat(wanted["config"])
    for name in {**old, **new}:
        if old.get(name) != new.get(name) and name not in free:
            raise UsageError(
                f"the run to resume has config.{name}={old.get(name)!r} and this one "
                f"{new.get(name)!r}: pass --config.{name}={old.get(name)}, or another --workdir."
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat
