"""`signax figures`: files, words, and the paper's claims on small versions."""

import csv
import importlib
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import signax
from daily import daily, thorough
from signax import theory
from signax.experiments import cli
from signax.experiments.errors import UsageError
from signax.experiments.figures import (
    contenders,
    counterexample,
    figure_1,
    figure_4,
    figures_command,
    made,
    rosenbrock_problem,
    theorem4,
)
from signax.experiments.figures.table import FIGURES
from workers import run_python

needs_mnist = pytest.mark.skipif(
    "SIGNAX_MNIST_DIR" not in os.environ,
    reason="SIGNAX_MNIST_DIR does not say where MNIST's four .gz files are",
)


def module_of(name: str):
    return importlib.import_module(f"signax.experiments.figures.{FIGURES[name].module}")


# The command


def test_the_command_writes_png_and_csv_and_prints_choices_claim_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert cli.main(["figures", "1", "--quick", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "figure_1.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "figure_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 41 * 41
    g1, g2, norm = (float(rows[-1][name]) for name in ("g1", "g2", "l12_norm"))
    # (7) with sigma = 1, by hand; 7 digits are written.
    assert norm == pytest.approx(sum(g**2 / (abs(g) + 3**0.5) for g in (g1, g2)), rel=1e-5)
    printed = capsys.readouterr().out
    for words in ("Left open by the paper", "claim", "measured", "holds", "figure_1.csv"):
        assert words in printed


def test_an_unknown_figure_is_told_the_near_miss(capsys: pytest.CaptureFixture):
    assert cli.main(["figures", "counterexampel"]) == 2
    assert "Did you mean 'counterexample'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_what_the_paper_left_open(name: str):
    assert "Left open by the paper, chosen here" in module_of(name).__doc__


@thorough
def test_without_mnist_a_figure_of_mnist_is_one_clear_line(tmp_path: Path):
    code = (
        "import sys; from signax.experiments import cli;"
        f"sys.exit(cli.main(['figures', '3', '--quick', '--workdir={tmp_path}']))"
    )
    given = {"SIGNAX_MNIST_DIR": str(tmp_path), "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    ended = run_python(code, check=False, **given)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("signax: error: MNIST: ")


def test_all_says_what_it_left_out_without_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from signax.experiments.figures import table

    few = {name: FIGURES[name] for name in ("1", "2", "3")}
    monkeypatch.setattr("signax.experiments.figures.figures_command.FIGURES", few)
    monkeypatch.setenv("SIGNAX_MNIST_DIR", str(tmp_path))  # an empty folder
    monkeypatch.setattr(
        "signax.experiments.mnist._make_builder",
        lambda: type("Builder", (), {"data_dir": str(tmp_path)})(),  # no cache of an earlier test
    )
    assert table.FIGURES["2"].needs_mnist
    assert cli.main(["figures", "all", "--quick", f"--workdir={tmp_path}"]) == 0
    assert "Left out, as they need MNIST: 2, 3. MNIST: " in capsys.readouterr().out
    assert (tmp_path / "figure_1.png").exists()


def test_a_claim_that_fails_is_printed_as_one():
    assert "DOES NOT HOLD" in made.describe(made.Claim("a", "b", False))


# The figures


def test_figure_1_goes_from_circle_to_diamond():
    result = figure_1.make(is_quick=True)
    assert isinstance(result.figure, Figure)
    assert result.claims[0].holds


@pytest.mark.slow
def test_figure_4_more_workers_help_and_even_numbers_end_lower_with_a_constant_step():
    result = figure_4.make(is_quick=True)
    assert result.claims[0].holds
    # "No difference between 2l - 1 and 2l" is about the expected sign: a tie is a step of zero.
    table = result.tables[""]
    is_late = (table["power"] == 0) & (table["step"] >= 500)
    plateau = {m: table["f"][is_late & (table["num_workers"] == m)].mean() for m in (1, 2)}
    assert plateau[2] < plateau[1]


def draws(x: jax.Array, noise: float, batch_size: int, count: int) -> np.ndarray:
    sample = rosenbrock_problem.sampler(noise, batch_size)
    gradient = jax.grad(rosenbrock_problem.loss)
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.vmap(lambda key: gradient(x, sample(key, 0)))(keys))


@pytest.mark.parametrize("batch_size", daily([1, 3], [3]))
def test_success_probabilities_of_rosenbrock_are_those_of_its_draws(batch_size: int):
    x = jnp.linspace(-1.0, 1.2, 10)
    count = 20_000
    is_right = np.sign(draws(x, 2.0, batch_size, count)) == np.sign(
        jax.grad(rosenbrock_problem.value)(x)
    )
    exact = rosenbrock_problem.success_probabilities(x, 2.0, batch_size)
    # Hoeffding: each of 10 means is off by more with probability 2 exp(-2 * 20000 * t^2); in all
    # 1e-9 at t = 0.0244.
    np.testing.assert_allclose(is_right.mean(axis=0), exact, atol=0.0244)


def test_the_stochastic_gradient_of_rosenbrock_has_the_mean_of_its_terms():
    x = jnp.linspace(-1.0, 1.2, 10)
    each = np.array(jax.jacobian(rosenbrock_problem.terms)(x))
    mean = draws(x, 2.0, 1, 20_000).mean(axis=0)
    # Six standard errors: 10 coordinates, wrong with probability 2e-8.
    error = np.sqrt((each.var(axis=0) + 2.0**2) / 20_000)
    assert (np.abs(mean - each.mean(axis=0)) < 6 * error).all()


@thorough
def test_theorem_4_has_slope_a_quarter_and_holds_for_homogeneous_workers():
    steps = np.array([100, 10_000])
    average = np.array([theorem4._homogeneous(int(k), range(2)).mean() for k in steps])
    slope = np.diff(np.log(average)) / np.diff(np.log(steps))
    # The rate is of the transient: from |x| = sqrt(10) it takes c K^(3/4) of K steps. What is left
    # after it, of order d K^(-3/4) < 0.32 at K = 100 of an average near 1.7, bends the line by
    # log(1.7 / 1.4) / log(100) = 0.04; 0.1 leaves room for the noise.
    assert abs(slope + 0.25) < 0.1
    bound = theory.theorem_4_bound(5.0, 10**0.5, 1.0, 10, jnp.asarray(steps, jnp.float32))
    assert (average < bound).all()


@thorough
def test_heterogeneous_workers_stall_and_a_shared_scale_moves_them():
    stalled = theorem4._heterogeneous(400, signax.Scale())
    # f' = (w_1 (x - 2) + w_2 (x + 2)) / 2 = x + 1 at sqrt(2) - 1: it never moves.
    np.testing.assert_allclose(stalled, 2**0.5, rtol=1e-6)
    cured = theorem4._heterogeneous(400, signax.Scale(shared=True))
    assert cured[:, -1].max() < 0.5


@thorough
def test_signs_alone_stay_on_the_line_and_ssdm_leaves_it():
    methods = {name: counterexample._METHODS[name] for name in ("SSDM, deterministic sign", "SSDM")}
    result = counterexample._run(methods, 2, 600, range(2))
    stays, leaves = result["from_line"].max(axis=(1, 2, 3, 4))
    # 600 additions of 0.01 to numbers below 8, each rounded by at most 2^-22: 1.5e-4.
    assert stays < 1.5e-4
    assert leaves > 1
    assert result.final("distance")[1].max() < 0.2


def test_mnist_runs_count_the_bits_that_they_send():
    from signax.experiments.figures import mnist_runs

    params = mnist_runs.first_params(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == mnist_runs.NUM_COORDINATES
    for method, bits in mnist_runs.BITS.items():
        assert mnist_runs.megabytes(method, 10) == pytest.approx(bits * 50_890 * 10 / 8e6)
        steps = mnist_runs.num_steps_of(method, 1.0)
        assert mnist_runs.megabytes(method, steps) <= 1.0 < mnist_runs.megabytes(method, steps + 1)


def test_split_batches_come_from_one_half_each_and_from_both_equally():
    from signax.experiments.figures import figure_2

    labels = jnp.array([0, 7, 4, 5, 9, 8, 1] * 3)
    train = {"image": jnp.arange(21), "label": labels}
    halves = figure_2._halves(labels)
    keys = jax.random.split(jax.random.key(0), 400)
    batches = jax.vmap(lambda key: figure_2._sample_split(train, halves, key, 0))(keys)
    is_high = np.array(batches["label"]) >= 5
    assert (is_high.all(axis=1) | (~is_high).all(axis=1)).all()
    assert {*np.unique(batches["image"]).tolist()} == {*range(21)}
    # 400 fair coins: off by more than 0.165 with probability 2 exp(-800 * 0.165^2) = 7e-10.
    assert abs(is_high[:, 0].mean() - 0.5) < 0.165


# The whole, as a person runs it


@pytest.mark.slow
@needs_mnist
def test_all_figures_have_a_quick_version(tmp_path: Path):
    assert cli.main(["figures", "all", "--quick", f"--workdir={tmp_path}"]) == 0
    stems = {entry.module for entry in FIGURES.values()}
    for stem, ending in itertools.product(stems, ("png", "csv")):
        assert (tmp_path / f"{stem}.{ending}").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rosenbrock", "theorem4", "counterexample"])
def test_the_quick_version_returns_a_figure_and_its_numbers(name: str):
    result = module_of(name).make(is_quick=True)
    assert isinstance(result.figure, Figure)
    for columns in result.tables.values():
        assert len({len(column) for column in columns.values()}) == 1


@thorough
def test_a_method_of_ones_own_takes_part_in_methods_alone(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import signax\n\n\ndef vote(learning_rate, *, axis_name):\n"
        "    return signax.sign_sgd(learning_rate, axis_name=axis_name)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contenders, "CONTENDERS", dict(contenders.CONTENDERS))
    contenders.enter("mine:vote")
    tx = contenders.optimizer("mine:vote", 0.5, 10)
    update, _ = jax.vmap(
        lambda g: tx.update(g, tx.init(g)), axis_name="workers", out_axes=(None, 0)
    )(jnp.array([1.0, 2.0]))
    assert float(update) == -0.5
    with pytest.raises(UsageError, match="takes part in `signax figures methods`"):
        figures_command.main(["4", "mine:vote"])
    with pytest.raises(UsageError, match="no module named 'nobodys'"):
        figures_command.main(["methods", "nobodys:vote"])
