"""The baselines against their papers, and the bits that they really send."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_baselines
import signax
from daily import daily
from signax import baselines
from workers import WORKERS, Mapped, map_workers

NUM_WORKERS = (1, 2, 3, 5, 8)
NUM_STEPS = 20
SIZE = 11
DRAWS = 4000


def random_rows(num_workers: int, *shape: int) -> np.ndarray:
    """Gradients of workers that differ in size: [steps, M, ...]."""
    rng = np.random.default_rng(num_workers)
    rows = rng.normal(size=(NUM_STEPS, num_workers, *shape))
    return (rows * (1 + np.arange(num_workers)).reshape(-1, *[1] * len(shape))).astype(np.float32)


def run(tx: optax.GradientTransformation, rows: jax.Array) -> jax.Array:
    """The path of x on this worker, from zero."""

    def step(carry, g):
        x, state = carry
        updates, state = tx.update(g, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    x = jnp.zeros(rows.shape[1:])
    return jax.lax.scan(step, (x, tx.init(x)), rows)[1]


def paths(txs: dict, rows: np.ndarray) -> dict:
    """The paths of several optimizers on all workers, [steps, ...] each; replicas are equal."""
    fn = map_workers("vmap", lambda r: {k: run(tx, r) for k, tx in txs.items()}, rows.shape[1])
    out = jax.tree.map(np.asarray, fn(jnp.asarray(rows.swapaxes(0, 1))))
    for name, path in out.items():
        np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape), name)
    return {name: path[0] for name, path in out.items()}


def close(path: np.ndarray, expected: list | np.ndarray) -> bool:
    return bool(np.abs(path - np.array(expected)).max() <= 1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_top_k_and_random_k_take_the_steps_of_their_paper(num_workers: int):
    rows = random_rows(num_workers, SIZE)
    rows[4, 0, 3] = np.nan
    rows[9, :, 1] = np.inf
    k, rate = 3, 0.1
    seen = paths(
        {
            "top": baselines.top_k_sgd(rate, k / SIZE, axis_name=WORKERS),
            "random": baselines.random_k_sgd(rate, k / SIZE, axis_name=WORKERS),
        },
        rows,
    )
    moved = np.diff(seen["random"], axis=0, prepend=0.0) != 0  # where, is the link's to draw
    x = y = np.zeros(SIZE)
    errors = residuals = np.zeros((num_workers, SIZE))
    expected: dict = {"top": [], "random": []}
    for step, row in enumerate(rows.astype(np.float64)):
        assert moved[step].sum() == (k if np.isfinite(row).all(axis=1).any() else 0)
        top = [lambda p: reference_baselines.top_k(p, k)] * num_workers
        x, errors = reference_baselines.parallel_mem_sgd_step(x, errors, row, rate, top)
        same = [lambda p, m=moved[step]: np.where(m, p, 0.0)] * num_workers
        y, residuals = reference_baselines.parallel_mem_sgd_step(y, residuals, row, rate, same)
        expected["top"].append(x)
        expected["random"].append(y)
    assert close(seen["top"], expected["top"])
    assert close(seen["random"], expected["random"])


def rows_of_rank_two_and_noise(num_workers: int) -> np.ndarray:
    """Matrices [steps, M, 5, 7] whose singular values are 1 and 1/2, then at most about 0.1."""
    rng = np.random.default_rng(num_workers)
    left, right = (np.linalg.qr(rng.normal(size=(n, 2)))[0] for n in (5, 7))
    noise = 0.02 * rng.normal(size=(NUM_STEPS, num_workers, 5, 7))
    sizes = 1 + np.arange(num_workers).reshape(-1, 1, 1)
    return ((left * [1, 0.5] @ right.T + noise) * sizes).astype(np.float32)


def power_sgd_path(rows: np.ndarray, q: np.ndarray) -> np.ndarray:
    x = m = np.zeros(rows.shape[2:])
    errors, path = np.zeros(rows.shape[1:]), []
    for row in rows:
        x, m, errors, q = reference_baselines.power_sgd_step(x, m, errors, q, row, 0.1, 0.9)
        path.append(x)
    return np.array(path)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_power_sgd_takes_the_steps_of_its_paper(num_workers: int):
    rows = rows_of_rank_two_and_noise(num_workers)
    tx = baselines.power_sgd(0.1, 2, 0.9, key=3, axis_name=WORKERS)
    path = paths({"power": tx}, rows)["power"]
    q = np.asarray(tx.init(jnp.zeros((5, 7)))[0].memory, np.float64).reshape(7, 2)
    rows = rows.astype(np.float64)
    expected = power_sgd_path(rows, q)
    # Error feedback and the warm start carry rounding from step to step: where the second and third
    # singular values are near each other, 2^-24 in the gradients becomes 1e-5 in 20 steps of the
    # float64 reference. Here they are apart, and one rounding of every gradient moves it by 1e-7 at
    # most. A float32 step rounds about ten times in a row (residual, two products, two passes of
    # Gram-Schmidt, a norm, two means, the momentum, the step): 1e-6.
    signs = np.random.default_rng(0).choice([-1, 1], rows.shape)
    rounded = power_sgd_path(rows * (1 + 2.0**-24 * signs), q)
    assert np.abs(rounded - expected).max() <= 1e-7 * np.abs(expected).max()
    assert close(path, expected)


def test_each_power_sgd_worker_owes_what_it_did_not_say_itself():
    """The step cannot tell: the mean of the residuals is the same with the averaged Q."""
    rows = rows_of_rank_two_and_noise(3)[0]
    tx = baselines.average_low_rank(WORKERS, rank=2, key=3)
    q = np.asarray(tx.init(rows[0]).memory, np.float64).reshape(7, 2)
    _, state = Mapped("vmap")(lambda g: tx.update(g, tx.init(g)), jnp.asarray(rows))
    zeros = np.zeros((5, 7))
    step = reference_baselines.power_sgd_step
    _, _, errors, _ = step(zeros, zeros, zeros, q, rows.astype(np.float64), 0.1, 0.9)
    # p - P Q^T takes near numbers from each other: about ten roundings of the gradient's size.
    np.testing.assert_allclose(state.residual, errors, rtol=0, atol=1e-6 * np.abs(rows).max())


@pytest.mark.parametrize("num_workers", [1, 3])
def test_quantisers_have_the_mean_and_variance_of_their_papers(num_workers: int):
    g = random_rows(num_workers, SIZE)[0]
    g[:, 2] = 0.0
    txs = {
        "qsgd": baselines.qsgd(1.0, 3, axis_name=WORKERS),
        "ternary": baselines.tern_grad(1.0, axis_name=WORKERS),
    }
    seen = paths(txs, np.broadcast_to(g, (DRAWS, *g.shape)))
    moments = {
        "qsgd": [reference_baselines.qsgd_moments(r, 3, float(np.linalg.norm(r))) for r in g],
        "ternary": [reference_baselines.ternary_moments(r) for r in g],
    }
    for name, rows in moments.items():
        draws = -np.diff(seen[name].astype(np.float64), axis=0, prepend=0.0)
        mean = np.mean([m for m, _ in rows], axis=0)
        variance = np.sum([v for _, v in rows], axis=0) / num_workers**2
        # x grows to about DRAWS |g|: its float32 steps add errors of 2^-24 |x| to each difference,
        # none to the sum. 6 standard deviations: wrong for one of 22 in a billion runs.
        error = np.abs(draws.mean(0) - mean)
        rounding = 1e-3 * np.abs(g).max()
        assert (error <= 6 * np.sqrt(variance / DRAWS) + rounding).all(), name
        # Values lie within one gap of their mean, so the fourth moment is at most gap^2 variance.
        gap = max(np.abs(r).max() if name == "ternary" else np.linalg.norm(r) / 3 for r in g)
        spread = 6 * gap * np.sqrt(variance / DRAWS)
        assert (np.abs(draws.var(0) - variance) <= spread + rounding * gap).all(), name
        assert (draws[:, 2] == 0).all()


def test_bfloat16_is_the_rounded_mean_of_rounded_gradients(mapped: Mapped):
    g = random_rows(3, SIZE)[0]
    tx = baselines.average_bfloat16(WORKERS)
    out = mapped(lambda g: tx.update(g, tx.init(g))[0], jnp.asarray(g))
    rounded = np.asarray(jnp.asarray(g, jnp.bfloat16), np.float32)
    expected = jnp.asarray(rounded.mean(0), jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(out, np.broadcast_to(expected, g.shape), rtol=2**-8)
    assert (np.asarray(out) == np.asarray(out, jnp.bfloat16)).all()


@pytest.fixture(scope="module")
def seen_under_vmap() -> np.ndarray:
    return np.asarray(Mapped("vmap")(quantized, jnp.asarray(random_rows(5, 40)[0])))


def quantized(g: jax.Array) -> jax.Array:
    tx = baselines.average_quantized(WORKERS, norm="linf")
    return tx.update(g, tx.init(g))[0]


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_all_mappings_draw_the_same_levels(mapping: Any, seen_under_vmap: np.ndarray):
    seen = Mapped(mapping)(quantized, jnp.asarray(random_rows(5, 40)[0]))
    np.testing.assert_allclose(seen, seen_under_vmap, rtol=1e-6, atol=1e-6)


LINKS = {
    "bfloat16": lambda: baselines.average_bfloat16(WORKERS),
    "quantized": lambda: baselines.average_quantized(WORKERS, norm="linf", levels=1),
    "low rank": lambda: baselines.average_low_rank(WORKERS, rank=1),
    "random k": lambda: baselines.average_random_k(WORKERS, fraction=0.5),
    "top k": lambda: baselines.average_top_k(WORKERS, fraction=0.5),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_worker_that_is_not_finite_is_left_out_and_keeps_its_residual(name: str):
    tx = LINKS[name]()
    g = jnp.stack([jnp.ones((3, 4)), jnp.full((3, 4), jnp.nan), jnp.ones((3, 4))])
    alone = jnp.stack([jnp.ones((3, 4))] * 3)
    step = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g)), axis_name=WORKERS))
    out, state = step(g)
    np.testing.assert_allclose(out, step(alone)[0], rtol=1e-5)
    assert (np.asarray(state.num_abstained) == 1).all()
    for leaf in jax.tree.leaves(state.residual):
        np.testing.assert_array_equal(leaf[1], np.zeros((3, 4)))
        assert np.isfinite(leaf).all()
    nobody, state = step(jnp.full_like(g, jnp.inf))
    np.testing.assert_array_equal(nobody, np.zeros_like(g))
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, float)
    )


@pytest.mark.parametrize("name", daily(LINKS, list(LINKS)[:2]))
def test_summed_gradients_are_refused_and_the_layout_is_inferred(name: str):
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(3)}
    mesh = signax.make_worker_mesh(2)
    tx = optax.chain(LINKS[name](), optax.scale(-0.1))
    specs = signax.state_specs(tx, params, mesh)
    own = [spec == jax.P(WORKERS) for spec in jax.tree.leaves(specs[0].residual)]
    assert all(own)
    assert len(own) == (0 if name in ("bfloat16", "quantized") else 2)
    assert specs[0].count == jax.P()
    assert all(spec == jax.P() for spec in jax.tree.leaves(specs[0].memory))

    def summed(p):
        return tx.update(jax.grad(lambda p: p["w"].sum() + p["b"].sum())(p), tx.init(p))[0]

    with pytest.raises(ValueError, match="same on every worker"):
        jax.shard_map(summed, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())(params)


@pytest.mark.parametrize("num_workers", daily([2, 3], [3]))
def test_the_bits_are_those_of_the_formula(num_workers: int):
    n, m, b = 24, 40, 96
    size = n * m + b  # a multiple of 8 M, so that nothing is padded
    params = {"w": jnp.ones((n, m)), "b": jnp.ones(b)}
    share = (num_workers - 1) / num_workers
    voters = 32 * (num_workers - 1)  # int32 behind each server's answer
    served = 8 * (1 + 3 * 4) * (num_workers - 1) + voters  # a flag, at most three scales
    kept = 96 + 10
    expected = {
        "bfloat16": (baselines.average_bfloat16(WORKERS), 32 * size * share, served),
        "7 levels": (baselines.average_quantized(WORKERS), (4 + 32) * size * share, served),
        "1 level": (
            baselines.average_quantized(WORKERS, levels=1, down_dtype="bfloat16"),
            (2 + 16) * size * share,
            served,
        ),
        "rank 4": (
            baselines.average_low_rank(WORKERS),
            64 * (4 * (n + m) + b + 1) * share,
            0,
        ),
        "random": (
            baselines.average_random_k(WORKERS, fraction=0.1),
            64 * (kept + 1) * share,
            0,
        ),
        "top": (
            baselines.average_top_k(WORKERS, fraction=0.1),
            (64 * kept + 8) * (num_workers - 1),
            0,
        ),
    }
    mesh = signax.make_worker_mesh(num_workers)
    for name, (tx, formula, overhead) in expected.items():

        def update(tree, tx=tx):
            return tx.update(signax.as_varying(tree, WORKERS), tx.init(tree))[0]

        fn = jax.shard_map(update, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())
        report = signax.wire_bits(fn, params)
        assert formula - 1e-6 <= report.bits <= formula + overhead + 1e-6, (
            name,
            report.bits,
            formula,
        )
        assert report.num_collectives <= 2, (name, str(report))


def test_a_matrix_of_lower_rank_costs_no_rank_for_ever():
    tx = baselines.average_low_rank(None, rank=2)
    flat = jnp.outer(jnp.arange(1.0, 6.0), jnp.ones(7))
    full = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)) @ np.ones((2, 7)), jnp.float32)
    state = tx.init(flat)
    update = jax.jit(tx.update)
    for g in (jnp.zeros((5, 7)), flat, flat, full):
        u, state = update(g, state)
        assert np.isfinite(u).all()
        assert np.linalg.matrix_rank(np.asarray(state.memory).reshape(7, 2)) == 2
    for factor in (1e-30, 1e30):
        u, _ = update(flat * factor, tx.init(flat))
        np.testing.assert_allclose(u / factor, flat, rtol=1e-4)


def test_random_k_without_memory_is_unbiased():
    tx = baselines.average_random_k(None, fraction=0.25, feedback=False)
    g = jnp.arange(1.0, 9.0)
    draw = jax.jit(jax.vmap(lambda i: tx.update(g, tx.init(g)._replace(count=i))[0]))
    draws = np.asarray(draw(jnp.arange(DRAWS)))
    assert ((draws != 0).sum(1) == 2).all()
    # each coordinate is 4 g with chance 1/4: standard deviation sqrt(3) g; 6 of them
    bound = 6 * math.sqrt(3 / DRAWS) * np.asarray(g)
    assert (np.abs(draws.mean(0) - np.asarray(g)) <= bound).all()


def test_clipping_at_sigmas_cuts_at_the_papers_bound():
    g = jnp.array([1.0, -1.0, 1.0, -1.0, 10.0])
    tx = baselines.tern_grad(1.0, clip_sigmas=1.5)
    bound = 1.5 * float(np.std(np.asarray(g)))
    u, _ = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_allclose(np.abs(u).max(), bound, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: baselines.qsgd(0.1, 0), "levels must be an integer of at least 1, got 0"),
        (lambda: baselines.qsgd(0.1, 128), "levels must be at most 127"),
        (lambda: baselines.qsgd(0.1, norm="l1"), "unknown norm 'l1'"),
        (lambda: baselines.qsgd(0.1, down_dtype="int8"), "must be a floating dtype"),
        (lambda: baselines.tern_grad(0.1, clip_sigmas=0.0), "clip_sigmas must be positive"),
        (lambda: baselines.power_sgd(0.1, 0), "rank must be an integer of at least 1"),
        (lambda: baselines.top_k_sgd(0.1, 0.0), r"fraction must be a number in \(0, 1\]"),
        (lambda: baselines.random_k_sgd(0.1, 1.5), r"fraction must be a number in \(0, 1\]"),
        (lambda: baselines.average_top_k(None, on_nonfinite="skip"), "unknown on_nonfinite"),
    ],
)
def test_what_cannot_be_is_refused_at_construction(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (baselines.qsgd, {"levels": 7}),
        (baselines.power_sgd, {"rank": 2}),
        (baselines.top_k_sgd, {"fraction": 0.5}),
        (baselines.random_k_sgd, {"fraction": 0.5}),
    ],
)
def test_what_shapes_depend_on_is_static_under_inject_hyperparams(make, argument):
    (name,), params = argument, jnp.ones((4, 6))
    with pytest.raises(TypeError, match=f'static_args="{name}"'):
        optax.inject_hyperparams(make)(learning_rate=0.1, **argument).init(params)
    tx = optax.inject_hyperparams(make, static_args=name)(learning_rate=0.1, **argument)
    update, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert update.shape == params.shape


@pytest.mark.parametrize("value", [0.1, 1 / 3])
def test_a_leaf_of_equal_coordinates_is_not_clipped_to_its_rounding(value: float):
    g = jnp.full(1000, value)
    tx = baselines.tern_grad(1.0, clip_sigmas=2.5)
    update, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(jnp.max(jnp.abs(update)), value, rtol=1e-6)


def test_the_momentum_of_power_sgd_is_a_decay():
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        baselines.power_sgd(0.1, momentum=5.0)
