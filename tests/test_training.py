"""One jitted step: on eight devices, simulated, and against a NumPy loop."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import reference
import signax
from daily import daily
from workers import WORKERS

M = 8
SIZE = 16


def params() -> dict[str, jax.Array]:
    return {"a": jnp.zeros(SIZE), "b": jnp.ones(())}


def loss(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:
    """Quadratic; its gradient is exact for small integers, so mappings agree bit for bit."""
    return jnp.mean(jnp.sum(((params["a"] + params["b"])[None] - batch) ** 2, axis=-1))


def batches(num_steps: int, rows: int = M, seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return list(jnp.asarray(rng.integers(-4, 5, (num_steps, rows, SIZE)), jnp.float32))


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return signax.make_worker_mesh(M)


def train(step: Callable, state: Any, data: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
    history = []
    for batch in data:
        state, metrics = step(state, batch)
        history.append(jax.tree.map(float, metrics))
    return state, history


def on_mesh(loss_fn: Callable, tx: Any, data: list[Any], start: Any = None, **kwargs: Any):
    init = {k: kwargs.pop(k) for k in ("model_state", "key") if k in kwargs}
    step = signax.make_train_step(loss_fn, tx, mesh(), **kwargs)
    start = params() if start is None else start
    return train(step, signax.init_train_state(start, tx, mesh(), **init), data)


def simulated(loss_fn: Callable, tx: Any, data: list[Any], start: Any = None, **kwargs: Any):
    init = {k: kwargs.pop(k) for k in ("model_state", "key") if k in kwargs}
    step = signax.simulate_train_step(loss_fn, tx, M, **kwargs)
    start = params() if start is None else start
    return train(step, signax.init_train_state(start, tx, M, **init), data)


ALGORITHMS = {
    "signum": lambda: signax.signum(0.25, 0.5, axis_name=WORKERS),
    "sign_sgd coins": lambda: signax.sign_sgd(0.25, axis_name=WORKERS, ties="random", key=4),
    "ssdm": lambda: signax.ssdm(0.25, 0.5, axis_name=WORKERS, scale=signax.Scale("linf", "leaf")),
}


@pytest.mark.parametrize("name", daily(ALGORITHMS, ["ssdm"]))
def test_eight_devices_and_eight_simulated_workers_take_the_same_steps(name: str):
    tx, data = ALGORITHMS[name](), batches(20)
    state, history = on_mesh(loss, tx, data)
    simulation, simulated_history = simulated(loss, tx, data)
    jax.tree.map(np.testing.assert_array_equal, state, simulation)
    for real, other in zip(history, simulated_history, strict=True):
        assert real.keys() == other.keys() == {"loss", "num_abstained"}
        # a mean of eight float32 losses in another order
        assert real["loss"] == pytest.approx(other["loss"], rel=8 * 2**-24)
    assert int(state.step) == 20
    # parameters are typed, and laid out, as replicated; momenta as each worker's own
    for leaf in jax.tree.leaves((state.params, state.step)):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh(), PartitionSpec()), leaf.ndim)
    if name == "signum":
        momentum = state.opt_state[0].ema["a"]
        assert momentum.shape == (M, SIZE)
        assert momentum.sharding.spec == PartitionSpec(WORKERS)
        assert len(np.unique(momentum, axis=0)) == M


def test_sign_sgd_on_eight_devices_is_the_loop_of_algorithm_2():
    data = batches(20)
    state, history = on_mesh(loss, signax.sign_sgd(0.25, axis_name=WORKERS), data)
    a, b = np.zeros(SIZE), np.ones(())
    for batch, metrics in zip(np.asarray(data), history, strict=True):
        residual = a + b - batch
        assert metrics["loss"] == pytest.approx(np.mean(np.sum(residual**2, -1)), rel=1e-6)
        rows = np.concatenate([2 * residual, 2 * residual.sum(-1, keepdims=True)], axis=1)
        x = reference.majority_vote_step(np.append(a, b), rows, 0.25)
        a, b = x[:-1], x[-1]
    np.testing.assert_array_equal(state.params["a"], a)
    np.testing.assert_array_equal(state.params["b"], b)


def test_the_step_makes_no_copy_of_the_momentum():
    """Matrices and bfloat16 products: there XLA would compute the momentum anew for each reader."""
    kernels = {"first": jnp.zeros((64, 64)), "second": jnp.zeros((64, 64))}

    def mean_square(kernels, batch):
        hidden = batch.astype(jnp.bfloat16)
        for kernel in kernels.values():
            hidden = jnp.tanh(hidden @ kernel.astype(jnp.bfloat16))
        return jnp.mean(hidden.astype(jnp.float32) ** 2)

    def temporary(tx):
        step = signax.make_train_step(mean_square, tx, mesh())
        state = signax.init_train_state(kernels, tx, mesh())
        compiled = step.lower(state, jnp.ones((M, 64))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    without = temporary(signax.sign_sgd(0.1, axis_name=WORKERS))
    assert temporary(signax.signum(0.1, axis_name=WORKERS)) <= without + 512  # a few scalars


def test_the_second_call_compiles_nothing():
    tx = ALGORITHMS["ssdm"]()
    for step, where in (
        (signax.make_train_step(loss, tx, mesh()), mesh()),
        (signax.simulate_train_step(loss, tx, M), M),
    ):
        train(step, signax.init_train_state(params(), tx, where), batches(3))
        assert step._cache_size() == 1


def test_donation_leaves_the_users_parameters_alive_and_init_may_run_twice():
    tx, mine = ALGORITHMS["ssdm"](), params()
    key = jax.random.key(0)
    step = signax.make_train_step(lambda p, b, key: loss(p, b), tx, mesh())
    for _ in range(2):
        state = signax.init_train_state(mine, tx, mesh(), key=key)
        after, _ = step(state, batches(1)[0])
        with pytest.raises(RuntimeError, match="deleted"):
            np.asarray(state.params["a"])
        np.testing.assert_array_equal(mine["a"], 0.0)
        jax.random.key_data(key).block_until_ready()
        assert int(after.step) == 1


@pytest.mark.parametrize("accumulate_steps", [2, 4])
@pytest.mark.parametrize("run", [on_mesh, simulated])
def test_accumulation_gives_the_gradient_of_the_whole_batch(run: Callable, accumulate_steps: int):
    # small integers and powers of two: every sum is exact
    tx, data = signax.dense_sgd(0.125, axis_name=WORKERS), batches(2, rows=4 * M)
    whole, whole_history = run(loss, tx, data)
    parts, history = run(loss, tx, data, accumulate_steps=accumulate_steps)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert history[0]["loss"] == pytest.approx(whole_history[0]["loss"], rel=1e-6)


def with_metrics(params: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    value = loss(params, batch)
    return value, {"half": value / 2, "num_rows": batch.shape[0] * jnp.int32(1)}


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_metrics_are_float32_means_over_the_workers(accumulate_steps: int):
    tx = signax.sign_sgd(0.25, axis_name=WORKERS)
    step = signax.make_train_step(
        with_metrics, tx, mesh(), has_aux=True, accumulate_steps=accumulate_steps
    )
    _, metrics = step(signax.init_train_state(params(), tx, mesh()), batches(1, 2 * M)[0])
    assert metrics.keys() == {"loss", "half", "num_rows", "num_abstained"}
    assert all(x.dtype == jnp.float32 and x.shape == () for x in metrics.values())
    assert float(metrics["half"]) == float(metrics["loss"]) / 2
    assert float(metrics["num_rows"]) == 2 // accumulate_steps


def test_an_integer_metric_is_not_truncated_by_accumulation():
    fn = lambda p, b: (loss(p, b), {"num": (b[0, 0] > 0).astype(jnp.int32)})  # noqa: E731
    batch = jnp.tile(jnp.array([[1.0], [-1.0]]), (M, SIZE))
    _, history = on_mesh(
        fn,
        signax.sign_sgd(0.25, axis_name=WORKERS),
        [batch],
        has_aux=True,
        accumulate_steps=2,
    )
    assert history[0]["num"] == 0.5


BAD_AUX = {
    "must be a scalar": (lambda p, b: p["a"], False),
    "a flat dict of scalars": (lambda p, b: (loss(p, b), {"x": p["a"]}), True),
    "the step itself reports 'loss'": (lambda p, b: (loss(p, b), {"loss": 0.0}), True),
    "the step itself reports 'num_abstained'": (
        lambda p, b: (loss(p, b), {"num_abstained": 0.0}),
        True,
    ),
}


@pytest.mark.parametrize("message", BAD_AUX)
def test_a_loss_that_returns_something_else_is_refused(message: str):
    fn, has_aux = BAD_AUX[message]
    with pytest.raises(ValueError, match=message):
        on_mesh(fn, signax.sign_sgd(0.1, axis_name=WORKERS), batches(1), has_aux=has_aux)


def test_every_worker_step_and_micro_batch_gets_a_key_of_its_own_and_replays():
    # Each worker's key decides one coordinate of a 64-way one-hot "gradient"; its sign is seen in
    # the momentum that stays on the worker.
    def noisy(p, batch, key):
        noise = jax.random.normal(key, (SIZE,))
        return jnp.sum(noise * p["a"]) + 0 * loss(p, batch)

    tx = signax.signum(0.1, 0.0, axis_name=WORKERS)  # beta=0: the momentum is the gradient

    def momenta(run, **kwargs):
        seen = []
        for num_steps in (1, 2):
            state, _ = run(noisy, tx, batches(num_steps, 2 * M), key=jax.random.key(7), **kwargs)
            seen.append(np.asarray(state.opt_state[0].ema["a"]))
        return np.concatenate(seen)

    first = momenta(on_mesh)
    assert len(np.unique(first[:, 0])) == 2 * M
    np.testing.assert_array_equal(first, momenta(on_mesh))  # a replay
    np.testing.assert_allclose(first, momenta(simulated), rtol=1e-6)
    halves = momenta(on_mesh, accumulate_steps=2)
    assert len(np.unique(halves[:, 0])) == 2 * M
    # the mean of two independent normals: variance 1/2, not 1. 16 x 16 values: the sample variance
    # lies within 6.5 sqrt(2 / 256) = 57 % of it, so below 0.79
    assert np.var(halves) < 0.79


class Network(nnx.Module):
    """Linear, BatchNorm, Dropout: what a real model carries besides its parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(SIZE, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x))), rngs=rngs))


