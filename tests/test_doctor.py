"""`signax doctor` as a person meets it: the verdicts, the files, what a mistake prints."""

import json
import os
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from daily import thorough
from signax.experiments import cli, default_config
from signax.experiments.doctor import problems
from signax.experiments.doctor.trained import trained

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ("--config.hidden_size=8", "--batches=32")

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@thorough
def test_on_iid_digits_signs_are_the_friend(capsys: pytest.CaptureFixture):
    assert cli.main(["doctor", *SMALL]) == 0
    text = capsys.readouterr().out
    assert "VERDICT  sign_friendly" in text
    folder = Path("runs/doctor/default,hidden_size=8")
    assert f"written to {folder}" in text
    report = json.loads((folder / "report.json").read_text())
    assert report["num_workers"] == 8
    assert report["reference"] == "given, exact"
    assert report["verdict"]["name"] == "sign_friendly"
    assert (folder / "report.txt").read_text().strip() in text
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_on_label_partitioned_digits_the_workers_disagree():
    page = f"--config={CONFIGS}/digits_by_label.py:signum"
    assert cli.main(["doctor", page, *SMALL, "--steps=20", "--workdir=here"]) == 0
    report = json.loads(Path("here/report.json").read_text())
    assert report["verdict"]["name"] == "heterogeneous"
    assert 'scale=signax.Scale("linf", 256, shared=True)' in report["verdict"]["advice"][0]


@thorough
def test_the_reference_is_the_gradient_over_all_that_a_worker_owns():
    config = default_config.get_config()
    config.hidden_size, config.partition, config.num_workers = 4, "by_label", 3
    config.batch_size = 30
    subject = trained(config, 0, "digits")
    batch = next(iter(subject.batches))
    assert batch["image"].shape == (30, 64)
    # Worker n owns the labels n, n + 3, ...: its tenth of the batch has no other.
    assert set(np.asarray(batch["label"][10:20]) % 3) == {1}
    examples = [next(iter(subject.batches)) for _ in range(200)]
    gradient = jax.jit(jax.grad(subject.loss_fn))
    images = np.stack([np.asarray(e["image"][20:]) for e in examples])
    labels = np.stack([np.asarray(e["label"][20:]) for e in examples])
    own = gradient(subject.params, {"image": images.reshape(-1, 64), "label": labels.reshape(-1)})
    for mine, rows in zip(jax.tree.leaves(own), jax.tree.leaves(subject.reference), strict=True):
        # 2,000 examples drawn with replacement: the mean is off by about 1 / sqrt(2,000) of the
        # spread of one example's gradient, which is below the largest coordinate times ten.
        assert np.abs(mine - rows[2]).max() < 6 * 10 * np.abs(rows[2]).max() / 2000**0.5


def test_on_rosenbrock_signs_work_and_workers_help():
    report = problems.rosenbrock().examine(num_batches=64, bandwidth=None)
    assert report.verdict.name == "sign_friendly"
    assert report.total.num_wrong == 0
    assert report.total.gain[14] > 2 * report.total.gain[0]
    # E g^ is the gradient over 9, at any batch: what is called exact is.
    x = np.asarray(report.coordinates.gradient)
    assert x.shape == (10,)


def test_on_the_counterexample_signs_fail():
    report = problems.counterexample().examine(num_batches=128, bandwidth=None)
    assert report.verdict.name == "signs_fail"
    # rho is exactly 1/2 for both, so with n = 1,024 within six standard deviations.
    np.testing.assert_allclose(report.coordinates.rho, 0.5, atol=6 * 0.5 / 1024**0.5)
    assert report.total.not_unimodal_share == 1
    # Two values: sigma = 2 <a_i, x> a_i's half difference, known from (5) and (6).
    rows = np.array([[1.5, -0.5], [-0.5, 1.5]])
    draws = 2 * (rows @ [1.2, 0.8])[:, None] * rows
    np.testing.assert_allclose(report.coordinates.sigma, np.abs(draws[0] - draws[1]) / 2, rtol=0.02)
    np.testing.assert_allclose(report.coordinates.gradient, draws.mean(axis=0), rtol=1e-5)


MISTAKES = {
    "a problem": (["--problem=rosenbrok"], "Did you mean 'rosenbrock'?"),
    "a problem with a config": (["--problem=rosenbrock", "--steps=5"], "leave out --steps"),
    "a bandwidth": (["--bandwidth=fast"], "write a rate such as 100mbit"),
    "few batches": (["--batches=3"], "batches=3"),
    "negative steps": (["--steps=-1"], "steps=-1"),
    "a field": (["--config.bach_size=8"], "Did you mean 'config.batch_size'?"),
    "a work directory": (["--problem=rosenbrock", "--workdir=file/x"], "file/x: Not a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(mistake: str, capsys: pytest.CaptureFixture):
    Path("file").touch()
    argv, hint = MISTAKES[mistake]
    assert cli.main(["doctor", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err
    assert not Path("runs").exists(), "a mistake leaves nothing behind"


def test_help_says_what_the_doctor_looks_at(capsys: pytest.CaptureFixture):
    assert cli.main(["doctor", "--help"]) == cli.main(["--help"]) == 0
    assert "--bandwidth=RATE" in capsys.readouterr().out


needs_mnist = pytest.mark.skipif(
    not os.environ.get("SIGNAX_MNIST_DIR"),
    reason="MNIST is not at hand: set SIGNAX_MNIST_DIR to the folder with its four .gz files",
)


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize(
    ("page", "verdict"),
    [("mnist.py:signum", "sign_friendly"), ("mnist_by_label.py:signum", "heterogeneous")],
)
def test_on_mnist_the_verdict_is_right_and_takes_less_than_a_minute(page: str, verdict: str):
    start = time.monotonic()
    assert cli.main(["doctor", f"--config={CONFIGS}/{page}", "--workdir=here"]) == 0
    assert time.monotonic() - start < 60
    assert json.loads(Path("here/report.json").read_text())["verdict"]["name"] == verdict
