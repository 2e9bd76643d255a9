"""`compare`: the runs of a loop of `simulate_train_step`, as tidy arrays; what it refuses."""

import doctest
import importlib
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import thorough
from signax.experiments.batches import from_function, in_epochs
from signax.experiments.compare import compare
from signax.experiments.comparison import Comparison

METHODS = {
    "SSDM": lambda rate: signax.ssdm(rate, axis_name="workers"),
    "SGD": lambda rate: signax.dense_sgd(rate, axis_name="workers"),
}
RATES, WORKERS, SEEDS, NUM_STEPS = (0.1, 0.01), (2, 3), (4, 7), 6


def loss_fn(x: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.mean((x[None] - batch) ** 2)


def sample_batch(key: jax.Array, worker: jax.Array) -> jax.Array:
    return worker + jax.random.normal(key, (4, 3))


def run(**changes: object) -> Comparison:
    arguments = {
        "learning_rates": RATES, "num_workers": WORKERS, "seeds": SEEDS, "num_steps": NUM_STEPS,
        "eval_steps": [2, 3], "metrics": {"x": lambda x: x, "norm": optax.tree.norm},
        "show_progress": False,
    } | changes  # fmt: skip
    data, methods = arguments.pop("data", sample_batch), arguments.pop("methods", METHODS)
    return compare(loss_fn, jnp.zeros(3), data, methods, **arguments)


@pytest.fixture(scope="module")
def result() -> Comparison:
    return run()


def loop(name: str, rate: float, num_workers: int, seed: int) -> tuple[list, list]:
    """The parameters after, and the loss of, every step of a loop written by hand."""
    data_key = jax.random.fold_in(jax.random.key(seed), 1)
    tx = METHODS[name](rate)
    if name == "SSDM":
        coins = jax.random.fold_in(jax.random.key(0), seed)
        tx = signax.ssdm(rate, key=coins, axis_name="workers")
    step = signax.simulate_train_step(loss_fn, tx, num_workers)
    state = signax.init_train_state(jnp.zeros(3), tx, num_workers)
    losses, path = [], [np.zeros(3)]
    for k in range(NUM_STEPS):
        key = jax.random.fold_in(data_key, k)
        batch = [sample_batch(jax.random.fold_in(key, n), jnp.array(n)) for n in range(num_workers)]
        state, metrics = step(state, jnp.concatenate(batch))
        losses.append(float(metrics["loss"]))
        path.append(np.asarray(state.params))
    return path, losses


@pytest.mark.parametrize("name", METHODS)
def test_a_run_equals_a_loop_of_simulate_train_step(name: str, result: Comparison):
    path, losses = loop(name, 0.01, 3, 7)
    i = list(METHODS).index(name)
    at = (i, 1, 1, 1)  # learning rate 0.01, three workers, seed 7
    # A few float32 roundings for each of six steps; one other coin of SSDM would be 0.01 * 2 / 3.
    np.testing.assert_allclose(result["x"][at], [path[k] for k in (0, 2, 3, 6)], atol=2e-6)
    windows = [np.mean(losses[:2]), losses[2], np.mean(losses[3:])]
    np.testing.assert_allclose(result["loss"][at][1:], windows, rtol=1e-5)


def test_the_axes_are_method_learning_rate_workers_seed_and_point(result: Comparison):
    assert result["loss"].shape == (2, 2, 2, 2, 4)
    assert result["x"].shape == (2, 2, 2, 2, 4, 3)
    assert result.steps.tolist() == [0, 2, 3, 6]
    assert np.isnan(result["loss"][..., 0]).all()
    assert (result["x"][..., 0, :] == 0).all()


def test_columns_have_one_row_for_each_run_and_point_and_leave_vectors_out(result: Comparison):
    columns = result.columns()
    assert {len(column) for column in columns.values()} == {2 * 2 * 2 * 2 * 4}
    assert list(columns) == [
        "method", "learning_rate", "num_workers", "seed", "step", "loss", "norm",
    ]  # fmt: skip
    rows = (columns["method"] == "SGD") & (columns["learning_rate"] == 0.01)
    rows &= (columns["num_workers"] == 3) & (columns["seed"] == 7) & (columns["step"] == 6)
    assert columns["norm"][rows] == result["norm"][1, 1, 1, 1, 3]


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_a_frame_has_the_columns(result: Comparison):
    assert list(result.to_frame().columns) == list(result.columns())


def test_without_pandas_a_frame_is_an_error_that_says_what_to_write(
    result: Comparison, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if not installed
    with pytest.raises(ModuleNotFoundError, match=r"pip install pandas.*columns\(\)"):
        result.to_frame()


@thorough
def test_seeds_toss_coins_of_their_own_where_data_and_parameters_are_equal():
    run_of = run(data=lambda key, worker: jnp.ones((1, 3)), num_workers=2, eval_steps=6)
    ours, dense = run_of["x"][:, 0, 0]
    # Coins of SSDM decide 6 steps of 3 coordinates; equal by chance with probability below 1e-4.
    assert (ours[0] != ours[1]).any()
    np.testing.assert_array_equal(dense[0], dense[1])


def test_an_epoch_deals_out_every_example_once():
    batches = in_epochs({"i": np.arange(13)}, batch_size=2, num_workers=3)
    key, memory = jax.random.key(3), batches.init(jax.random.key(3))
    take, epochs = jax.jit(batches.take), []
    for epoch in range(2):
        seen = []
        for step in range(2):
            batch, memory = take(batches.arrays, memory, key, 2 * epoch + step)
            seen += batch["i"].tolist()
        assert len({*seen}) == 12  # one of 13 sits out
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_a_function_gets_another_key_for_each_step_and_worker_and_knows_the_worker():
    draw = lambda key, worker: jnp.stack([jax.random.uniform(key), 1.0 * worker])[None]  # noqa: E731
    batches = from_function(draw, 3)
    rows = [batches.take((), (), jax.random.key(0), step)[0] for step in range(2)]
    drawn, workers = np.moveaxis(np.array(rows), -1, 0)
    assert len({*drawn.ravel().tolist()}) == 6
    assert workers.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_the_best_learning_rate_is_never_one_that_diverged():
    values = np.array([0.3, np.nan, 0.2]).reshape(1, 3, 1, 1, 1)
    rates = np.array([[1.0, 2.0, 3.0]])
    one = np.array([1])
    result = Comparison(("a",), rates, one, one, one, {"loss": values})
    assert result.best() == 2
    assert result.best(largest=True) == 0
    assert result.at_best("loss", result.best()).item() == 0.2


@pytest.mark.parametrize("against", ["step", "learning_rate", "num_workers"])
def test_a_plot_has_named_axes_and_a_line_with_bars_for_each(against: str, result: Comparison):
    (ax,) = result.plot("norm", against=against).axes
    assert ax.get_xlabel()
    assert "norm" in ax.get_ylabel()
    lines = len(ax.get_legend().get_texts())
    assert lines == (2 if against == "num_workers" else 4)
    assert len(ax.collections) + len(ax.containers) >= lines  # bands or bars


def test_a_thousand_workers_run_on_one_device():
    many = run(
        methods={"vote": lambda rate: signax.sign_sgd(rate, axis_name="workers")},
        num_workers=1000, data=lambda key, worker: 1.0 + jax.random.normal(key, (1, 3)),
        learning_rates=[0.25], num_steps=4, seeds=1,
    )  # fmt: skip
    # Each of 1,000 votes is right with probability 0.6 or more until x = 0.75: the majority errs
    # with probability below exp(-2 * 1000 * 0.1^2) = 2e-9. The fourth step ends at 1.
    np.testing.assert_array_equal(many["x"][0, 0, 0, 0, -1], np.ones(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "at least one method"),
        ({"methods": {"mine": signax.sign_sgd(0.1)}}, r"methods\['mine'\] must be a function"),
        ({"num_workers": 0}, "num_workers=0 must be"),
        ({"seeds": []}, "seeds="),
        ({"num_steps": 0}, "num_steps=0"),
        ({"eval_steps": [1, 7]}, "eval_steps must be"),
        ({"learning_rates": {"SSDM": [1.0]}}, "give every method its own"),
        ({"learning_rates": {"SSDM": [1.0], "SGD": [1.0, 2.0]}}, "same number of learning rates"),
        ({"metrics": {"loss": jnp.sum}}, "rename yours"),
        ({"batch_size": 3}, "Leave batch_size out"),
        ({"data": np.ones((5, 3))}, "batch_size=None"),
        ({"data": np.ones((5, 3)), "batch_size": 3}, "no more than there are"),
        ({"data": {"a": np.ones(5), "b": np.ones(4)}, "batch_size": 1}, "leading axis of examples"),
        ({"data": lambda key, worker: jnp.float32(0)}, r"write x\[None\]"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_an_optimizer_without_a_vote_is_named_and_told_what_to_write():
    with pytest.raises(ValueError, match="differs between the workers") as caught:
        run(methods={"mine": optax.adam})
    notes = " ".join(caught.value.__notes__)
    assert "'mine'" in notes
    assert 'signax.average_gradients("workers")' in notes


@thorough
def test_the_example_of_compare_prints_what_it_says():
    module = importlib.import_module("signax.experiments.compare")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