@pytest.mark.parametrize("accumulate_steps", daily([1, 2], [2]))
def test_a_flax_model_with_batch_norm_and_dropout_trains(accumulate_steps: int):
    graph, weights, statistics = nnx.split(Network(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    def loss_fn(weights, batch, model_state, key):
        model = nnx.merge(graph, weights, model_state, copy=True)
        out = model(batch, rngs=nnx.Rngs(dropout=key))
        _, _, model_state = nnx.split(model, nnx.Param, nnx.BatchStat)
        return jnp.mean(out**2), model_state

    tx = signax.signum(0.01, axis_name=WORKERS)
    data = batches(2, 8 * M)
    kwargs = {
        "model_state": statistics,
        "key": jax.random.key(0),
        "accumulate_steps": accumulate_steps,
    }
    state, history = on_mesh(loss_fn, tx, data, start=weights, **kwargs)
    assert all(np.isfinite(m["loss"]) for m in history)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.model_state))
    kernel = lambda weights: np.asarray(weights["first"]["kernel"][...])  # noqa: E731
    # every weight moved by 0.01 at each of the two steps, there and back at most
    moved = np.abs(kernel(state.params) - kernel(weights))
    assert 0.005 < moved.max() < 0.021
    np.testing.assert_allclose(moved, 0.01 * np.round(moved / 0.01), atol=1e-6)
    if accumulate_steps == 1:
        # After one step the statistics are the mean over the workers of what each has seen.
        one, _ = on_mesh(loss_fn, tx, data[:1], start=weights, **kwargs)
        other, _ = simulated(loss_fn, tx, data[:1], start=weights, **kwargs)
        hidden = nnx.merge(graph, weights, statistics).first(data[0])
        shards = np.asarray(hidden).reshape(M, 8, 4)
        for seen in (one.model_state["norm"], other.model_state["norm"]):
            np.testing.assert_allclose(seen["mean"][...], 0.5 * shards.mean((0, 1)), atol=1e-5)
            expected = 0.5 + 0.5 * shards.var(1).mean(0)
            np.testing.assert_allclose(seen["var"][...], expected, rtol=1e-4)


