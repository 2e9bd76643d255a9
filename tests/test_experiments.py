"""`signax train` as a person meets it: results, files, resuming, and what a mistake prints."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
import pytest

from daily import daily, thorough
from signax.experiments import cli, default_config
from signax.experiments.checkpoint import Checkpoints
from signax.experiments.config_flag import field_names
from signax.experiments.default_config import Config
from signax.experiments.errors import DriftError
from signax.experiments.experiment import make_experiment
from signax.experiments.optimizers import OPTIMIZERS, make_optimizer
from signax.experiments.train import _Run, train
from signax.experiments.workdir import Workdir
from workers import run_python

CONFIGS = Path(__file__).parents[1] / "configs"
PAGES = {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}
SHORT = ("--config.num_steps=25", "--config.eval_every=10", "--config.hidden_size=8")
OVERRIDES = "eval_every=10,hidden_size=8,num_steps=25"

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def short_config(**changes: object) -> Config:
    config = default_config.get_config()
    config.num_steps, config.eval_every, config.hidden_size = 25, 10, 8
    config.update(changes)
    return config


def ssdm_config() -> Config:
    """Four workers with momentum of their own and coins to toss: much that a resume may lose."""
    return short_config(num_workers=4, optimizer={"name": "ssdm"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that never stopped. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(ssdm_config(), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, as `run` in the current folder."""
    return shutil.copytree(finished, tmp_path / "run").relative_to(tmp_path)


