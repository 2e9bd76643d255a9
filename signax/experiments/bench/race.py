"""One process's share of `signax bench --to_accuracy`: the runs in turn, at one bandwidth.

Only steps are on the clock. Before its first step a run has compiled, connected (one step of a
state that is thrown away) and scored; then each step is waited for. Processes meet before the
clock goes on after an evaluation.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from signax.experiments import cluster
from signax.experiments.bench.race_settings import Race
from signax.experiments.default_config import Config
from signax.experiments.experiment import make_experiment, make_run_steps, make_score
from signax.experiments.workers import make_cpu_devices

_SILENCE = 10.0  # seconds between two lines of progress


def run_share(race: Race, share: Path) -> int:
    """Does what the file says: {"network": name, "runs": {run: steps to time, or null to train}}.

    Each run's outcome is written beside it, by the first process.
    """
    work = json.loads(share.read_text())
    for run, timed_steps in work["runs"].items():
        config = race.config_of(run)
        make_cpu_devices(config.num_workers, config.devices_per_worker)
        racer = _Racer(config, race, f"{work['network']}  {run or 'run'}")
        outcome = racer.train() if timed_steps is None else racer.time(timed_steps)
        if cluster.is_first():
            outcome |= {"run": run, "network": work["network"], "is_trained": timed_steps is None}
            outcome["asked"] = race.asked_of(run, timed_steps)
            share.with_name(f"{run or 'run'}.json").write_text(json.dumps(outcome) + "\n")
    return 0


class _Racer:
    """A run on the clock."""

    def __init__(self, config: Config, race: Race, title: str):
        self.config, self.race, self.title = config, race, title
        self.experiment = experiment = make_experiment(config)
        state = experiment.first_state()
        report = experiment.wire_report(state)
        self.compressed, self.dense = report.of_branch(0), report.of_branch(1)
        self.run_steps, self.score = make_run_steps(experiment), make_score(experiment)
        self._say("compiling")
        state, _ = self.run_steps(state, experiment.train, experiment.rows(0, config.local_steps))
        self.first_score = float(self.score(state.params, experiment.test))
        self.state, self.step = experiment.first_state(), 0
        self.seconds: list[float] = []  # of each exchange and the steps before it
        self.losses: list[float] = []
        self.points: list[dict[str, float]] = []  # one for each evaluation
        self._spoke = time.monotonic()

    def train(self) -> dict[str, Any]:
        """Until the target, the end of the run, or the end of the budget."""
        is_reached = False
        while self.step < self.config.num_steps:
            self._advance(min(self.step + self.config.eval_every, self.config.num_steps))
            is_reached = self._evaluate()
            if is_reached or self._is_over():
                break
        return self._outcome() | {"is_reached": is_reached}

    def time(self, num_steps: int) -> dict[str, Any]:
        """The first steps, without evaluation."""
        self._advance(min(num_steps, self.config.num_steps))
        return self._outcome()

    def _advance(self, until: int) -> None:
        experiment, k = self.experiment, self.config.local_steps
        cluster.agree(0)  # all are here
        while self.step < until:
            rows = experiment.rows(self.step, k)
            start = time.perf_counter()
            self.state, metrics = jax.block_until_ready(
                self.run_steps(self.state, experiment.train, rows)
            )
            self.seconds.append(time.perf_counter() - start)
            self.losses.append(float(metrics["loss"][0]))
            self.step += k
            if time.monotonic() - self._spoke > _SILENCE:
                self._say(f"step {self.step}, {sum(self.seconds):.1f} s on the clock")
            if self.step % (10 * k) == 0 and self._is_over():
                break

    def _is_over(self) -> bool:
        """The first process's clock counts."""
        return bool(cluster.agree(sum(self.seconds) >= self.race.budget))

    def _evaluate(self) -> bool:
        metric = self.experiment.metric
        score = float(self.score(self.state.params, self.experiment.test))
        point = {"step": self.step, "seconds": sum(self.seconds), "score": metric.scale * score}
        self.points.append(point | {"megabytes": self._megabytes()})
        self._say(f"step {self.step}, {sum(self.seconds):.1f} s on the clock,"
                  f" {metric.words} {metric.shown(score)}")  # fmt: skip
        return metric.reaches(score, self.race.target)

    def _megabytes(self) -> float:
        """What one worker has sent."""
        num_exchanges = len(self.seconds)
        num_dense = min(num_exchanges, self.experiment.num_dense_steps)
        bits = num_dense * self.dense.bits + (num_exchanges - num_dense) * self.compressed.bits
        return bits / 8e6

    def _outcome(self) -> dict[str, Any]:
        return {
            "optimizer": self.config.optimizer.name,
            "metric": self.experiment.metric.name,
            "num_coordinates": self.experiment.num_coordinates,
            "num_workers": self.experiment.num_workers,
            "local_steps": self.config.local_steps,
            "bits_per_coordinate": self.compressed.bits_per_coordinate / self.config.local_steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "points": self.points,
        }

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        if cluster.is_first():
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)
