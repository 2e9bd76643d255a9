"""What a loss may return and is given: metrics, model state, keys; and what is made of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import signax
from daily import daily, thorough
from eight_workers import SIZE, M, batches, loss, mesh, on_mesh, params, simulated
from workers import WORKERS


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


@thorough
def test_every_worker_step_and_micro_batch_gets_a_key_of_its_own_and_replays():
    def noisy(p, batch, key):  # a gradient that is its key's noise
        noise = jax.random.normal(key, (SIZE,))
        return jnp.sum(noise * p["a"]) + 0 * loss(p, batch)

    tx = signax.signum(0.1, 0.0, axis_name=WORKERS)  # beta=0: the momentum is the gradient

    def momenta(make, where, **kwargs):
        step, seen = make(noisy, tx, where, **kwargs), []
        state = signax.init_train_state(params(), tx, where, key=jax.random.key(7))
        for batch in batches(2, 2 * M):
            state, _ = step(state, batch)
            seen.append(np.array(state.opt_state[0].ema["a"]))
        return np.concatenate(seen)

    on_devices = functools.partial(momenta, signax.make_train_step, mesh())
    first = on_devices()
    assert len(np.unique(first[:, 0])) == 2 * M
    np.testing.assert_array_equal(first, on_devices())  # a replay
    # The same words; XLA may fuse the polynomial of the normal law otherwise: a few roundings.
    np.testing.assert_allclose(first, momenta(signax.simulate_train_step, M), rtol=1e-6)
    halves = on_devices(accumulate_steps=2)
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


@pytest.mark.parametrize("run", [on_mesh, simulated])
def test_dropout_keys_in_the_model_state_are_of_each_worker_and_step(run):
    graph, rest = nnx.split(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))

    def loss_fn(p, batch, model_state):
        model = nnx.merge(graph, model_state, copy=True)
        code = jnp.sum(model(jnp.ones(16)) * 2.0 ** jnp.arange(16))  # which units are dropped
        aux = {"code": code, "square": code**2}
        return loss(p, batch), (nnx.state(model), aux)

    state, history = run(loss_fn, signax.sign_sgd(0.1, axis_name=WORKERS), batches(2, M),
                         model_state=rest, has_aux=True)  # fmt: skip
    for metrics in history:
        assert metrics["square"] - metrics["code"] ** 2 > 1.0  # the workers' codes differ
    assert history[0]["code"] != history[1]["code"]
    before, after = nnx.to_pure_dict(rest), nnx.to_pure_dict(state.model_state)
    assert after["rngs"]["count"] == 2
    assert after["rngs"]["key"] == before["rngs"]["key"]


def test_an_array_of_keys_in_the_model_state_is_one_of_each_worker_too():
    def loss_fn(p, batch, model_state):
        words = jax.vmap(lambda key: jax.random.uniform(key))(model_state["layers"])
        aux = {"first": words[0], "square": words[0] ** 2, "second": words[1]}
        return loss(p, batch), (model_state, aux)

    state, (metrics,) = on_mesh(
        loss_fn, signax.sign_sgd(0.1, axis_name=WORKERS), batches(1, M), has_aux=True,
        model_state={"layers": jax.random.split(jax.random.key(0), 2)},
    )  # fmt: skip
    assert metrics["square"] - metrics["first"] ** 2 > 1e-3  # the workers' numbers differ
    assert metrics["first"] != metrics["second"]
    assert state.model_state["layers"].shape == (2,)


def test_a_count_in_the_model_state_that_differs_between_workers_is_refused():
    def loss_fn(p, batch, model_state):
        seen = model_state["seen"] + jnp.sum(batch > 0).astype(jnp.int32)
        return loss(p, batch), {"seen": seen}

    with pytest.raises(ValueError, match=r"\['seen'\] \(int32\) differs between the workers"):
        on_mesh(loss_fn, signax.sign_sgd(0.1, axis_name=WORKERS), batches(1, M),
                model_state={"seen": jnp.int32(0)})  # fmt: skip


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