def test_model_state_with_metrics_and_integers_and_a_bad_worker():
    def loss_fn(p, batch, model_state):
        mean = jnp.mean(batch)
        new = {"mean": mean, "count": model_state["count"] + 1}
        return loss(p, batch), (new, {"batch_mean": mean})

    batch = batches(1)[0].at[0, 0].set(jnp.nan)
    start = {"mean": jnp.zeros(()), "count": jnp.int32(0)}
    tx = signax.sign_sgd(0.25, axis_name=WORKERS)
    for run in (on_mesh, simulated):
        state, history = run(loss_fn, tx, [batch], has_aux=True, model_state=start)
        expected = np.mean(np.asarray(batch[1:]))  # over the finite workers
        assert float(state.model_state["mean"]) == pytest.approx(expected, abs=1e-6)
        assert history[0]["batch_mean"] == pytest.approx(expected, abs=1e-6)
        assert int(state.model_state["count"]) == 1
        assert history[0]["num_abstained"] == 1
        assert np.isfinite(history[0]["loss"])
        nan = jnp.full_like(batch, jnp.nan)
        state, history = run(loss_fn, tx, [batch, nan], has_aux=True, model_state=start)
        assert float(state.model_state["mean"]) == pytest.approx(expected, abs=1e-6)  # the old one
        assert np.isnan(history[1]["loss"])
        assert history[1]["num_abstained"] == M


