"""EF21 and DIANA: the papers' steps, the mean that must stay the mean, and where they end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_family
import signax
from daily import daily, thorough
from signax import _specs
from workers import WORKERS, Mapped, map_workers, worker_mesh

SIZES = (5, 24, 1, 9)
SIZE, NUM_STEPS = sum(SIZES), 20
LEAVES = np.split(np.arange(SIZE), np.cumsum(SIZES)[:-1])
LINF = signax.Scale("linf", "leaf", shared=True)
OWN = signax.Scale("linf", "leaf")


def to_tree(x: jax.Array) -> dict[str, jax.Array]:
    a, b, c, d = jnp.split(x, np.cumsum(SIZES)[:-1])
    return {"a": a, "b": b.reshape(3, 8), "c": c.reshape(()), "d": d}


def to_vector(tree: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def random_rows(num_workers: int) -> np.ndarray:
    """Gradients of workers that differ for good; in some steps some or all workers abstain."""
    rng = np.random.default_rng(num_workers)
    center = rng.normal(size=(num_workers, SIZE)) * (1 + np.arange(num_workers))[:, None]
    rows = (center + 0.3 * rng.normal(size=(NUM_STEPS, num_workers, SIZE))).astype(np.float32)
    rows[0, -1, 3] = np.nan  # before this worker has said anything
    rows[6, 0, 7] = np.nan
    rows[9, :, 2] = np.inf
    rows[15, num_workers // 2, 0] = -np.inf
    return rows


def run(tx: optax.GradientTransformation, rows: jax.Array) -> tuple[jax.Array, Any]:
    """The path of x on this worker, and the states of compressed differences after each step."""

    def step(carry, g):
        x, state = carry
        updates, state = tx.update(to_tree(g), state, x)
        x = optax.apply_updates(x, updates)
        memory = optax.tree.get(state, "estimate"), optax.tree.get(state, "mean_estimate")
        return (x, state), (to_vector(x), jax.tree.map(to_vector, memory, is_leaf=is_tree))

    x = to_tree(jnp.ones(SIZE))
    state = jax.tree.map(lambda x: x + jnp.zeros_like(x), tx.init(x))
    return jax.lax.scan(step, (x, state), rows)[1]


def is_tree(x: Any) -> bool:
    return isinstance(x, dict)


def ef21(**kwargs: Any) -> optax.GradientTransformation:
    return signax.ef21(0.1, axis_name=WORKERS, **kwargs)


# All wires give the same bits; "float32" compiles fastest under vmap.
EF21 = {
    "shared": (lambda: ef21(beta=0.8, wire="float32"), LEAVES, True),
    "global, no momentum": (
        lambda: ef21(beta=0.0, scope="global", wire="float32"),
        [np.arange(SIZE)],
        True,
    ),
    "own": (lambda: ef21(beta=0.8, shared=False), LEAVES, False),
}


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_ef21_takes_the_steps_of_its_paper_and_h_is_the_mean_of_all_h_n(num_workers: int):
    rows = random_rows(num_workers)
    on_workers = map_workers(
        "vmap", lambda r: {k: run(make(), r) for k, (make, _, _) in EF21.items()}, num_workers
    )
    results = on_workers(jnp.asarray(rows.swapaxes(0, 1)))
    for name, (_, groups, is_shared) in EF21.items():
        path, (estimates, means) = jax.tree.map(np.asarray, results[name])
        np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape), name)
        np.testing.assert_array_equal(means, np.broadcast_to(means[:1], means.shape), name)
        # 20 steps, each rounding numbers below 64 in h and in h_n
        np.testing.assert_allclose(means[0], estimates.mean(axis=0), atol=20 * 2 * 64 * 2.0**-24)
        x = np.ones(SIZE)
        memory: Any = [None] * num_workers, np.zeros(rows.shape[1:]), np.zeros(SIZE)
        expected = []
        for row in rows.astype(np.float64):
            beta = 0.0 if name == "global, no momentum" else 0.8
            x, memory = reference_family.ef21_step(x, memory, row, 0.1, beta, groups, is_shared)
            expected.append(x)
        expected = np.array(expected)
        assert np.abs(path[0] - expected).max() <= 1e-6 * np.abs(expected).max(), name


def diana(**kwargs: Any) -> optax.GradientTransformation:
    return signax.diana(0.1, 0.25, 0.5, axis_name=WORKERS, **kwargs)


DIANA = {
    "shared": (lambda: diana(scale=LINF, wire="float32"), LINF),
    "own": (lambda: diana(scale=OWN), OWN),
    "fixed": (lambda: diana(scale=50.0, wire="float32"), 50.0),
}


def scales_of(change: np.ndarray, votes: np.ndarray, scale: Any) -> np.ndarray:
    """R at each coordinate of each worker."""
    if not isinstance(scale, signax.Scale):
        return np.full(change.shape, scale)
    scales = np.zeros(change.shape)
    for leaf in LEAVES:
        norms = np.where(votes, np.abs(change[:, leaf]).max(axis=1), 0.0)
        scales[:, leaf] = norms.max() if scale.shared else norms[:, None]
    return scales


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_diana_takes_the_steps_of_its_paper_for_the_signs_it_drew(num_workers: int):
    """The signs are read off the change of h_n, which must be alpha R s; R is found anew."""
    rows = random_rows(num_workers)
    votes = np.isfinite(rows).all(axis=2)
    on_workers = map_workers(
        "vmap", lambda r: {k: run(make(), r) for k, (make, _) in DIANA.items()}, num_workers
    )
    results = on_workers(jnp.asarray(rows.swapaxes(0, 1)))
    for name, (_, scale) in DIANA.items():
        path, (estimates, means) = jax.tree.map(np.asarray, results[name])
        np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape), name)
        np.testing.assert_allclose(means[0], estimates.mean(axis=0), atol=20 * 2 * 128 * 2.0**-24)
        x, expected = np.ones(SIZE), []
        memory = np.zeros(rows.shape[1:]), np.zeros(SIZE), np.zeros(SIZE)
        for k, row in enumerate(rows.astype(np.float64)):
            before = memory[0]
            signs = np.sign(estimates[:, k] - before)
            scales = scales_of(row - before, votes[k], scale)
            x, memory = reference_family.diana_step(x, memory, row, signs, scales, 0.1, 0.25, 0.5)
            expected.append(x)
        expected = np.array(expected)
        assert np.abs(path[0] - expected).max() <= 1e-6 * np.abs(expected).max(), name


def test_what_diana_says_of_the_gradient_is_unbiased_with_the_variance_of_its_signs():
    """z-tests of E u = mean g and Var u = sum (R^2 - p_n^2) / M^2; P(|N| > 6.5) = 8e-11."""
    rows = np.array([[3.0, -4.0, 0.5], [0.3, 0.4, 1.25], [-2.0, 1.0, 0.25]], np.float32)
    known = np.array([[1.0, -2.0, 0.0], [0.5, 0.5, 0.0], [-2.0, 0.0, 0.25]], np.float32)
    tx, num_draws = signax.diana(1.0, axis_name=WORKERS), 20_000
    difference = rows - known
    largest = np.abs(difference).max()

    def worker(g, h):
        def draw(seed):
            (memory, *rest) = tx.init(g)
            say = memory.compressor._replace(count=seed)
            mean = jnp.asarray(known.mean(axis=0))
            memory = memory._replace(estimate=h, mean_estimate=mean, compressor=say)
            return -tx.update(g, (memory, *rest))[0]

        return jax.vmap(draw)(jnp.arange(num_draws))

    draws = np.asarray(map_workers("vmap", worker, 3)(jnp.asarray(rows), jnp.asarray(known)))[0]
    draws = draws.astype(np.float64)
    variance = (largest**2 - difference**2).sum(axis=0) / 9
    z = (draws.mean(axis=0) - rows.mean(axis=0)) / np.sqrt(variance / num_draws)
    assert np.abs(z).max() < 6.5
    # The fourth moment of a sum of independent signs is at most 3 times the variance squared.
    squares = (draws - rows.mean(axis=0)) ** 2
    z = (squares.mean(axis=0) - variance) / (np.sqrt(2 / num_draws) * variance)
    assert np.abs(z).max() < 6.5


MAKERS = {
    "ef21": lambda: signax.ef21(0.05, axis_name=WORKERS),
    "ef21 own": lambda: signax.ef21(0.05, axis_name=WORKERS, shared=False),
    "diana": lambda: signax.diana(0.05, axis_name=WORKERS),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_mean_is_typed_as_the_same_on_all_workers_and_the_estimates_as_their_own(name: str):
    specs = signax.state_specs(MAKERS[name](), {"w": jnp.zeros((3, 2))}, 8)
    assert optax.tree.get(specs, "estimate")["w"] == jax.P(WORKERS)
    assert optax.tree.get(specs, "mean_estimate")["w"] == jax.P()
    paths = jax.tree_util.tree_leaves_with_path(specs, is_leaf=_specs.is_spec)
    own = {jax.tree_util.keystr(path) for path, spec in paths if spec}
    assert all(("estimate" in p and "mean" not in p) or "[0].momentum" in p or "has_started" in p
               for p in own), own  # fmt: skip


def test_a_worker_who_abstains_keeps_its_estimate_in_every_mapping(mapped: Mapped):
    tx = signax.ef21(1.0, 0.5, axis_name=WORKERS)
    rows = jnp.asarray(random_rows(3)[1])

    def fn(good):
        _, before = tx.update(good, tx.init(good))
        bad = jnp.where(jax.lax.axis_index(WORKERS) == 2, jnp.nan, good)
        update, after = tx.update(bad, before)
        return update, before[1].estimate, after[1].estimate, after[1].mean_estimate

    update, before, after, mean = mapped(fn, rows)
    np.testing.assert_array_equal(before[2], after[2])
    assert (before[:2] != after[:2]).any(axis=1).all()
    np.testing.assert_allclose(mean[0], after.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(update, -mean)


@pytest.mark.parametrize("name", MAKERS)
def test_without_voters_nothing_moves(name: str):
    tx = MAKERS[name]()
    rows = jnp.asarray(random_rows(3)[1])

    def fn(g):
        _, before = tx.update(g, tx.init(g))
        update, after = tx.update(jnp.full_like(g, jnp.nan), before)
        get = lambda s: (optax.tree.get(s, "estimate"), optax.tree.get(s, "mean_estimate"))  # noqa: E731
        return update, get(before), get(after)

    update, before, after = map_workers("vmap", fn, 3)(rows)
    np.testing.assert_array_equal(update, 0.0)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert all((x != 0).any() for x in before)


def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    return sum(jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["ef21", "diana"])
@thorough
def test_with_another_number_of_workers_h_is_still_the_mean_and_nothing_is_left_of_zero(name: str):
    tx = MAKERS[name]()
    step = signax.simulate_train_step(loss_fn, tx, 3)
    state = signax.init_train_state(to_tree(jnp.linspace(0.0, 5.0, SIZE)), tx, 3)
    for k in range(3):
        state, _ = step(state, jnp.array([1.0, jnp.nan if k == 1 else 2.0, 4.0]))
    for num_workers in (2, 5):
        changed = signax.change_num_workers(state, tx, num_workers)
        new = signax.simulate_train_step(loss_fn, tx, num_workers)
        changed, _ = new(changed, jnp.arange(num_workers, dtype=jnp.float32))
        estimate, mean = (
            optax.tree.get(changed.opt_state, k) for k in ("estimate", "mean_estimate")
        )
        for own, of_all in zip(*map(jax.tree.leaves, (estimate, mean)), strict=True):
            np.testing.assert_allclose(of_all, own.mean(axis=0), rtol=1e-5, atol=1e-5)
            assert (of_all != 0).any()
        forgotten = signax.change_num_workers(state, tx, num_workers, how="zero")
        memory = optax.tree.get(forgotten.opt_state, "mean_estimate")
        assert not any(x.any() for x in jax.tree.leaves(memory))


SENT = {
    "ef21": (["all-gather", "all-reduce", "all-to-all"], 4),
    "diana": (["all-gather", "all-reduce", "all-to-all"], 4),
    "ef21 own": (["all-gather", "all-to-all"], 32),
}


@pytest.mark.parametrize("name", daily(SENT, ["ef21"]))
def test_one_bit_up_and_a_count_or_a_mean_down(name: str):
    make, (kinds, down) = MAKERS[name], SENT[name]
    size, tx, mesh = 80_000, make(), worker_mesh(8)
    params = {"w": jnp.zeros(size - 8), "b": jnp.zeros(8)}
    specs = signax.state_specs(tx, params, mesh)

    def exchange(g, state, params):
        updates, state = tx.update(
            jax.tree.map(lambda x: x[0], g), signax.to_worker(state, specs), params
        )
        return updates, signax.from_worker(state, specs)

    mapped = jax.shard_map(
        exchange, mesh=mesh, in_specs=(jax.P(WORKERS), specs, jax.P()), out_specs=(jax.P(), specs)
    )
    gradients = jax.tree.map(lambda p: jnp.zeros((8, *p.shape)), params)
    state = jax.eval_shape(lambda p: signax.init_opt_state(tx, p, mesh), params)
    report = signax.wire_bits(mapped, gradients, state, params, num_coordinates=size)
    assert sorted(c.kind for c in report.collectives) == kinds
    bits = {c.kind: c.bits / size for c in report.collectives}
    assert bits["all-to-all"] == pytest.approx(7 / 8, rel=0.01)
    assert bits["all-gather"] == pytest.approx(down * 7 / 8, rel=0.01)
    # three numbers at most, the scales of two leaves and how many workers they are the mean of
    assert bits.get("all-reduce", 0) <= 2 * 3 * 32 * 7 / 8 / size


@pytest.mark.parametrize("make", [lambda: signax.diana(1.0, 1.0), lambda: signax.ef21(1.0)])
def test_a_gradient_that_is_known_exactly_is_still_followed(make: Any):
    """In one dimension a sign says all: the second difference is zero, and h is the gradient."""
    tx, g = make(), jnp.array([-2.0])
    state, update = tx.init(g), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(g, state, g)
        np.testing.assert_array_equal(updates, [2.0])
        assert optax.tree.get(state, "num_abstained") == 0


def test_estimates_of_small_floats_are_kept_in_float32():
    tx = signax.ef21(0.1)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = tx.init(params)
    assert optax.tree.get(state, "mean_estimate")["w"].dtype == jnp.float32
    updates, _ = tx.update(params, state, params)
    assert updates["w"].dtype == jnp.bfloat16


def test_the_largest_of_the_workers_scales_would_not_shrink_what_is_left_over():
    """The claim of `ef21`'s docstring, for one worker at (1, ..., 1) and three at zero."""
    rows = np.zeros((4, 6))
    rows[0] = 1.0
    signs = np.where(rows > 0, 1.0, -1.0)
    means = np.abs(rows).mean(axis=1)
    left_by_mean, left_by_largest = (
        ((rows - scale * signs) ** 2).sum() for scale in (means.mean(), means.max())
    )
    assert left_by_mean == (rows**2).sum() * (1 - 1 / 4)
    assert left_by_largest == (rows**2).sum() * (4 - 1)


def test_wrong_arguments_are_refused_with_what_to_write():
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
        signax.ef21(0.1, 1.0)
    with pytest.raises(ValueError, match="unknown scope 'row'"):
        signax.ef21(0.1, scope="row")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="or share the scale"):
        signax.ef21(0.1, shared=False, wire="lanes")
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\]"):
        signax.diana(0.1, 0.0)
    with pytest.raises(ValueError, match="each block of 4"):
        signax.diana(0.1, scale=signax.Scale("linf", 4))
    with pytest.raises(ValueError, match="scale must be positive"):
        signax.diana(0.1, scale=-1.0)