def rows_of(workdir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# What a run leaves behind


def test_the_default_run_learns_digits_and_says_what_it_sent(capsys: pytest.CaptureFixture):
    assert cli.main(["train"]) == 0
    result = json.loads(Path("runs/default/result.json").read_text())
    assert result["test_accuracy"] >= 0.95
    assert result["num_workers"] == 8
    # Two bit planes up and two down, times (M - 1) / M, plus padding and a few scalars.
    assert 4 * 7 / 8 <= result["bits_per_coordinate"] <= 4
    table = capsys.readouterr().out
    assert f"{result['test_accuracy']:.2%}" in table
    assert 'ties="zero"' in table
    assert "56.00" in table


def test_a_run_leaves_metrics_curves_result_and_checkpoint(finished: Path):
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [10, 20, 25]
    named = {"loss", "accuracy", "test_accuracy", "num_abstained", "megabytes_sent", "epoch"}
    assert named <= {*rows[-1]}
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((finished / "result.json").read_text())["is_finished"]
    assert Checkpoints(finished).latest_step == 25


@thorough
@pytest.mark.parametrize("name", ["majority_vote", "ssdm", "ssdm_shared", "sgd"])
def test_every_run_of_the_digits_page_lowers_the_loss(name: str):
    assert cli.main(["train", f"--config={PAGES['digits']}:{name}", *SHORT]) == 0
    # The work directory is named after the config and what was changed.
    losses = [row["loss"] for row in rows_of(Path(f"runs/digits_{name},{OVERRIDES}"))]
    assert losses[-1] < losses[0]


BASELINES = {
    "bfloat16_sgd": {"learning_rate": 0.3, "momentum": 0.5},
    "power_sgd": {"learning_rate": 0.3, "rank": 1},
    "qsgd": {"learning_rate": 0.3, "levels": 3, "norm": "linf"},
    "random_k_sgd": {"learning_rate": 0.1, "fraction": 0.25, "feedback": False},
    "tern_grad": {"learning_rate": 0.3, "clip_sigmas": 2.5},
    "top_k_sgd": {"learning_rate": 0.3, "fraction": 0.1},
    "dense_method:sgd": {"learning_rate": 0.3, "momentum": 0.5},
}
DENSE_METHOD = """import signax

def sgd(learning_rate, momentum, *, axis_name, **others):
    return signax.dense_sgd(learning_rate, momentum, axis_name=axis_name, **others)
"""


@pytest.mark.parametrize("name", daily(BASELINES, ["dense_method:sgd"]))
def test_a_baseline_and_a_function_of_ones_own_lower_the_loss_in_20_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the working folder is added to it
    Path("dense_method.py").write_text(DENSE_METHOD)
    fields = [f"--config.optimizer.{k}={v}" for k, v in BASELINES[name].items()]
    steps = ["--config.num_steps=20", "--config.eval_every=5", "--config.num_workers=3"]
    small = ["--config.hidden_size=8", "--config.batch_size=96", "--workdir=run"]
    assert cli.main(["train", f"--config.optimizer.name={name}", *fields, *steps, *small]) == 0
    losses = [row["loss"] for row in rows_of(Path("run"))]
    assert losses[-1] < losses[0]


# Stopping and going on


@thorough
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(finished: Path):
    seen = []

    def stop(step: int, row: dict[str, float]) -> None:
        seen.append((step, row["step"]))
        signal.raise_signal(signal.SIGINT)

    stopped = train(ssdm_config(), Path("run"), on_metrics=stop)
    assert seen == [(10, 10)]
    assert (stopped.step, stopped.is_finished) == (10, False)
    resumed = train(ssdm_config(), Path("run"), resume=True)
    assert (resumed.step, resumed.is_finished) == (25, True)
    assert rows_of(Path("run")) == rows_of(finished)
    like = make_experiment(ssdm_config()).first_state()
    states = [Checkpoints(folder).restore(like) for folder in (Path("run"), finished)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@thorough
def test_a_run_goes_on_with_another_number_of_workers_if_asked():
    def stop(step: int, row: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    assert train(ssdm_config(), Path("run"), on_metrics=stop).step == 10
    fewer = short_config(num_workers=2, optimizer={"name": "ssdm"})
    resumed = train(fewer, Path("run"), resume=True, change_num_workers="mean")
    assert (resumed.step, resumed.num_workers, resumed.is_finished) == (25, 2, True)
    assert json.loads(Path("run/run.json").read_text())["num_workers"] == 2


def test_a_run_whose_workers_drift_apart_names_the_leaf_and_the_last_checkpoint():
    experiment = make_experiment(short_config(num_workers=2))
    folder = Workdir(Path("run"), {}, 2, resume=False, overwrite=False)
    state = experiment.first_state()
    checkpoints = Checkpoints(folder.path)
    run = _Run(experiment, folder, checkpoints, state, 1, None)
    run._check_sync()
    leaves, treedef = jax.tree.flatten(state.params)
    rows = [np.asarray(leaves[0]).copy() for _ in range(2)]
    rows[1].flat[0] = np.nextafter(rows[1].flat[0], np.float32(9))  # one ulp, on one worker
    buffers = [jax.device_put(r, d) for r, d in zip(rows, run.experiment.mesh.devices, strict=True)]
    leaves[0] = jax.make_array_from_single_device_arrays(
        leaves[0].shape, leaves[0].sharding, buffers
    )
    run.state = state._replace(params=treedef.unflatten(leaves))
    path, _ = jax.tree_util.tree_leaves_with_path(state.params)[0]
    with pytest.raises(DriftError, match="at step 0 the workers no longer hold the same") as caught:
        run._check_sync()
    assert jax.tree_util.keystr(path) in str(caught.value)
    checkpoints.close()


@thorough
def test_rows_after_the_last_checkpoint_are_written_again_not_twice(run: Path):
    rows = rows_of(run)
    with (run / "metrics.jsonl").open("a") as file:  # as if killed before the next checkpoint
        file.write(json.dumps({**rows[-1], "step": 40}) + "\n")
    train(ssdm_config(), run, resume=True)
    assert rows_of(run) == rows


@thorough
def test_sigint_ends_with_a_checkpoint_and_the_command_that_goes_on():
    command = [sys.executable, "-m", "signax.experiments.cli", "train", "--config.num_steps=100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            _wait_for(lambda: Path("runs").glob("*/metrics.jsonl"), seconds=180)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stdout == ""
    assert "signax train --config.num_steps=100000 --resume" in stderr
    assert "Traceback" not in stderr
    (workdir,) = Path("runs").iterdir()
    assert Checkpoints(workdir).latest_step == rows_of(workdir)[-1]["step"] > 0


def _wait_for(paths: Callable[[], Iterable[Path]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not any(path.stat().st_size for path in paths()):
        assert time.monotonic() < end, "the run wrote nothing"
        time.sleep(0.1)


# What a run refuses


@thorough
def test_a_run_is_not_written_over_unasked(run: Path, capsys: pytest.CaptureFixture):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["train", *SHORT, "--workdir=run"]) == 2
    assert "--resume continues it, --overwrite starts it again" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "notes.txt").write_text("mine")
    assert cli.main(["train", *SHORT, "--workdir=run", "--overwrite"]) == 0
    assert (run / "notes.txt").read_text() == "mine"


RESUME = ("train", *SHORT, "--workdir=run", "--resume", "--config.optimizer.name=ssdm")


@pytest.mark.usefixtures("run")
def test_a_checkpoint_of_another_number_of_workers_is_refused(capsys: pytest.CaptureFixture):
    assert cli.main([*RESUME, "--config.num_workers=8"]) == 2
    assert "memory of 4 workers" in capsys.readouterr().err


@pytest.mark.usefixtures("run")
def test_a_resumed_run_names_the_field_that_differs(capsys: pytest.CaptureFixture):
    assert cli.main([*RESUME, "--config.num_workers=4", "--config.optimizer.beta=0.5"]) == 2
    assert "config.optimizer.beta=None and this one 0.5" in capsys.readouterr().err


# Configs


@pytest.mark.parametrize("page", PAGES)
def test_every_run_of_every_page_makes_an_optimizer(page: str):
    module = runpy.run_path(str(PAGES[page]))
    for run in module["RUNS"]:
        config = module["get_config"](run)
        make_optimizer(config, "workers")
        assert f"{run} " in module["__doc__"], f"{page} does not say what to expect of {run}"
    assert {*field_names(module["get_config"]())} == {*field_names(default_config.get_config())}


@thorough
def test_seeds_are_runs_of_their_own_and_one_row_of_the_table(capsys: pytest.CaptureFixture):
    assert cli.main(["train", *SHORT, "--seeds=0,1", "--workdir=runs/short"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"short,seed=0", "short,seed=1"}
    row = capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["compare", *map(str, sorted(Path("runs").iterdir()))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == row
    assert row.startswith("| short | 2 | zero |")
    assert "±" in row


def test_every_registered_optimizer_is_found_by_its_own_name():
    assert {name for name, function in OPTIMIZERS.items() if function.__name__ != name} == set()


@thorough
def test_a_reader_who_has_seen_enough_ends_a_command_quietly():
    """As in `signax train --help | head`: writing to a closed pipe is no mistake of the user."""
    command = [sys.executable, "-m", "signax.experiments.cli", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_help_lists_every_command_and_every_field(capsys: pytest.CaptureFixture):
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in cli.COMMANDS)
    assert all(field.rpartition(".")[-1] in text for field in field_names(short_config()))


def test_the_device_count_is_not_taken_from_the_environment():
    code = "from signax.experiments.workers import make_mesh; print(make_mesh(5).size)"
    assert run_python(code, JAX_NUM_CPU_DEVICES="2").stdout == "5\n"