def test_one_step_of_nan_leaves_every_momentum_unharmed():
    tx = signax.signum(0.25, 0.5, axis_name=WORKERS)
    clean = batches(3)
    spoilt = [clean[0], clean[1].at[2:].set(jnp.nan), clean[2]]
    before, _ = on_mesh(loss, tx, clean[:1])
    after, history = on_mesh(loss, tx, spoilt[:2])
    assert [m["num_abstained"] for m in history] == [0, 6]
    old, new = (np.asarray(s.opt_state[0].ema["a"]) for s in (before, after))
    np.testing.assert_array_equal(new[2:], old[2:])
    assert (new[:2] != old[:2]).any()
    state, history = on_mesh(loss, tx, spoilt)
    assert history[2]["num_abstained"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def scan_from_plain_zeros(params: Any, batch: jax.Array) -> jax.Array:
    total, _ = jax.lax.scan(lambda c, x: (c + loss(params, x[None]), None), 0.0, batch)
    return total / len(batch)


def test_a_loss_that_the_check_refuses_trains_without_it():
    tx, data = signax.signum(0.25, 0.5, axis_name=WORKERS), batches(3, 2 * M)
    with pytest.raises(TypeError, match=r"varying|carry"):
        on_mesh(scan_from_plain_zeros, tx, data)
    state, _ = on_mesh(scan_from_plain_zeros, tx, data, check_vma=False)
    expected, _ = simulated(scan_from_plain_zeros, tx, data)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state.opt_state[0].ema["a"].shape == (M, SIZE)
    assert len(np.unique(state.opt_state[0].ema["a"], axis=0)) == M


def test_the_mean_loss_is_passed_to_the_optimizer():
    tx = optax.chain(
        signax.sign_sgd(0.25, axis_name=WORKERS),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0),
    )
    flat = lambda p, b: 0 * loss(p, b) + 3.0  # noqa: E731
    for run in (on_mesh, simulated):
        state, _ = run(flat, tx, batches(4))
        assert float(state.opt_state[1].best_value) == 3.0
        assert float(state.opt_state[1].scale) < 1.0


@pytest.mark.parametrize("num_rows", [0, 7, 12])
def test_a_batch_that_workers_cannot_share_is_refused_by_its_leaf(num_rows: int):
    tx = signax.sign_sgd(0.25, axis_name=WORKERS)
    if num_rows == 0:
        batch, message = {"x": jnp.zeros(())}, "no leading axis, which 8 workers"
    else:
        batch, message = {"x": jnp.zeros((num_rows, SIZE))}, f"{num_rows} rows, which 8 workers"
    for run in (on_mesh, simulated):
        with pytest.raises(ValueError, match=r"\['x'\] has " + message):
            run(lambda p, b: loss(p, b["x"]), tx, [batch])


def test_accumulation_needs_a_batch_that_divides_further():
    with pytest.raises(ValueError, match="8 workers x accumulate_steps=3"):
        on_mesh(loss, ALGORITHMS["signum"](), batches(1, 2 * M), accumulate_steps=3)


def test_a_state_of_plain_init_is_an_error_that_names_init_opt_state():
    tx = ALGORITHMS["signum"]()
    for step, where in (
        (signax.make_train_step(loss, tx, mesh()), mesh()),
        (signax.simulate_train_step(loss, tx, M), M),
    ):
        state = signax.init_train_state(params(), tx, where)
        with pytest.raises(ValueError, match=r"signax\.init_opt_state") as error:
            step(state._replace(opt_state=tx.init(params())), batches(1)[0])
        assert "[0].ema['a'] has shape (16,)" in str(error.value)


