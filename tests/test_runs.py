"""The folder of a run: what it holds, how a stopped run goes on, and what it refuses."""

import contextlib
import json
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

from daily import thorough
from short_run import SHORT, rows_of, short_config
from signax.experiments import cli
from signax.experiments.checkpoint import Checkpoints
from signax.experiments.default_config import Config
from signax.experiments.errors import DriftError
from signax.experiments.experiment import make_experiment
from signax.experiments.train import _Run, train
from signax.experiments.workdir import Workdir
from workers import run_python

RESUME = ("train", *SHORT, "--workdir=run", "--resume", "--config.optimizer.name=ssdm")

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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


def test_a_run_leaves_metrics_curves_result_and_checkpoint(finished: Path):
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [10, 20, 25]
    named = {"loss", "accuracy", "test_accuracy", "num_abstained", "megabytes_sent", "epoch"}
    assert named <= {*rows[-1]}
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((finished / "result.json").read_text())["is_finished"]
    assert Checkpoints(finished).latest_step == 25


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
    argv = ["train", "--config.num_steps=100000", "--overwrite=true"]
    command = [sys.executable, "-m", "signax.experiments.cli", *argv]
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


@thorough
def test_sigint_before_the_first_step_is_no_traceback():
    code = "import os, signal, time\nfrom signax.experiments import cli, train_command\n"
    # A shell starts what runs in the background with SIGINT ignored, and a child inherits that.
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "train_command.train = lambda *_, **__: (os.kill(os.getpid(), 2), time.sleep(60))\n"
    done = run_python(code + "raise SystemExit(cli.main(['train']))", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def _wait_for(paths: Callable[[], Iterable[Path]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not any(path.stat().st_size for path in paths()):
        assert time.monotonic() < end, "the run wrote nothing"
        time.sleep(0.1)


def test_a_row_holds_runs_of_one_config_and_each_of_them_once(
    run: Path, capsys: pytest.CaptureFixture
):
    """Not whatever has the same name."""
    for seed, folder in ((1, "more"), (2, "more"), (3, "other")):
        copy = shutil.copytree(run, Path(folder) / f"run,seed={seed}")
        saved = json.loads((copy / "run.json").read_text())
        saved["config"]["seed"] = seed
        saved["config"]["optimizer"]["beta"] = 0.5 if folder == "other" else None
        (copy / "run.json").write_text(json.dumps(saved))
    runs = [str(path) for path in (run, *Path().glob("*/run,seed=*"))]
    assert cli.main(["compare", *runs]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    here = Path.cwd().name
    assert {(row[0], row[1]) for row in rows} == {(f"| {here}/run", "3"), ("| other/run", "1")}
    assert cli.main(["compare", str(run), f"./{run}/"]) == 2
    assert "are the same run, with the same seed" in capsys.readouterr().err


def test_no_seed_is_trained_where_one_of_them_would_be_refused(
    run: Path, capsys: pytest.CaptureFixture
):
    run.rename("run,seed=5")
    assert cli.main(["train", *SHORT, "--seeds=4,5", "--workdir=run"]) == 2
    assert "run,seed=5 already holds a run" in capsys.readouterr().err
    assert not Path("run,seed=4").exists()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("damage", ["", None])
def test_a_checkpoint_without_metrics_is_a_run(damage: str | None, capsys: pytest.CaptureFixture):
    metrics = Path("run/metrics.jsonl")
    metrics.unlink() if damage is None else metrics.write_text(damage)
    assert cli.main(["train", *SHORT, "--workdir=run"]) == 2
    assert "run already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("metrics.jsonl", "{\n")])
@pytest.mark.usefixtures("run")
def test_a_damaged_file_is_named(name: str, text: str, capsys: pytest.CaptureFixture):
    Path("run", name).write_text(text)
    assert cli.main([*RESUME, "--config.num_workers=4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"signax: error: run/{name} is not JSON: '{{'. Mend the file")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("earlier", [[], [10]])
def test_a_damaged_checkpoint_is_named_with_what_one_can_go_on_from(
    earlier: list[int], capsys: pytest.CaptureFixture
):
    for step in earlier:
        shutil.copytree("run/checkpoints/25", f"run/checkpoints/{step}")
    Path("run/checkpoints/25/default/manifest.ocdbt").write_bytes(b"")
    assert cli.main([*RESUME, "--config.num_workers=4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "signax: error: the checkpoint run/checkpoints/25 cannot be read: it is"
    )
    assert error.count("\n") == 1
    if earlier:
        assert "Delete run/checkpoints/25 to go on from the one before, of step 10" in error
    else:
        assert "There is no earlier one: start the run again with --overwrite" in error


def test_two_runs_never_write_in_one_folder(run: Path, capsys: pytest.CaptureFixture):
    with contextlib.closing(Workdir(run, {}, 4, resume=False, overwrite=True)):
        assert cli.main(["train", *SHORT, "--workdir=run", "--overwrite"]) == 2
        assert "another process is training in run" in capsys.readouterr().err


@thorough
def test_a_run_is_not_written_over_unasked(run: Path, capsys: pytest.CaptureFixture):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["train", *SHORT, "--workdir=run"]) == 2
    assert "--resume continues it, --overwrite starts it again" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "notes.txt").write_text("mine")
    assert cli.main(["train", *SHORT, "--workdir=run", "--overwrite"]) == 0
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("run")
def test_a_checkpoint_of_another_number_of_workers_is_refused(capsys: pytest.CaptureFixture):
    assert cli.main([*RESUME, "--config.num_workers=8"]) == 2
    assert "memory of 4 workers" in capsys.readouterr().err


@pytest.mark.usefixtures("run")
def test_a_resumed_run_names_the_field_that_differs(capsys: pytest.CaptureFixture):
    assert cli.main([*RESUME, "--config.num_workers=4", "--config.optimizer.beta=0.5"]) == 2
    assert "config.optimizer.beta=None and this one 0.5" in capsys.readouterr().err
