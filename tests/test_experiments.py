"""`signax train` as a person meets it: its results, its configs and its help."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from daily import daily, thorough
from short_run import OVERRIDES, SHORT, rows_of, short_config
from signax.experiments import cli, default_config
from signax.experiments.config_flag import field_names
from signax.experiments.optimizers import OPTIMIZERS, make_optimizer
from workers import run_python

CONFIGS = Path(__file__).parents[1] / "configs"
PAGES = {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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


@thorough
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, always full, is of Linux")
@pytest.mark.parametrize("name", ["train", "figures"])  # absl's flags, and argparse's
def test_a_full_disk_is_said_in_one_line(name: str):
    command = [sys.executable, "-m", "signax.experiments.cli", name, "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("signax: error: no room to write what was printed or saved")
    assert done.stderr.count("\n") == 1


def test_help_lists_every_command_and_every_field(capsys: pytest.CaptureFixture):
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in cli.COMMANDS)
    assert all(field.rpartition(".")[-1] in text for field in field_names(short_config()))


def test_the_device_count_is_not_taken_from_the_environment():
    code = "from signax.experiments.workers import make_mesh; print(make_mesh(5).size)"
    assert run_python(code, JAX_NUM_CPU_DEVICES="2").stdout == "5\n"