def test_a_state_of_another_number_of_workers_names_change_num_workers():
    tx = ALGORITHMS["signum"]()
    state = signax.init_train_state(params(), tx, 4)
    for step in (signax.make_train_step(loss, tx, mesh()), signax.simulate_train_step(loss, tx, M)):
        with pytest.raises(ValueError, match=r"signax\.change_num_workers") as error:
            step(state, batches(1)[0])
        assert "the state of 4 workers, given to 8" in str(error.value)


def test_a_state_of_another_optimizer_or_model_is_refused():
    tx = ALGORITHMS["signum"]()
    step = signax.make_train_step(loss, tx, mesh())
    other = signax.init_train_state(params(), signax.sign_sgd(0.1, axis_name=WORKERS), mesh())
    with pytest.raises(ValueError, match="does not belong to this optimizer"):
        step(other, batches(1)[0])
    smaller = signax.init_train_state(params() | {"a": jnp.zeros(3)}, tx, mesh())
    mixed = signax.init_train_state(params(), tx, mesh())._replace(opt_state=smaller.opt_state)
    with pytest.raises(ValueError, match=re.escape("but these parameters need (8, 16)")):
        step(mixed, batches(1)[0])


def test_a_float32_master_copy_takes_steps_that_bfloat16_would_lose():
    """The recipe: parameters in float32, cast to bfloat16 inside the loss."""

    def in_bfloat16(p, batch):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)
        return loss(half, batch.astype(jnp.bfloat16)).astype(jnp.float32)

    tx = signax.signum(1e-3, axis_name=WORKERS)
    data = [jnp.zeros((M, SIZE))]
    start = {"a": jnp.ones(SIZE), "b": jnp.ones(())}
    state, _ = on_mesh(in_bfloat16, tx, data, start=start)
    np.testing.assert_array_equal(state.params["a"], np.float32(1) - np.float32(1e-3))
    assert state.params["a"].dtype == jnp.float32
    lost = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start)
    state, _ = on_mesh(in_bfloat16, tx, data, start=lost)
    np.testing.assert_array_equal(np.asarray(state.params["a"], np.float32), 1.0)


def test_simulated_training_may_be_mapped_over_seeds():
    tx = signax.signum(0.25, 0.5, axis_name=WORKERS)
    step = signax.simulate_train_step(loss, tx, 5)
    seeds = [jnp.stack(batches(3, 5, seed)) for seed in range(3)]

    def run(data):
        state = signax.init_train_state(params(), tx, 5)
        return jax.lax.scan(step, state, data)[0].params

    together = jax.vmap(run)(jnp.stack(seeds))
    for seed, data in enumerate(seeds):
        alone = run(data)
        jax.tree.map(lambda t, a: np.testing.assert_array_equal(t[seed], a), together, alone)  # noqa: B023


def test_a_specs_override_is_used():
    tx = ALGORITHMS["signum"]()
    specs = signax.state_specs(tx, params(), mesh())
    state, _ = on_mesh(loss, tx, batches(1), state_specs=specs)
    expected, _ = on_mesh(loss, tx, batches(1))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_two_level_meshes_train():
    two = jax.make_mesh((2, 4), ("hosts", "local"), (jax.sharding.AxisType.Auto,) * 2)
    tx = optax.chain(signax.average_gradients("local"), signax.signum(0.25, 0.5, axis_name="hosts"))
    step = signax.make_train_step(loss, tx, two)
    state, history = train(step, signax.init_train_state(params(), tx, two), batches(3))
    assert history[0]["num_abstained"] == 0
    assert state.opt_state[1][0].ema["a"].shape == (2, SIZE)
    # the same as two workers with four rows each
    one = signax.signum(0.25, 0.5, axis_name=WORKERS)
    expected, _ = train(
        signax.simulate_train_step(loss, one, 2),
        signax.init_train_state(params(), one, 2),
        batches(3),
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    spoilt = batches(1)[0].at[jnp.array([0, 5, 6])].set(jnp.nan)  # one worker of host 0, two of 1
    _, history = train(step, signax.init_train_state(params(), tx, two), [spoilt])
    assert history[0]["num_abstained"] == 3


def test_simulated_workers_may_have_an_axis_of_another_name():
    tx = signax.signum(0.1, axis_name="clients")
    step = signax.simulate_train_step(
        lambda x, b: jnp.mean((x[None] - b) ** 2), tx, 3, axis_name="clients"
    )
    state = signax.init_train_state(jnp.zeros(2), tx, 3, axis_name="clients")
    state, _ = step(state, jnp.ones((3, 2)))
    np.testing.assert_allclose(state.params, 0.1, rtol=1e-6)
