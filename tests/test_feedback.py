"""Error memory on workers and servers, the mean of scaled signs, and dense first steps."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import daily, thorough
from four_leaves import SIZE, random_rows, to_tree, to_vector
from workers import MAPPINGS, WORKERS, Mapped, map_workers, worker_mesh


def test_what_was_said_and_what_is_owed_add_up_to_what_was_meant():
    tx = signax.error_feedback(signax.scale_by_scaled_sign(axis_name=None))
    rng, total_said, total_meant = np.random.default_rng(0), 0.0, 0.0
    state = tx.init(jnp.zeros(50))
    for _ in range(30):
        g = rng.integers(-2, 3, 50).astype(np.float32)
        said, state = tx.update(jnp.asarray(g), state)
        total_said, total_meant = total_said + np.asarray(said, np.float64), total_meant + g
    # 30 steps, three roundings each, of numbers below 64
    owed = total_meant - total_said
    np.testing.assert_allclose(state.residual, owed, atol=30 * 3 * 64 * 2.0**-24)


def test_both_memories_know_what_the_updates_rounded_away():
    num_workers, num_steps, sizes = 3, 20, {"bfloat16": 40, "float16": 24, "float32": 16}
    rng = np.random.default_rng(0)
    fed = {
        dtype: jnp.asarray(rng.integers(-9, 10, (num_workers, num_steps, size)), dtype)
        for dtype, size in sizes.items()
    }
    tx = signax.compressed_mean(WORKERS, accumulator_dtype="float32")

    def steps(rows):
        def step(state, g):
            update, state = tx.update(g, state)
            return state, update

        return jax.lax.scan(step, tx.init(jax.tree.map(lambda x: x[0], rows)), rows)

    state, applied = map_workers("vmap", steps, num_workers)(fed)
    owed_by_servers = np.asarray(state[1].server_residual, np.float64).reshape(-1)
    start = 0
    for dtype, size in sizes.items():
        total = np.asarray(applied[dtype][0], np.float64).sum(axis=0)
        owed = np.asarray(state[0].residual[dtype], np.float64).mean(axis=0)
        owed += owed_by_servers[start : start + size]
        meant = np.asarray(fed[dtype], np.float64).sum(axis=1).mean(axis=0)
        # Seven roundings a step of float32 numbers below 64: two on a worker, five on a server.
        # A scale that is rounded behind the server's back leaves 0.06 of a bfloat16.
        atol = num_steps * 7 * 64 * 2.0**-24
        np.testing.assert_allclose(total + owed, meant, atol=atol, rtol=0, err_msg=dtype)
        start += size


def test_what_a_float16_cannot_hold_stays_owed():
    tx = signax.average_scaled_signs(None, bidirectional=True)
    g = jnp.full(8, 60_000, jnp.float16)
    state = tx.init(g)
    state = state._replace(server_residual=jnp.full((1, 8), 10_000.0))
    update, state = tx.update(g, state)
    np.testing.assert_array_equal(update, jnp.full(8, 65_504, jnp.float16))
    np.testing.assert_array_equal(state.server_residual, np.full((1, 8), 70_000.0 - 65_504))


def test_coins_on_a_dead_coordinate_are_taken_back():
    """Without the residual a dead coordinate would random-walk: 0.1 sqrt(2000) = 4.5 here."""
    tx = signax.double_squeeze(0.1)

    def step(carry, key):
        x, state = carry
        g = jnp.zeros(8).at[0].set(1 + jax.random.normal(key))
        updates, state = tx.update(g, state)
        return (x + updates, state), x

    x = jnp.zeros(8)
    path = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(jax.random.key(0), 2000))[1]
    assert np.abs(path[:, 1:]).max() < 0.5
    assert path[-1, 0] < -150


def test_an_abstaining_worker_keeps_its_residual_and_the_others_go_on(mapped: Mapped):
    tx = signax.ef_sign_sgd(1.0, axis_name=WORKERS)
    good = jnp.array([[1.0, -3.0], [2.0, 2.0], [4.0, -8.0]])

    def fn(good):
        state = tx.init(good)
        _, before = tx.update(good, state)
        bad = jnp.where(jax.lax.axis_index(WORKERS) == 2, jnp.nan, good)
        update, after = tx.update(bad, before)
        return update, before[0][1].residual, after[0][1].residual, after[1].num_abstained

    update, before, after, num_abstained = mapped(fn, good)
    np.testing.assert_array_equal(before[2], after[2])
    assert (before[0] != after[0]).any()
    assert np.isfinite(update).all()
    np.testing.assert_array_equal(num_abstained, [1, 1, 1])


def test_without_voters_nothing_moves_and_the_server_forgets_nothing(mapped: Mapped):
    tx = signax.compressed_mean(WORKERS)

    def fn(g):
        _, before = tx.update(g, tx.init(g))
        update, after = tx.update(jnp.full_like(g, jnp.nan), before)
        return update, before[1].server_residual, after[1].server_residual

    update, before, after = mapped(fn, jnp.asarray(random_rows(3)[0]))
    np.testing.assert_array_equal(update, 0.0)
    np.testing.assert_array_equal(before, after)
    assert (before != 0).any()


def test_the_mean_of_scaled_signs_is_the_same_in_all_mappings_and_replicas():
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 1e-30, 3e38, 0.7, 0.0])[:, None].astype(np.float32)
    said = rng.choice([-1, 1], (5, SIZE)).astype(np.float32) * scales
    expected = said.astype(np.float64).mean(axis=0)
    tx = signax.average_scaled_signs(WORKERS)
    both = signax.average_scaled_signs(WORKERS, bidirectional=True)

    def fn(u):
        tree = to_tree(u)
        one_way, two_way = (t.update(tree, t.init(tree))[0] for t in (tx, both))
        return to_vector(one_way), to_vector(two_way)

    for rows in (said, said[[0, 1, 3]]):
        expected = rows.astype(np.float64).mean(axis=0)
        results = [map_workers(m, fn, len(rows))(jnp.asarray(rows)) for m in MAPPINGS]
        for one_way, two_way in results:
            np.testing.assert_allclose(one_way[0], expected, rtol=1e-6)
            np.testing.assert_array_equal(one_way, np.broadcast_to(one_way[:1], one_way.shape))
            np.testing.assert_array_equal(two_way, np.broadcast_to(two_way[:1], two_way.shape))
            np.testing.assert_array_equal(one_way, results[0][0])
            assert np.isfinite(two_way).all()


def test_bfloat16_down_rounds_only_the_mean():
    said = jnp.array([[1.0, -1.0], [1.01, 1.01]])
    tx = signax.average_scaled_signs(WORKERS, down_dtype=jnp.bfloat16)
    mean = map_workers("vmap", lambda u: tx.update(u, tx.init(u))[0], 2)(said)
    rounded = jnp.array([1.005, 0.005], jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(mean[0], rounded, rtol=2.0**-8)
    assert (mean == mean.astype(jnp.bfloat16).astype(jnp.float32)).all()


SENT_DOWN = [
    (signax.double_squeeze, 1),
    (signax.ef_sign_sgd, 32),
    (functools.partial(signax.ef_sign_sgd, down_dtype="bfloat16"), 16),
    (functools.partial(signax.ssdm, rescale=True), 32),
]


@pytest.mark.parametrize(("make", "down"), daily(SENT_DOWN, SENT_DOWN[:1]))
def test_one_bit_up_and_what_was_promised_down_in_two_collectives(make: Callable, down: int):
    num_workers, size = 8, 80_000
    tx, mesh = make(0.1, axis_name=WORKERS), worker_mesh(8)
    params = {"w": jnp.zeros(size - 8), "b": jnp.zeros(8)}
    specs = signax.state_specs(tx, params, mesh)
    replicated, rows = jax.P(), jax.P(WORKERS)

    def exchange(g, state, params):
        state = signax.to_worker(state, specs)
        updates, state = tx.update(jax.tree.map(lambda x: x[0], g), state, params)
        return updates, signax.from_worker(state, specs)

    mapped = jax.shard_map(
        exchange, mesh=mesh, in_specs=(rows, specs, replicated), out_specs=(replicated, specs)
    )
    gradients = jax.tree.map(lambda p: jnp.zeros((num_workers, *p.shape)), params)
    state = jax.eval_shape(lambda p: signax.init_opt_state(tx, p, mesh), params)
    report = signax.wire_bits(mapped, gradients, state, params, num_coordinates=size)
    assert sorted(c.kind for c in report.collectives) == ["all-gather", "all-to-all"]
    bits = {c.kind: c.bits / size for c in report.collectives}
    # A slice holds at most two leaves, so the headers are 3 scales and counts: 0.1 % of a slice.
    assert bits["all-to-all"] == pytest.approx(7 / 8, rel=0.01)
    assert bits["all-gather"] == pytest.approx(down * 7 / 8, rel=0.01)


@pytest.mark.parametrize("make", [signax.average_scaled_signs, signax.average_column_means])
@pytest.mark.parametrize("down_dtype", daily(["float32", "bfloat16"], ["bfloat16"]))
def test_means_come_down_in_words_that_are_not_put_together_from_bytes(make: Any, down_dtype: str):
    size, tx = 80_000, make(WORKERS, down_dtype=down_dtype)
    fn = map_workers("shard_map", lambda u: tx.update(u, tx.init(None))[0], 8)
    text = fn.lower(jax.ShapeDtypeStruct((8, size), jnp.float32)).compile().as_text()
    shapes = re.findall(r"= u8\[([\d,]*)\]", text)
    assert max(np.prod([int(n) for n in shape.split(",") if n]) for shape in shapes) <= size


@pytest.mark.parametrize(
    ("down_dtype", "message"),
    [
        *((dtype, "of at least 16 bits, got") for dtype in ("foo", None, int, "float8_e4m3fn")),
        (jnp.float64, "down_dtype=float64 has 64 bits, which JAX makes 32 of"),
    ],
)
def test_a_dtype_in_which_no_mean_can_travel_is_refused(down_dtype: Any, message: str):
    with pytest.raises(ValueError, match=message):
        signax.average_scaled_signs(WORKERS, down_dtype=down_dtype)


def test_with_64_bits_a_mean_may_travel_in_them():
    with jax.enable_x64(True):
        tx = signax.average_scaled_signs(WORKERS, down_dtype="float64")
        said = jnp.array([[1.0, -1.0], [3.0, 3.0]], jnp.float32)
        mean = map_workers("shard_map", lambda u: tx.update(u, tx.init(u))[0], 2)(said)
        np.testing.assert_array_equal(mean, [[2.0, 1.0]] * 2)


def test_init_of_memory_on_the_servers_needs_the_axis_and_says_so():
    for tx in (signax.compressed_mean(WORKERS), signax.double_squeeze(0.1, axis_name=WORKERS)):
        with pytest.raises(ValueError, match=r"average_scaled_signs\(bidirectional=True\)\.init"):
            tx.init(jnp.zeros(3))


@thorough
@pytest.mark.parametrize("num_workers", daily([2, 5], [5]))
def test_the_servers_memory_is_cut_anew_for_another_number_of_workers(num_workers: int):
    tx = signax.double_squeeze(0.1, axis_name=WORKERS)
    params = to_tree(jnp.linspace(0.0, 5.0, SIZE))
    step = signax.simulate_train_step(
        lambda p, batch: sum(jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(p)), tx, 3
    )
    state, _ = step(signax.init_train_state(params, tx, 3), jnp.array([1.0, 2.0, 4.0]))
    changed = signax.change_num_workers(state, tx, num_workers)
    old, new = (s.opt_state[0][1].server_residual for s in (state, changed))
    words = 7  # 1 + 3 + 1 + 2
    assert new.shape == (num_workers, -(-words // num_workers), 8)
    np.testing.assert_array_equal(old.reshape(-1, 8)[:words], new.reshape(-1, 8)[:words])
    assert (old != 0).any()
    forgotten = signax.change_num_workers(state, tx, num_workers, how="zero")
    assert (forgotten.opt_state[0][1].server_residual == 0).all()


@pytest.mark.parametrize("aggregate", ["majority", "average"])
def test_one_workers_distributed_lion_is_optax_lion_decay_and_all(aggregate: Any):
    ours = signax.distributed_lion(0.1, 0.8, 0.95, weight_decay=0.5, aggregate=aggregate)
    theirs = optax.lion(0.1, 0.8, 0.95, weight_decay=0.5)
    x, y = jnp.ones(9), jnp.ones(9)
    states = ours.init(x), theirs.init(y)
    for g in np.random.default_rng(0).normal(size=(10, 9)).astype(np.float32):
        (u, v) = (
            t.update(jnp.asarray(g), s, z)
            for t, s, z in zip((ours, theirs), states, (x, y), strict=True)
        )
        states = u[1], v[1]
        x, y = x + u[0], y + v[0]
        np.testing.assert_array_equal(x, y)


WARM = signax.Scale("linf", "leaf", shared=True)
SWITCHES = {
    "link": lambda: optax.chain(
        signax.warmup(2, signax.compressed_mean(WORKERS), dense=signax.average_gradients(WORKERS)),
        optax.scale_by_learning_rate(0.1),
    ),
    "algorithm": lambda: signax.warmup(
        2,
        signax.ssdm(0.1, axis_name=WORKERS, scale=WARM),
        dense=signax.dense_sgd(0.1, 0.9, axis_name=WORKERS),
    ),
    "adam": lambda: signax.one_bit_adam(0.01, freeze_steps=2, axis_name=WORKERS),
}


def squared_distance(params: Any, batch: jax.Array) -> jax.Array:
    return sum(jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(params))


@thorough
@pytest.mark.parametrize("name", SWITCHES)
def test_dense_steps_switch_to_compressed_ones_alike_on_devices_and_simulated(name: str):
    tx, mesh = SWITCHES[name](), worker_mesh(3)
    params = to_tree(jnp.linspace(0.0, 1.0, SIZE))
    steps = (
        signax.make_train_step(squared_distance, tx, mesh),
        signax.simulate_train_step(squared_distance, tx, 3),
    )
    states = [signax.init_train_state(params, tx, m) for m in (mesh, 3)]
    for k in range(4):
        batch = jnp.array([0.0, 1.0, jnp.nan if k == 1 else 2.0])  # abstains in a dense step only
        (a, metrics), (b, _) = (f(s, batch) for f, s in zip(steps, states, strict=True))
        states = a, b
        assert metrics["num_abstained"] == (k == 1)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a.params, b.params
        )
    assert steps[0]._cache_size() == 1


def test_the_first_steps_are_those_of_the_dense_method_and_then_the_other_starts():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    tx = signax.warmup(2, signax.sign_sgd(schedule), dense=signax.dense_sgd(0.5))
    state, seen = tx.init(jnp.zeros(1)), []
    for _ in range(5):
        updates, state = tx.update(jnp.array([3.0]), state)
        seen.append(float(updates[0]))
    assert seen == [-1.5, -1.5, -1.0, -0.75, -0.5]


def test_a_coordinate_without_variance_stays_where_it_is():
    tx = signax.one_bit_adam(0.1, freeze_steps=3)
    x = jnp.ones(4)
    state, update = tx.init(x), jax.jit(tx.update)
    for _ in range(10):
        updates, state = update(jnp.array([1.0, -2.0, 0.0, 3.0]), state)
        x = x + updates
        assert x[2] == 1.0
    assert np.isfinite(x).all()
