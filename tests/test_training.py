"""One jitted step: on eight devices, simulated, and against a NumPy loop."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import reference
import signax
from daily import daily, thorough
from eight_workers import (
    ALGORITHMS,
    SIZE,
    M,
    batches,
    loss,
    mesh,
    on_mesh,
    params,
    simulated,
    train,
)
from workers import WORKERS

pytestmark = pytest.mark.machine_code


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

    # The gradient is read twice, is it finite and into the momentum, so XLA may keep its bfloat16
    # (jax 0.12 does, 0.10 does not). A copy of the momentum would be twice as large. 512: scalars.
    gradient = sum(2 * kernel.size for kernel in kernels.values())
    without = temporary(signax.sign_sgd(0.1, axis_name=WORKERS))
    assert temporary(signax.signum(0.1, axis_name=WORKERS)) <= without + gradient + 512


@pytest.mark.parametrize("make", [signax.dense_sgd, signax.sign_sgd, signax.ssdm])
def test_the_step_makes_no_copy_of_parameters_that_the_loss_itself_reads(make: Callable):
    """As a penalty of their squares does, whose value the gradient does not need."""
    tx = make(0.1, axis_name=WORKERS)
    step = signax.make_train_step(lambda p, b: jnp.mean((b @ p) ** 2) + jnp.sum(p**2), tx, mesh())
    state = signax.init_train_state(jnp.ones((64, 64)), tx, mesh())
    text = step.lower(state, jnp.ones((M, 64))).compile().as_text()
    entry = text[text.index("\nENTRY") :]  # not the fusions, which may transpose
    assert not re.findall(r"= f32\[64,64\]\S* copy\(", entry)


def test_a_step_whose_metrics_are_all_equal_is_taken():
    """They are what the parameters wait for."""
    tx = signax.sign_sgd(0.5, axis_name=WORKERS)
    step = signax.make_train_step(lambda p, b: jnp.sum(p * b[0]), tx, mesh())
    state, metrics = step(signax.init_train_state(jnp.zeros(2), tx, mesh()), jnp.ones((M, 2)))
    assert metrics == {"loss": 0, "num_abstained": 0}
    np.testing.assert_array_equal(state.params, [-0.5, -0.5])


def test_the_second_call_compiles_nothing():
    tx = ALGORITHMS["ssdm"]()
    for step, where in (
        (signax.make_train_step(loss, tx, mesh()), mesh()),
        (signax.simulate_train_step(loss, tx, M), M),
    ):
        train(step, signax.init_train_state(params(), tx, where), batches(3))
        assert step._cache_size() == 1


@pytest.mark.parametrize("make", [signax.make_train_step, signax.simulate_train_step])
def test_donation_leaves_the_users_parameters_alive_and_init_may_run_twice(make: Callable):
    tx, mine = ALGORITHMS["ssdm"](), params()
    key, (batch,) = jax.random.key(0), batches(1)
    where = mesh() if make is signax.make_train_step else M
    step = make(lambda p, b, key: loss(p, b), tx, where)
    for _ in range(2):
        state = signax.init_train_state(mine, tx, where, key=key)
        after, _ = step(state, batch)
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


@thorough
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


@pytest.mark.parametrize("make", [signax.make_train_step, signax.simulate_train_step])
def test_a_state_that_was_given_to_a_step_before_is_refused(make: Callable):
    """On several CPU devices JAX itself may end the process: a notebook's cell run twice."""
    tx, where = ALGORITHMS["ssdm"](), mesh() if make is signax.make_train_step else M
    step, (batch,) = make(loss, tx, where), batches(1)
    state = signax.init_train_state(params(), tx, where)
    after, _ = step(state, batch)
    with pytest.raises(RuntimeError, match="given to a step before"):
        step(state, batch)
    step(after, batch)


def test_a_mesh_of_explicit_axes_takes_any_batch():
    """Such as `jax.make_mesh` makes."""
    mesh, tx = jax.make_mesh((4,), (WORKERS,)), signax.signum(0.1, axis_name=WORKERS)
    kernel, rows = jnp.ones((6, 3)), jnp.ones((16, 6))
    assert mesh.explicit_axes
    state = signax.init_train_state({"w": kernel}, tx, mesh)
    one_step = signax.make_train_step(lambda p, b: jnp.mean(b @ p["w"]), tx, mesh)
    batches = [rows, np.asarray(rows), jax.device_put(rows, jax.NamedSharding(mesh, jax.P()))]
    for batch in batches:
        state, metrics = one_step(state, batch)
        assert metrics["num_abstained"] == 0
    expected = kernel - 3 * jnp.float32(0.1)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, jnp.full(3, 0.1)], ids=["number", "array"])
def test_parameters_of_a_weak_type_compile_one_step(scale: Any):
    mesh, tx = signax.make_worker_mesh(2), signax.signum(0.1, axis_name=WORKERS)
    state = signax.init_train_state({"scale": scale}, tx, mesh)
    one_step = signax.make_train_step(lambda p, b: jnp.sum(p["scale"] * b[0]), tx, mesh)
    for _ in range(3):
        state, _ = one_step(state, jnp.arange(2.0))
    assert one_step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
