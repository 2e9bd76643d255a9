"""Train a network with M workers that vote, and write down what happened.

The workers may be spread over several processes (`signax.experiments.cluster`). Each of them runs
this same code and makes the same number of steps: how many is read from the config alone, and
whether to stop earlier is agreed upon before each evaluation.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from tqdm import tqdm

import signax
from signax.experiments import cluster
from signax.experiments.agreement import require_same_run
from signax.experiments.checkpoint import Checkpoints
from signax.experiments.default_config import Config
from signax.experiments.errors import DriftError
from signax.experiments.experiment import (
    Experiment,
    make_experiment,
    make_leaves_in_sync,
    make_run_steps,
    make_score,
)
from signax.experiments.interrupt import interruptible
from signax.experiments.optimizers import learning_rate_of, ties_of
from signax.experiments.workdir import Row, Workdir
from signax.experiments.workers import make_cpu_devices
from signax.wire._cost import dense_bits


class Result(NamedTuple):
    """What a run came to; `result.json` holds the same: `to_dict`."""

    optimizer: str
    learning_rate: float  # at its highest
    ties: str | None
    partition: str
    num_workers: int
    platform: str
    seed: int
    num_coordinates: int
    step: int
    is_finished: bool
    metric: str  # what the scores are: "accuracy" or "bits_per_byte"
    train_score: float
    test_score: float
    seconds: float  # compilation included
    bits_per_coordinate: float  # one worker, one step behind any warm-up; from compiled HLO
    dense_bits_per_coordinate: float
    megabytes_sent: float  # one worker, all steps

    def to_dict(self) -> dict[str, Any]:
        """With the scores under their names, such as `test_accuracy`."""
        scores = {"train_score": f"train_{self.metric}", "test_score": f"test_{self.metric}"}
        return {scores.get(name, name): value for name, value in self._asdict().items()}


def train(
    config: Config,
    workdir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    change_num_workers: Literal["mean", "zero"] | None = None,
    check_sync_every: int = 100,
    on_metrics: Callable[[int, Row], None] | None = None,
) -> Result:
    """Trains what `config` describes; `workdir` gets metrics, curves, result and checkpoint.

    SIGINT ends the run after the steps in hand, with a checkpoint; `Result.is_finished` says so. A
    signal to one of several processes ends all of them, at the same step.

    Args:
      config: as from `signax.experiments.default_config.get_config`.
      workdir: the run's directory.
      resume: continue the run that lies there, bit for bit as if it had not stopped.
      overwrite: throw away the run that lies there.
      change_num_workers: how to continue a run of another number of workers (as
        `signax.change_num_workers`); None refuses to.
      check_sync_every: every so many steps, at the next row of metrics, compare the workers'
        parameters bit for bit; 0 is never.
      on_metrics: called as `on_metrics(step, row)` with each row of `metrics.jsonl`, in every
        process: `lambda step, row: wandb.log(row, step)`.

    Returns:
      The result.

    Raises:
      UsageError: what the config asks for cannot be done, or processes were asked for different
        things.
      DriftError: the workers' parameters are no longer the same.
    """
    make_cpu_devices(
        config.num_workers, config.devices_per_worker
    )  # before the processes compare: that starts JAX
    require_same_run(config, workdir, resume, overwrite, change_num_workers, check_sync_every)
    experiment = make_experiment(config)
    with ExitStack() as stack:
        folder = Workdir(
            workdir,
            config.to_dict(),
            experiment.num_workers,
            resume=resume,
            overwrite=overwrite,
            may_change_workers=change_num_workers is not None,
        )
        stack.callback(folder.close)
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        state = _first_or_saved_state(experiment, folder, checkpoints, change_num_workers)
        run = _Run(experiment, folder, checkpoints, state, check_sync_every, on_metrics)
        run.go_on()
        return run.finish()


def _first_or_saved_state(
    experiment: Experiment, folder: Workdir, checkpoints: Checkpoints, how: Any
) -> signax.TrainState:
    if folder.saved_num_workers == experiment.num_workers or not checkpoints.latest_step:
        return checkpoints.restore(experiment.first_state())
    saved = checkpoints.restore(experiment.state_of(folder.saved_num_workers))
    return experiment.changed(saved, how)


class _Run:
    """A run in progress."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Workdir,
        checkpoints: Checkpoints,
        state: signax.TrainState,
        check_sync_every: int,
        on_metrics: Callable[[int, Row], None] | None,
    ):
        self.experiment, self.config = experiment, experiment.config
        self.metric = experiment.metric
        self.folder, self.checkpoints, self.on_metrics = folder, checkpoints, on_metrics
        self.state, self.check_sync_every = state, check_sync_every
        self.step = checkpoints.latest_step
        self.rows = folder.rewind(self.step)
        self.start = time.perf_counter() - (self.rows[-1]["seconds"] if self.rows else 0.0)
        # Of a dense warm-up the compiled step has both kinds of steps, each in a branch.
        report = experiment.wire_report(self.state)
        self.dense_step, self.compressed_step = report.of_branch(1), report.of_branch(0)
        self.run_steps = make_run_steps(experiment)
        self.score = make_score(experiment)
        self.leaves_in_sync = make_leaves_in_sync(experiment)

    def go_on(self) -> None:
        """Trains to the last step, or until somebody asks to stop."""
        num_steps = self.config.num_steps
        bar = tqdm(
            total=num_steps, initial=self.step, unit="step", dynamic_ncols=True,
            disable=not cluster.is_first(),
        )  # fmt: skip
        with bar, interruptible() as is_asked_to_stop:
            while self.step < num_steps and not cluster.any_process(is_asked_to_stop()):
                before = self.step
                row = self._advance()
                score = self.metric.shown(row[f"test_{self.metric.name}"])
                bar.set_postfix_str(f"loss {row['loss']:.3f}, test {score}", refresh=False)
                bar.update(self.step - before)
                if _has_passed(self.check_sync_every, before, self.step):
                    self._check_sync()
                if _has_passed(self.config.checkpoint_every, before, self.step):
                    self._save()
            self._save()

    def _save(self) -> None:
        self.checkpoints.save(self.step, self.state)
        self.folder.describe_run()

    def _check_sync(self) -> None:
        """Stops the run, before the next checkpoint, if a worker's parameters have drifted."""
        in_sync = jax.device_get(self.leaves_in_sync(self.state.params))
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.state.params)]
        drifted = [jax.tree_util.keystr(p) for p, ok in zip(paths, in_sync, strict=True) if not ok]
        if drifted:
            raise DriftError(
                f"at step {self.step:,} the workers no longer hold the same parameters: "
                f"{', '.join(drifted)}. The last checkpoint, of step "
                f"{self.checkpoints.latest_step:,}, is from before: look for a faulty device, then "
                "go on from it with --resume."
            )

    def _advance(self) -> Row:
        """Makes the steps up to the next evaluation, as one jitted scan."""
        every = self.config.eval_every
        count = min(every - self.step % every, self.config.num_steps - self.step)
        rows = self.experiment.rows(self.step, count)
        self.state, metrics = self.run_steps(self.state, self.experiment.train, rows)
        test_score = self.score(self.state.params, self.experiment.test)
        self.step += count
        row = self._row(jax.device_get(metrics), float(test_score))
        self.rows.append(row)
        self.folder.append(row)
        if self.on_metrics:
            self.on_metrics(self.step, row)
        return row

    def _row(self, metrics: dict[str, Any], test_score: float) -> Row:
        """One row of `metrics.jsonl`: means over the steps since the last row."""
        return {
            "step": self.step,
            "epoch": self.step / self.experiment.order.steps_per_epoch,
            **{name: float(values.mean()) for name, values in metrics.items()},
            f"test_{self.metric.name}": test_score,
            "megabytes_sent": self._megabytes(),
            "seconds": time.perf_counter() - self.start,
        }

    def _megabytes(self) -> float:
        """What one worker has sent so far."""
        num_exchanges = self.step // self.config.local_steps
        num_dense = min(num_exchanges, self.experiment.num_dense_steps)
        num_compressed = num_exchanges - num_dense
        return (num_dense * self.dense_step.bits + num_compressed * self.compressed_step.bits) / 8e6

    def finish(self) -> Result:
        """Sums up, draws the curves and writes `result.json`."""
        from signax.experiments.curves import draw_curves  # matplotlib is slow to import

        result = self._result()
        self.folder.write_json("result.json", result.to_dict())
        if cluster.is_first():
            draw_curves(self.rows, result, self.metric, self.folder.path / "curves.png")
        return result

    def _result(self) -> Result:
        experiment, config = self.experiment, self.config
        num_workers = experiment.num_workers
        return Result(
            optimizer=config.optimizer.name,
            learning_rate=learning_rate_of(config.optimizer),
            ties=ties_of(config.optimizer),
            partition=config.partition,
            num_workers=num_workers,
            platform=experiment.mesh.devices.flat[0].platform,
            seed=config.seed,
            num_coordinates=experiment.num_coordinates,
            step=self.step,
            is_finished=self.step >= config.num_steps,
            metric=self.metric.name,
            train_score=float(self.score(self.state.params, experiment.scored_train)),
            test_score=float(self.score(self.state.params, experiment.test)),
            seconds=self.rows[-1]["seconds"] if self.rows else 0.0,
            bits_per_coordinate=self.compressed_step.bits_per_coordinate / config.local_steps,
            dense_bits_per_coordinate=dense_bits(num_workers),
            megabytes_sent=self._megabytes(),
        )


def _has_passed(every: int, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]; never for 0."""
    return every > 0 and before // every < step // every
