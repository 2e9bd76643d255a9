"""A run's directory: `run.json`, `metrics.jsonl`, `curves.png`, `result.json`, `checkpoints/`.

A directory that holds a run is never written over unasked: `--resume` continues that run,
`--overwrite` throws it away. Of several processes the first alone writes; all must see the
directory, since each writes its workers' part of a checkpoint. A process may be killed at any time:
JSON files are replaced whole, and half a row of metrics counts for nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signax.experiments import cluster
from signax.experiments.agreement import flat
from signax.experiments.default_config import get_config
from signax.experiments.errors import UsageError
from signax.experiments.folder import unwritable

Row = dict[str, float]

_DAMAGED = "Mend the file by hand, or start the run again with --overwrite."

_METRICS = "metrics.jsonl"
_WRITTEN = ("run.json", _METRICS, "curves.png", "result.json")
# Fields that a continued run may change: they alter no step.
_FREE_FIELDS = ("checkpoint_every", "eval_every", "mnist_dir")
# Besides these, with another number of workers: a batch must be divisible by it.
_FREE_WITH_WORKERS = (*_FREE_FIELDS, "num_workers", "devices_per_worker", "batch_size")


def require_no_run(path: Path) -> None:
    """Raises a `UsageError` if a run that has begun lies here."""
    metrics = path / _METRICS
    has_row = metrics.exists() and metrics.stat().st_size > 0
    if has_row or any((path / "checkpoints").glob("[0-9]*")):
        raise UsageError(
            f"{path} already holds a run: --resume continues it, --overwrite starts it again,"
            " --workdir=DIR starts a new one elsewhere."
        )


def what_was_run(path: Path) -> dict[str, Any]:
    """All that decides the steps of the run that lies here, its seed as "config.seed"."""
    saved = _described(path)
    return {
        "num_workers": saved["num_workers"],
        **{f"config.{k}": v for k, v in _fields(saved).items() if k not in _FREE_FIELDS},
    }


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
        self._may_change_workers = may_change_workers
        self._claimed: int | None = None
        self._run = json.loads(json.dumps({"num_workers": num_workers, "config": config}))
        self.saved_num_workers: int = cluster.from_first(lambda: self._open(resume, overwrite))
        self._require_shared()

    def _open(self, resume: bool, overwrite: bool) -> int:
        """Returns how many workers the run that lies here had."""
        try:
            return self._open_or_fail(self._run, resume, overwrite)
        except UsageError:
            self.close()
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _require_shared(self) -> None:
        """All processes must see what the first one has made."""
        sees = cluster.gather_bytes(b"1" if self._metrics.exists() else b"")
        blind = [str(process) for process, mark in enumerate(sees) if not mark]
        if blind:
            raise UsageError(
                f"process {', '.join(blind)} does not see the work directory {self.path.absolute()}"
                " of process 0: --workdir must lie on a file system that all processes share, since"
                " each writes its workers' part of a checkpoint."
            )

    def _open_or_fail(self, run: dict[str, Any], resume: bool, overwrite: bool) -> int:
        described = self.path / "run.json"
        if resume and not described.exists():
            raise UsageError(
                f"{self.path} holds no run to resume: leave --resume out, or pass --workdir=DIR. (A"
                " run's own directory is named after what its command line changed.)"
            )
        if not (resume or overwrite):
            require_no_run(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim()
        saved = run
        if resume:
            saved = _described(self.path)
            _check_same_run(saved, run, self._may_change_workers)
        if overwrite:
            self._remove_run()
        self._metrics.touch()
        if saved["num_workers"] == run["num_workers"]:
            self._replace("run.json", json.dumps(run, indent=2) + "\n")
        return saved["num_workers"]

    def _claim(self) -> None:
        """Keeps other runs out until `close` or the end of the process."""
        try:
            import fcntl  # not on Windows
        except ModuleNotFoundError:
            return
        self._claimed = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise UsageError(
                f"another process is training in {self.path}: wait for its end, or pass another"
                " --workdir."
            ) from error
        except OSError:
            pass  # a file system without locks

    def close(self) -> None:
        """Lets other runs in."""
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None

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
        return self.path / _METRICS

    def rewind(self, step: int) -> list[Row]:
        """Drops the rows after `step` (written after the last checkpoint) and returns the rest."""

        def rewind() -> list[Row]:
            lines = self._metrics.read_text().splitlines(keepends=True)
            rows = [_parsed(line, self._metrics) for line in lines if line.endswith("\n")]
            kept = [row for row in rows if row["step"] <= step]
            self._replace(_METRICS, "".join(json.dumps(row) + "\n" for row in kept))
            return kept

        return cluster.from_first(rewind)

    def append(self, row: Row) -> None:
        """Adds one row to `metrics.jsonl`."""
        if cluster.is_first():
            with self._metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one of the JSON files."""
        if cluster.is_first():
            self._replace(name, json.dumps(content, indent=2) + "\n")

    def _replace(self, name: str, text: str) -> None:
        new = self.path / f".{name}.new"
        new.write_text(text)
        os.replace(new, self.path / name)


def _check_same_run(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], may_change_workers: bool
) -> None:
    if saved["num_workers"] != wanted["num_workers"] and not may_change_workers:
        raise UsageError(
            f"the checkpoint holds the memory of {saved['num_workers']} workers and this run has "
            f"{wanted['num_workers']}: pass --config.num_workers={saved['num_workers']}, or "
            "--change_num_workers=mean to go on with the mean of their memories."
        )
    free = _FREE_WITH_WORKERS if may_change_workers else _FREE_FIELDS
    old, new = _fields(saved), flat(wanted["config"])
    for name in {**old, **new}:
        if old.get(name) != new.get(name) and name not in free:
            value = old.get(name)
            how = f"pass --config.{name}={value}" if value is not None else f"leave {name} out"
            raise UsageError(
                f"the run to resume has config.{name}={value!r} and this one "
                f"{new.get(name)!r}: {how}, or give another --workdir."
            )


def _described(path: Path) -> dict[str, Any]:
    """`run.json`."""
    if not (path / "run.json").exists():
        raise UsageError(f"{path} holds no run.json: it is no run of `signax train`.")
    saved = _parsed((path / "run.json").read_text(), path / "run.json")
    if not {"num_workers", "config"} <= {*saved}:
        raise UsageError(f"{path / 'run.json'} does not describe a run: {_DAMAGED}")
    return saved


def _parsed(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file} is not JSON: {text.strip()[:40]!r}. {_DAMAGED}") from error


def _fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The config of `run.json`; a field that did not exist yet had the effect of its default."""
    return flat(get_config().to_dict()) | flat(saved["config"])
