"""The whole family against references from the papers, and what each method can and cannot do."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_family
import signax
from workers import MAPPINGS, WORKERS, Mapped, map_workers, worker_mesh

NUM_WORKERS = (1, 2, 3, 5, 8)
SOME_SLOW = [pytest.param(m, marks=[pytest.mark.slow][: m in (2, 5, 8)]) for m in NUM_WORKERS]
NUM_STEPS = 20
SHAPES = {"a": (5,), "b": (3, 8), "c": (), "d": (9,)}  # words: 1, 3, 1, 2; padding in a, c and d
SIZES = [math.prod(shape) for shape in SHAPES.values()]
SIZE = sum(SIZES)
LEAVES = np.split(np.arange(SIZE), np.cumsum(SIZES)[:-1])
SCHEDULE = optax.linear_schedule(0.1, 0.02, NUM_STEPS)


def to_tree(x: jax.Array) -> dict[str, jax.Array]:
    parts = jnp.split(x, np.cumsum(SIZES)[:-1])
    return {k: part.reshape(s) for part, (k, s) in zip(parts, SHAPES.items(), strict=True)}


def to_vector(tree: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([tree[k].reshape(-1) for k in SHAPES])


def random_rows(num_workers: int) -> np.ndarray:
    """Gradients of workers that differ in size; in some steps some or all workers abstain."""
    rng = np.random.default_rng(num_workers)
    rows = rng.normal(size=(NUM_STEPS, num_workers, SIZE)) * (1 + np.arange(num_workers))[:, None]
    rows = rows.astype(np.float32)
    rows[3, 0, 7] = np.nan
    rows[8, :, 2] = np.inf
    return rows


DETERMINISTIC: dict[str, Callable[[], optax.GradientTransformation]] = {
    "ef leaf": lambda: signax.ef_sign_sgd(SCHEDULE, axis_name=WORKERS),
    "ef global": lambda: signax.ef_sign_sgd(0.1, axis_name=WORKERS, scope="global"),
    "ef decay": lambda: signax.ef_sign_sgd(SCHEDULE, axis_name=WORKERS, weight_decay=0.5),
    "double squeeze": lambda: signax.double_squeeze(0.1, axis_name=WORKERS),
    "compressed mean": lambda: optax.chain(
        signax.compressed_mean(WORKERS), optax.scale_by_learning_rate(0.1)
    ),
    "lion majority": lambda: signax.distributed_lion(
        0.1, 0.8, 0.9, axis_name=WORKERS, weight_decay=0.5
    ),
    "lion average": lambda: signax.distributed_lion(
        0.1, 0.8, 0.9, axis_name=WORKERS, weight_decay=0.5, aggregate="average"
    ),
    "ssdm deterministic": lambda: signax.ssdm(0.1, 0.8, axis_name=WORKERS, sign="deterministic"),
    "one bit adam": lambda: signax.one_bit_adam(
        0.1, 0.8, 0.9, 1e-3, freeze_steps=7, axis_name=WORKERS
    ),
}


def expected_path(name: str, rows: np.ndarray) -> list[np.ndarray]:
    num_workers = rows.shape[1]
    x, errors, server_error = np.ones(SIZE), np.zeros(rows.shape[1:]), np.zeros(SIZE)
    momenta: Any = [None] * num_workers
    adam: Any = np.zeros(SIZE), np.zeros(SIZE)
    parts = reference_family.server_groups(SIZES, num_workers)
    path = []
    for k, row in enumerate(rows.astype(np.float64)):
        rate = float(SCHEDULE(k)) if name in ("ef leaf", "ef decay") else 0.1
        if name.startswith("ef"):
            groups = [np.arange(SIZE)] if name == "ef global" else LEAVES
            decay = rate * 0.5 * x if name == "ef decay" else 0.0
            x, errors = reference_family.ef_sign_sgd_step(x, errors, row, rate, groups)
            x = x - decay
        elif name.startswith("lion"):
            x, errors = reference_family.lion_step(
                x, errors, row, rate, 0.8, 0.9, 0.5, name.removeprefix("lion ")
            )
        elif name == "one bit adam":
            memory = *adam, errors, server_error
            x, (*adam, errors, server_error) = reference_family.one_bit_adam_step(
                x, memory, row, 0.1, 0.8, 0.9, 1e-3, k < 7, LEAVES, parts
            )
        elif name == "ssdm deterministic":
            rule = reference.momentum_from_first_gradient
            momenta = reference.next_momenta(momenta, row, 0.8, rule)
            voters = zip(momenta, reference.is_voter(row), strict=True)
            said = [m for m, votes in voters if votes and m is not None]
            x = x - rate * reference.average_signs(np.reshape(said, (-1, SIZE)))
        else:
            x, errors, server_error = reference_family.double_squeeze_step(
                x, errors, server_error, row, rate, LEAVES, parts
            )
        path.append(x)
    return path


def run(tx: optax.GradientTransformation, rows: jax.Array) -> jax.Array:
    """The path of x on this worker."""

    def step(carry, g):
        x, state = carry
        updates, state = tx.update(to_tree(g), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), to_vector(x)

    x = to_tree(jnp.ones(SIZE))
    state = jax.tree.map(lambda x: x + jnp.zeros_like(x), tx.init(x))
    return jax.lax.scan(step, (x, state), rows)[1]


@pytest.mark.parametrize("num_workers", SOME_SLOW)
def test_deterministic_methods_take_the_steps_of_their_papers(num_workers: int):
    rows = random_rows(num_workers)
    on_workers = map_workers(
        "vmap", lambda r: {k: run(make(), r) for k, make in DETERMINISTIC.items()}, num_workers
    )
    paths = on_workers(jnp.asarray(rows.swapaxes(0, 1)))
    for name in DETERMINISTIC:
        path = np.asarray(paths[name])
        np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape), name)
        expected = np.array(expected_path(name, rows))
        assert np.abs(path[0] - expected).max() <= 1e-6 * np.abs(expected).max(), name


# ---- What leaves a worker -----------------------------------------------------------------------


def test_the_scaled_sign_is_the_mean_magnitude_with_the_sign():
    g = jnp.array([[3.0, 0.0], [-6.0, 3.0]])
    np.testing.assert_array_equal(signax.scaled_sign(g), [[3.0, 0.0], [-3.0, 3.0]])


@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1.0, 1e30, 3e38])
def test_the_scale_of_a_scaled_sign_neither_overflows_nor_vanishes(unit: float):
    g = np.linspace(0.1, 1.0, 1000, dtype=np.float32) * np.float32(unit)
    said = np.asarray(signax.scaled_sign(jnp.asarray(g)))
    # 1,000 terms, added in blocks: at most 1,000 roundings of 2^-24
    np.testing.assert_allclose(said, g.astype(np.float64).mean(), rtol=1000 * 2.0**-24)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_spoils_the_whole_scaled_or_noisy_tree(bad: float):
    tree = {"a": jnp.array([1.0, bad]), "b": jnp.ones(3)}
    for tx in (
        signax.scale_by_scaled_sign(axis_name=None),
        signax.scale_by_scaled_sign(axis_name=None, scope="global"),
        signax.scale_by_noisy_sign(0, 1.0, axis_name=None),
    ):
        for leaf in jax.tree.leaves(tx.update(tree, tx.init(tree))[0]):
            assert np.isnan(leaf).all()
    assert np.isnan(signax.scaled_sign(tree["a"])).all()
    assert np.isnan(signax.noisy_sign(0, tree["a"], 1.0)).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_leaf_holds_exactly_plus_and_minus_c(dtype: Any):
    tree = {"a": jnp.linspace(-1, 2, 97, dtype=dtype), "b": jnp.zeros(5, dtype)}
    for scope, b_is_zero in (("leaf", True), ("global", False)):
        tx = signax.scale_by_scaled_sign(axis_name=None, scope=scope)
        said, _ = tx.update(tree, tx.init(tree))
        assert said["a"].dtype == dtype
        assert len(np.unique(np.abs(np.asarray(said["a"], np.float32)))) == 1
        np.testing.assert_array_equal(said["a"] > 0, tree["a"] > 0)
        assert (said["b"] == 0).all() == b_is_zero


# z-test as in test_stochastic.py: P(|N| > 6.5) = 8e-11.
Z, NUM_DRAWS = 6.5, 200_000


def assert_mean(draws: np.ndarray, mean: float, deviation: float):
    z = (draws.mean(dtype=np.float64) - mean) * math.sqrt(draws.size) / deviation
    assert abs(z) < Z, f"z = {z:.2f} for the mean {mean}"


def test_a_zero_coordinate_of_a_scaled_sign_is_a_fair_coin_of_each_worker_and_step():
    g = jnp.zeros(NUM_DRAWS).at[0].set(float(NUM_DRAWS))  # c = 1
    tx = signax.scale_by_scaled_sign(axis_name=WORKERS)
    state = tx.init(g)

    def two_steps(g):
        first, new = tx.update(g, state)
        return first, tx.update(g, new)[0]

    (a, b), (c, _) = map_workers("vmap", two_steps, 2)(jnp.stack([g, g]))
    draws = [np.asarray(x)[1:] for x in (a, b, c)]
    for i in range(3):
        assert set(np.unique(draws[i])) == {-1.0, 1.0}
        assert_mean(draws[i], 0.0, 1.0)
        assert_mean(draws[i] * draws[i - 1], 0.0, 1.0)


@pytest.mark.parametrize("ratio", [0.0, 1e-8, 0.01, -0.5, 1.0, 3.0])
def test_the_noisy_sign_has_the_law_of_the_noise(ratio: float):
    g = jnp.full(NUM_DRAWS, ratio * 1e-3, jnp.float32)
    laws = {
        "normal": 2 * reference_family.normal_distribution(ratio) - 1,
        "uniform": float(np.clip(ratio, -1, 1)),
    }
    for noise, mean in laws.items():
        draws = np.asarray(signax.noisy_sign(1, g, 1e-3, noise))
        assert set(np.unique(draws)) <= {-1.0, 1.0}
        if abs(mean) == 1:
            assert (draws == mean).all()
        else:
            assert_mean(draws, mean, math.sqrt(1 - mean**2))


def test_uniform_noise_is_sto_sign_and_no_noise_is_the_sign():
    g = jnp.linspace(-2.0, 2.0, 1001)
    np.testing.assert_array_equal(
        signax.noisy_sign(5, g, 2.0, "uniform"), signax.stochastic_sign(5, g, 2.0)
    )
    np.testing.assert_array_equal(signax.noisy_sign(5, g, 0.0), np.sign(g))


def say(g: Any, scale: Any, step: int = 0) -> Any:
    tx = signax.scale_by_stochastic_sign(0, axis_name=None, scale=scale)
    return tx.update(g, tx.init(g)._replace(count=jnp.int32(step)))[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_blocks_of_coordinates_have_a_scale_of_their_own(norm: Any):
    rng = np.random.default_rng(0)
    g = {"a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), "b": jnp.zeros((0,))}
    flat = g["a"].reshape(-1)
    # A block of one coordinate is certain; one as large as the leaf is the leaf.
    np.testing.assert_array_equal(say(g, signax.Scale(norm, 1))["a"], np.sign(g["a"]))
    np.testing.assert_array_equal(
        say(g, signax.Scale(norm, 15))["a"], say(g, signax.Scale(norm, "leaf"))["a"]
    )
    # Blocks of 4, the last of 3: each coordinate is drawn with the norm of its own block.
    order = {"l2": 2, "linf": np.inf}[norm]
    for start in range(0, 15, 4):
        scale = float(np.linalg.norm(flat[start : start + 4], order))
        expected = say({"a": g["a"]}, scale)["a"].reshape(-1)[start : start + 4]
        blocks = say(g, signax.Scale(norm, 4))["a"].reshape(-1)[start : start + 4]
        np.testing.assert_array_equal(blocks, expected)


def test_a_scale_of_wrong_blocks_or_blocks_that_cannot_be_sent_is_refused():
    for scope in (0, -3, True, "block"):
        with pytest.raises(ValueError, match="unknown scope"):
            signax.Scale(scope=scope)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="each block of 4"):
        signax.ssdm(0.1, scale=signax.Scale(scope=4), rescale=True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scope", ["global", "leaf", 2])
def test_a_running_scale_is_the_largest_norm_so_far(mapped: Mapped, scope: Any, shared: bool):
    tx = signax.scale_by_stochastic_sign(
        0, axis_name=WORKERS, scale=signax.Scale("linf", scope, shared, running=True)
    )
    large = jnp.array([[4.0, -1.0, 0.5], [-8.0, 2.0, 1.0]])
    small = jnp.array([[1.0, 0.5, -0.25], [0.1, -0.2, 1e-3]])

    def fn(large, small):
        state = tx.init(small)
        for g in (small, large, jnp.full_like(small, jnp.nan), small):
            said, state = tx.update(g, state)
        own = signax.scale_by_stochastic_sign(0, axis_name=WORKERS, scale=state.largest[0])
        expected, _ = own.update(small, own.init(small)._replace(count=jnp.int32(3)))
        return said, expected, state.largest

    said, expected, largest = mapped(fn, large, small)
    first = [[8.0], [8.0]] if shared else [[4.0], [8.0]]
    np.testing.assert_array_equal(largest[:, :1], first)
    if scope == 2:
        np.testing.assert_array_equal(largest[:, 1], [1.0, 1.0] if shared else [0.5, 1.0])
        said, expected = said[:, :2], expected[:, :2]
    np.testing.assert_array_equal(said, expected)


def test_running_maxima_are_shared_at_every_third_step_and_grow_alone_in_between(mapped: Mapped):
    scale = signax.Scale("linf", "leaf", running=True, share_every=3)
    tx = signax.scale_by_stochastic_sign(0, axis_name=WORKERS, scale=scale)
    sizes = jnp.array([[1.0, 5.0, 2.0, 0.1, 6.0], [2.0, 0.5, jnp.nan, 3.0, 0.1]])

    def fn(sizes):
        state, largest = tx.init(jnp.zeros(2)), []
        for k in range(5):
            _, state = tx.update(sizes[k] * jnp.array([0.5, -1.0]), state)
            largest.append(state.largest[0])
        return jnp.stack(largest)

    expected = [[2.0, 5.0, 5.0, 5.0, 6.0], [2.0, 2.0, 2.0, 5.0, 5.0]]
    np.testing.assert_array_equal(mapped(fn, sizes), expected)


def test_sharing_maxima_costs_one_branch_with_one_pmax_and_no_other_collective():
    tx = signax.scale_by_stochastic_sign(
        0, axis_name=WORKERS, scale=signax.Scale("linf", running=True, share_every=5)
    )
    mesh, params = worker_mesh(4), jnp.zeros(1000)
    state = tx.init(params)

    def step(g, largest):
        said, new = tx.update(g[0], state._replace(largest=largest[0]))
        return said[None], new.largest[None]

    rows = jax.P(WORKERS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, rows))
    args = jnp.zeros((4, 1000)), jnp.zeros((4, 1))
    report = signax.wire_bits(mapped, *args, num_coordinates=1000)
    assert [c.kind for c in report.collectives] == ["all-reduce"]
    text = jax.jit(mapped).lower(*args).compile().as_text()
    assert "conditional" in text


@pytest.mark.parametrize(
    "kwargs",
    [
        {"running": True, "share_every": 0},
        {"running": False, "share_every": 2},
        {"running": True, "shared": True, "share_every": 2},
    ],
)
def test_a_share_every_without_own_maxima_is_refused(kwargs: Any):
    with pytest.raises(ValueError, match="share_every"):
        signax.Scale("linf", **kwargs)


def test_a_number_for_a_scale_is_sto_sign():
    """Jin et al. 2020: P(+1) = (b + g) / (2b); over 20 steps, M workers, the sum of their signs.

    A z-test of mean and variance, from seeds and steps that are fixed: P(|N| > 6.5) = 8e-11.
    """
    b, num_copies = 2.0, 4000
    for num_workers in NUM_WORKERS:
        rows = np.random.default_rng(num_workers).uniform(-2, 2, (num_workers, 3))
        rows = rows.astype(np.float32)
        tx = signax.ssdm(1.0, 0.0, axis_name=WORKERS, scale=b, wire="float32")

        def worker(g, tx=tx):
            wide = jnp.tile(g, (num_copies, 1))

            def step(state, _):
                updates, state = tx.update(wide, state)
                return state, jnp.stack([-updates.mean(axis=0), (updates**2).mean(axis=0)])

            return jax.lax.scan(step, tx.init(wide), length=NUM_STEPS)[1].mean(axis=0)

        mean, square = np.asarray(map_workers("vmap", worker, num_workers)(jnp.asarray(rows)))[0]
        probability = reference_family.sto_sign_probability(rows.astype(np.float64), b)
        expected = (2 * probability - 1).mean(axis=0)
        variance = 4 * (probability * (1 - probability)).sum(axis=0) / num_workers**2
        count = NUM_STEPS * num_copies
        assert (np.abs(mean - expected) < Z * np.sqrt(variance / count)).all()
        # The fourth moment of a sum of signs is at most 3 times the variance squared; the mean
        # square adds twice the mean times the deviation.
        deviation = np.sqrt(2) * variance + 2 * np.abs(expected) * np.sqrt(variance)
        excess = square - variance - expected**2
        assert (np.abs(excess) < Z * deviation / np.sqrt(count)).all()


def test_norms_sent_are_an_unbiased_estimate_of_the_mean_gradient():
    """E u = mean g, and the variance of its sum over M workers is sum (R_n^2 - g_n^2) / M^2."""
    rows = np.array([[3.0, -4.0, 0.0], [0.3, 0.4, 1.2], [0.0, 0.0, 0.0]], np.float32)
    tx = signax.ssdm(1.0, 0.0, axis_name=WORKERS, rescale=True)
    copies = jnp.arange(20_000)

    def worker(g):
        def draw(seed):
            state = tx.init(g)
            say = state[1]._replace(count=seed)
            return -tx.update(g, (state[0], say, *state[2:]))[0]

        return jax.vmap(draw)(copies)

    draws = np.asarray(map_workers("vmap", worker, 3)(jnp.asarray(rows)))[0]
    norms = np.linalg.norm(rows, axis=1)[:, None]
    variance = (norms**2 - rows**2)[:2].sum(axis=0) / 9  # the third worker says 0, and counts
    for i in range(3):
        assert_mean(draws[:, i], rows[:, i].mean(), math.sqrt(variance[i]))
        # The fourth moment of a sum of two signs is at most 3 times the variance squared.
        squares = (draws[:, i] - rows[:, i].mean()) ** 2
        assert_mean(squares, variance[i], math.sqrt(2) * variance[i])


# ---- Memory and the link ------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("make", "down"),
    [
        (signax.ef_sign_sgd, 32),
        (functools.partial(signax.ef_sign_sgd, down_dtype="bfloat16"), 16),
        (functools.partial(signax.ssdm, rescale=True), 32),
        (signax.double_squeeze, 1),
    ],
)
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


def test_init_of_memory_on_the_servers_needs_the_axis_and_says_so():
    for tx in (signax.compressed_mean(WORKERS), signax.double_squeeze(0.1, axis_name=WORKERS)):
        with pytest.raises(ValueError, match=r"average_scaled_signs\(bidirectional=True\)\.init"):
            tx.init(jnp.zeros(3))


@pytest.mark.parametrize("num_workers", [2, 5])
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


# ---- Algorithm 1, Option 2 ----------------------------------------------------------------------


def test_the_monotone_method_takes_the_steps_of_algorithm_1_option_2():
    def f(x):  # exact in float32 at multiples of 1/16
        return 3 * x[0] ** 2 + x[1] ** 2

    tx, x = signax.monotone_sign_sgd(0.125), jnp.array([0.6875, -1.0])
    state, expected, values = tx.init(x), np.asarray(x, np.float64), []
    for _ in range(NUM_STEPS):
        value, g = jax.value_and_grad(f)(x)
        updates, state = tx.update(g, state, x, value=value, value_fn=f)
        x = optax.apply_updates(x, updates)
        expected = reference.monotone_sign_sgd_step(f, expected, np.asarray(g), 0.125)
        np.testing.assert_array_equal(x, expected)
        values.append(float(value))
    assert (np.diff(values) <= 0).all()
    assert values[0] > 2
    assert values[-1] < 0.05
    assert values[-1] == values[-2], "it waits where every step goes up"


def test_on_equality_the_monotone_method_stays_and_it_evaluates_once():
    calls = []

    def f(x):
        calls.append(x)
        return jnp.sum(x**2)

    tx, x = signax.monotone_sign_sgd(1.0), jnp.array([0.5])  # f(0.5 - 1) = f(0.5)
    updates, _ = tx.update(2 * x, tx.init(x), x, value=jnp.float32(0.25), value_fn=f)
    np.testing.assert_array_equal(updates, 0.0)
    assert len(calls) == 1


def test_the_monotone_method_passes_the_arguments_that_its_function_names():
    def f(x, batch):
        return jnp.sum((x - jnp.mean(batch)) ** 2)

    tx, x = signax.monotone_sign_sgd(1.0), jnp.array([0.0])
    updates, _ = tx.update(-2 * x - 8, tx.init(x), x, value=16.0, value_fn=f, batch=4.0, grad=None)
    np.testing.assert_array_equal(updates, 1.0)


def test_the_monotone_method_says_what_it_needs():
    tx, x = signax.monotone_sign_sgd(1.0), jnp.ones(2)
    with pytest.raises(ValueError, match="value_fn=loss_fn"):
        tx.update(x, tx.init(x), x, value=1.0)


# ---- What each method can and cannot do ---------------------------------------------------------

EPSILONS = jnp.array([0.1, 0.5, 0.9])


def counterexample(tx_of: Callable, num_steps: int, num_seeds: int) -> tuple[jax.Array, jax.Array]:
    """Problem (5)-(6) of the paper, one f_n for each of two workers, from a point on the line.

    Returns the largest |z1 + z2 - 2| on the path and the last f, for each epsilon and seed.
    """

    def worker(epsilon, seed, n):
        tx = tx_of(seed)
        a1 = jnp.stack([1 + epsilon, epsilon - 1])
        own = jnp.where(n == 0, a1, a1[::-1])

        def f(x):
            return (jnp.dot(a1, x) ** 2 + jnp.dot(a1[::-1], x) ** 2) / 2

        def step(carry, _):
            x, state, away = carry
            updates, state = tx.update(2 * jnp.dot(own, x) * own, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state, jnp.maximum(away, jnp.abs(jnp.sum(x) - 2))), None

        x = jnp.array([1.75, 0.25])
        carry = (x, tx.init(x), jnp.zeros(()))
        (x, _, away), _ = jax.lax.scan(step, carry, length=num_steps)
        return away, f(x)

    on_workers = jax.vmap(worker, (None, None, 0), axis_name=WORKERS)
    for_seeds = jax.vmap(on_workers, (None, 0, None))
    for_all = jax.jit(jax.vmap(for_seeds, (0, None, None)))
    away, value = for_all(EPSILONS, jnp.arange(num_seeds), jnp.arange(2))
    return away[..., 0], value[..., 0]


@pytest.mark.parametrize("schedule", [lambda k: 0.0625, lambda k: 0.25 / jnp.sqrt(k + 1)])
@pytest.mark.parametrize(
    "method",
    {
        "majority": lambda lr, key: signax.sign_sgd(lr, axis_name=WORKERS, wire="float32"),
        "signum": lambda lr, key: signax.signum(lr, axis_name=WORKERS, wire="float32"),
        "ssdm": lambda lr, key: signax.ssdm(
            lr, axis_name=WORKERS, wire="float32", sign="deterministic"
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_methods_that_know_only_signs_never_leave_the_line(method: Any, schedule: Callable):
    away, value = counterexample(lambda key: method[1](schedule, key), 200, 1)
    # 200 steps, each rounding two numbers below 16: 2 * 200 * 2^-21
    assert float(away.max()) <= 200 * 2.0**-20
    assert float(value.min()) > 0.01


def test_sign_sgd_with_one_random_gradient_at_a_time_never_leaves_the_line():
    def path(epsilon, key):
        tx, a1 = signax.sign_sgd(0.0625), jnp.stack([1 + epsilon, epsilon - 1])

        def step(carry, is_first):
            x, state = carry
            a = jnp.where(is_first, a1, a1[::-1])
            updates, state = tx.update(2 * jnp.dot(a, x) * a, state)
            return (x + updates, state), jnp.sum(x)

        x = jnp.array([1.75, 0.25])
        return jax.lax.scan(step, (x, tx.init(x)), jax.random.bernoulli(key, shape=(200,)))[1]

    sums = jax.vmap(path)(EPSILONS, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(sums, 2.0, atol=200 * 2.0**-20)


@pytest.mark.parametrize(
    "method",
    {
        "ssdm": lambda key: signax.ssdm(
            lambda k: 0.1 / jnp.sqrt(k + 1.0), key=key, axis_name=WORKERS, wire="float32"
        ),
        "ef": lambda key: signax.ef_sign_sgd(0.05, key=key, axis_name=WORKERS),
        "double squeeze": lambda key: signax.double_squeeze(0.05, key=key, axis_name=WORKERS),
        "ef21": lambda key: signax.ef21(0.05, key=key, axis_name=WORKERS, wire="float32"),
        "ef21 own": lambda key: signax.ef21(0.05, key=key, axis_name=WORKERS, shared=False),
        "diana": lambda key: signax.diana(0.05, key=key, axis_name=WORKERS, wire="float32"),
        "one bit sgd": lambda key: signax.one_bit_sgd(0.05, axis_name=WORKERS),
    }.items(),
    ids=lambda item: item[0],
)
def test_chance_or_memory_reaches_the_origin(method: Any):
    # With a constant step what is left of f falls at least by exp(-0.004) per step: eps = 0.1.
    num_steps = 10_000 if method[0] == "ssdm" else 4000
    _, value = counterexample(method[1], num_steps, 10)
    assert float(jnp.median(value, axis=1).max()) <= 1e-4


WEIGHTS = {"equal": (1.0, 1.0, 1.0), "unequal": (1.0, 8.0, 0.5)}
OPTIMA = np.array([[-1.0, 0.5, 2.0], [1.0, -1.5, 0.0], [2.0, 1.0, -0.5]], np.float32)
LINF = signax.Scale("linf", "leaf", shared=True)
FOLLOWS = {
    "dense_sgd": lambda lr: signax.dense_sgd(lr, axis_name=WORKERS),
    "ef_sign_sgd": lambda lr: signax.ef_sign_sgd(lr, axis_name=WORKERS),
    "double_squeeze": lambda lr: signax.double_squeeze(lr, axis_name=WORKERS),
    "ef21": lambda lr: signax.ef21(lr, axis_name=WORKERS, wire="float32"),
    "ef21 own": lambda lr: signax.ef21(lr, axis_name=WORKERS, shared=False),
    "diana": lambda lr: signax.diana(lr, axis_name=WORKERS, wire="float32"),
    "one_bit_sgd": lambda lr: signax.one_bit_sgd(lr, axis_name=WORKERS),
    "ssdm norms sent": lambda lr: signax.ssdm(lr, axis_name=WORKERS, rescale=True),
    "ssdm shared": lambda lr: signax.ssdm(lr, axis_name=WORKERS, scale=LINF, wire="float32"),
}
DOES_NOT = {
    "sign_sgd": lambda lr: signax.sign_sgd(lr, axis_name=WORKERS, wire="float32"),
    "signum": lambda lr: signax.signum(lr, axis_name=WORKERS, wire="float32"),
    "ssdm as printed": lambda lr: signax.ssdm(lr, axis_name=WORKERS, wire="float32"),
    "lion majority": lambda lr: signax.distributed_lion(lr, axis_name=WORKERS, wire="float32"),
    "lion average": lambda lr: signax.distributed_lion(
        lr, axis_name=WORKERS, aggregate="average", wire="float32"
    ),
}


def decaying(k: jax.Array) -> jax.Array:
    return 4.0 / (k + 80.0)


def where_it_ends(
    tx: optax.GradientTransformation, weights: tuple[float, ...], num_steps: int
) -> jax.Array:
    """f_n = w_n / 2 |x - b_n|^2 with full gradients, from 0."""

    def worker(weight, optimum):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(weight * (x - optimum), state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.zeros(3)
        return jax.lax.scan(step, (x, tx.init(x)), length=num_steps)[0][0]

    return map_workers("vmap", worker, 3)(jnp.array(weights), jnp.asarray(OPTIMA))[0]


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", FOLLOWS)
def test_methods_that_know_sizes_reach_the_minimum_of_the_weighted_mean(name: str, weighting: str):
    weights = np.array(WEIGHTS[weighting])
    minimum = weights @ OPTIMA / weights.sum()
    # With the step c / k the random ones are after k steps about c R / sqrt(3 M k) = 0.02 away.
    # The error of the others falls as (80 / k)^4.
    num_steps = 20_000 if name.startswith("ssdm") else 3000
    end = where_it_ends(FOLLOWS[name](decaying), WEIGHTS[weighting], num_steps)
    assert np.abs(end - minimum).max() <= 0.05


@pytest.mark.parametrize("name", DOES_NOT)
def test_methods_that_know_only_signs_end_at_the_same_point_whatever_the_weights(name: str):
    ends = [where_it_ends(DOES_NOT[name](decaying), weights, 4000) for weights in WEIGHTS.values()]
    # The weights are powers of two, so not one bit of one sign differs.
    np.testing.assert_array_equal(*ends)
    weights = np.array(WEIGHTS["unequal"])
    assert np.abs(ends[1] - weights @ OPTIMA / weights.sum()).max() > 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_scale_cures_the_example_where_ssdm_never_moves(shared: bool):
    """f_1 = (x-2)^2/4, f_2 = 3(x+2)^2/4, x_0 = sqrt(2)-1; the minimum of their mean is at -1.

    In one dimension R = |g| makes every sign certain, so the two workers cancel for ever.
    """
    rate = optax.linear_schedule(0.05, 0.0, 4000)
    scale = signax.Scale(shared=shared)
    tx = signax.ssdm(rate, axis_name=WORKERS, scale=scale, wire="float32")

    def worker(slope, optimum):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(slope * (x - optimum), state)
            return (x + updates, state), None

        x = jnp.full(1, math.sqrt(2) - 1)
        return jax.lax.scan(step, (x, tx.init(x)), length=4000)[0][0]

    x = map_workers("vmap", worker, 2)(jnp.array([0.5, 1.5]), jnp.array([2.0, -2.0]))[0]
    if shared:
        np.testing.assert_allclose(x, -1.0, atol=0.05)
    else:
        np.testing.assert_array_equal(x, np.float32(math.sqrt(2) - 1))
