"""A mistake on the command line is one line that says what to write instead, and status 2."""

import os
from pathlib import Path

import jax
import pytest

from daily import thorough
from signax.experiments import cli
from workers import run_python

CONFIGS = Path(__file__).parents[1] / "configs"

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


ONE_BIT_ADAM = ("--config.optimizer.name=one_bit_adam", "--config.optimizer.learning_rate=0.001")
MISTAKES = {
    "a command": (["trian"], "Did you mean 'train'?"),
    "a flag": (["train", "--reusme"], "Did you mean: resume"),
    "an argument": (["train", "digits"], "unexpected argument 'digits'"),
    "a field": (["train", "--config.bach_size=8"], "Did you mean 'config.batch_size'?"),
    "a field in a group": (["train", "--config.optimizer.bet=0"], "'config.optimizer.beta'?"),
    "a field outside its group": (["train", "--config.beta=0"], "'config.optimizer.beta'?"),
    "a value's type": (["train", "--config.batch_size=big"], "config.batch_size=big"),
    "a whole number": (["train", "--config.batch_size=1e3"], "write a whole number, or leave it"),
    "None": (["train", "--config.num_workers=None"], "write a whole number, or leave it out"),
    "a number": (["train", "--config.optimizer.beta="], "write a number, or leave it out"),
    "a switch": (["train", "--resume=maybe"], "--resume=maybe: write true or false"),
    "a group": (["train", "--config.optimizer=ssdm"], "is a group of fields"),
    "no field": (["train", "--config.=3"], "unknown field 'config.'"),
    "a file of flags": (["train", "--flagfile=nowhere"], "Unable to open flagfile"),
    "an empty problem": (["doctor", "--problem="], "--problem= names no problem"),
    "an empty bandwidth": (["doctor", "--bandwidth="], "write a rate such as 100mbit"),
    "a config file": (["train", f"--config={CONFIGS}/digit.py"], "digits.py?"),
    "a run of a page": (["train", f"--config={CONFIGS}/digits.py:signun"], "'signum'?"),
    "an optimizer": (["train", "--config.optimizer.name=sgd"], "'dense_sgd' or "),
    "a schedule": (["train", "--config.optimizer.schedule=cosin"], "Did you mean 'cosine'?"),
    "an optimizer's field": (["train", "--config.optimizer.momentum=0.9"], "signum takes no"),
    "ties": (["train", "--config.optimizer.ties=one"], "unknown ties 'one'"),
    "a dataset": (["train", "--config.dataset=minst"], "Did you mean 'mnist'?"),
    "a partition": (["train", "--config.partition=by_labels"], "Did you mean 'by_label'?"),
    "a batch": (["train", "--config.batch_size=100"], "100 is not divisible by 8 workers: 96 is"),
    "no steps": (["train", "--config.num_steps=0"], "config.num_steps=0: must be 1 or more"),
    "no number": (
        ["train", "--config.optimizer.learning_rate=nan"],
        "learning_rate=nan: must be 0 or more, and finite",
    ),
    "a seed below zero": (["train", "--config.seed=-1"], "config.seed=-1: must be 0 or more"),
    "a warm-up as long as the run": (
        ["train", *ONE_BIT_ADAM, "--config.optimizer.freeze_steps=600"],
        "freeze_steps=600 of config.num_steps=600 leaves nothing to compress",
    ),
    "no steps of a table": (["weights", "--num_steps=0"], "--num_steps=0: at least 1"),
    "a number of steps": (["weights", "--num_steps=1e3"], "invalid int value: '1e3'"),
    "no workers": (["train", "--config.num_workers=0"], "at least one worker"),
    "more workers than devices": (["train", "--config.num_workers=9"], "9 workers need 9 devices"),
    "missing data": (
        ["train", "--config.dataset=mnist", "--config.mnist_dir=nowhere"],
        "nowhere holds no train-images-idx3-ubyte.gz",
    ),
    "a seed": (["train", "--seeds=0,x"], "--seeds=0,x: seeds are whole numbers"),
    "no seed": (["train", "--seeds="], "--seeds=: seeds are whole numbers"),
    "a seed twice": (["train", "--seeds=1,1"], "--seeds=1,1: seeds are whole numbers, each once"),
    "two wishes": (["train", "--resume", "--overwrite"], "choose one"),
    "nothing to resume": (["train", "--resume"], "holds no run to resume"),
    "no run": (["compare", "nowhere"], "nowhere holds no result.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(
    mistake: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    jax.devices()  # once JAX has started, in any test, it keeps the devices that it has
    argv, hint = MISTAKES[mistake]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("signax: error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert not Path("runs").exists(), "a mistake leaves nothing behind"


FOLDERS = {
    "file": "cannot write in the work directory file: it is a file. Pass another",
    "file/run": "cannot write in the work directory file/run: Not a directory. Pass another",
    "": "--workdir= names no folder",
}
WRITERS = {
    "train": ["train"],
    "doctor": ["doctor", "--problem=counterexample"],
    "figures": ["figures", "1"],
    "bench": ["bench", "--parts=bits"],
    "bench with processes": ["bench", "--processes=2"],
    "bench with a mesh": ["bench", "--mesh=2x2"],
    "a race": ["bench", "--to_accuracy", "--target=90"],
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_computed(
    command: str, folder: str, capsys: pytest.CaptureFixture
):
    Path("file").touch()
    assert cli.main([*WRITERS[command], f"--workdir={folder}"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert FOLDERS[folder] in error


@pytest.mark.parametrize("command", [["doctor", "--problem=counterexample"], ["figures", "1"]])
def test_a_folder_without_the_right_to_write_is_one_line(
    command: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert cli.main([*command, "--workdir=run"]) == 2
    assert "cannot write in the work directory run: Permission denied" in capsys.readouterr().err


@thorough
def test_a_missing_extra_names_the_line_that_installs_it():
    done = run_python(
        "import sys; sys.modules['flax'] = None\n"
        "from signax.experiments import cli; sys.exit(cli.main(['train']))",
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "signax: error: `signax train` needs flax, which is not installed: install signax-optax"
        " with its extra `train`, such as pip install './signax[train]' beside a clone.\n"
    )


def test_a_misspelt_field_in_a_config_file_is_an_error(capsys: pytest.CaptureFixture):
    Path("mine.py").write_text(
        "from signax.experiments import default_config\n"
        "def get_config():\n"
        "    config = default_config.get_config()\n"
        "    config.bach_size = 8\n"
        "    return config\n"
    )
    assert cli.main(["train", "--config=mine.py"]) == 2
    assert 'Did you mean "batch_size"' in capsys.readouterr().err


def test_a_damaged_result_is_named_with_how_to_have_it_written_again(capsys: pytest.CaptureFixture):
    Path("result.json").write_text("{")
    assert cli.main(["compare", "."]) == 2
    assert "result.json is not JSON: remove it, and go on with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint"), [("\nx = (", "line 2"), ("x = 1", "mine.py defines no get_config()")]
)
def test_a_config_file_that_is_none_says_what_it_lacks(
    text: str, hint: str, capsys: pytest.CaptureFixture
):
    Path("mine.py").write_text(text)
    assert cli.main(["train", "--config=mine.py"]) == 2
    assert hint in capsys.readouterr().err
