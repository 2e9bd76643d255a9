"""The stochastic sign: its law by z-test, its addresses, its scales."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import signax
from daily import daily
from signax.signs import _random
from workers import MAPPINGS, WORKERS, map_workers

pytestmark = pytest.mark.machine_code

# z-test: for n draws in {-1, +1} with mean mu and variance 1 - mu^2, z = (mean - mu) sqrt(n / var).
# P(|N| > 6.5) = 8e-11; a hundred tests in this file are wrong once in 1e8 runs. Seeds are fixed.
Z = 6.5
NUM_DRAWS = 400_000


def assert_mean(draws: np.ndarray, mean: float):
    """The mean of draws in {-1, +1}; a mean of -1 or +1 is no chance at all."""
    assert set(np.unique(draws)) <= {-1.0, 1.0}
    if abs(mean) == 1:
        assert (draws == mean).all()
    else:
        z = (draws.mean(dtype=np.float64) - mean) * math.sqrt(draws.size / (1 - mean**2))
        assert abs(z) < Z, f"z = {z:.2f} for the mean {mean}"


def assert_independent(a: np.ndarray, b: np.ndarray):
    """Fair draws a and b: their product is fair as well."""
    assert_mean(np.asarray(a) * np.asarray(b), 0.0)


@functools.cache
def _drawer(size: int):
    def draw(seed, g, scale):
        return signax.stochastic_sign(seed, jnp.broadcast_to(g, (size,)), scale)

    return jax.jit(draw)


def draws(g: float, scale: float, seed: int = 0, size: int = NUM_DRAWS) -> np.ndarray:
    return np.asarray(_drawer(size)(seed, jnp.float32(g), jnp.float32(scale)))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.1, 1e-3, 0.0, -0.3, -1.0])
def test_the_probability_of_plus_is_that_of_the_paper(ratio: float, unit: float):
    p = float(reference.probability_of_plus(np.array([ratio]), scale=1.0)[0])
    assert_mean(draws(ratio * unit, unit), 2 * p - 1)


@pytest.mark.parametrize("g", [2.0, -2.0, 1e30, -3e38])
def test_a_coordinate_beyond_the_scale_is_certain(g: float):
    assert_mean(draws(g, 1.0), np.sign(g))


@pytest.mark.parametrize("ratio", [1.0, -1.0])
def test_a_certain_sign_holds_for_the_largest_and_the_smallest_word(
    ratio: float, monkeypatch: pytest.MonkeyPatch
):
    # The threshold for 1 would be 2^31, which is no int32; the largest float32 below is 128 less,
    # and the words from there on come once in 33 million draws.
    extreme = np.array([2**31 - 1, 2**31 - 128, -(2**31)], np.int64).astype(np.uint32)
    monkeypatch.setattr(_random, "words_at", lambda *_: jnp.asarray(extreme))
    signs = signax.stochastic_sign(0, jnp.full(extreme.shape, 3.0 * ratio), 3.0)
    assert (np.asarray(signs) == ratio).all()


@pytest.mark.parametrize("ratio", [1e-6, -1e-6, 1e-8, 3e-10])
def test_a_small_probability_keeps_its_signal(ratio: float, monkeypatch: pytest.MonkeyPatch):
    # P(w < t) = 1/2 + t / 2^32 for a uniform int32 w, with t = round(g / R 2^31): 2147, 21 and 1.
    # To see 1e-8 by chance takes 1e17 draws, so each word near zero is tried once: against a zero
    # coordinate, exactly t more of them say +1.
    threshold = round(ratio * 2**31)
    near = jnp.arange(-5000, 5000, dtype=jnp.int32)
    words = jax.lax.bitcast_convert_type(near, jnp.uint32)
    monkeypatch.setattr(_random, "words_at", lambda *_: words)
    signs = signax.stochastic_sign(0, jnp.full(near.shape, 3.0 * ratio), 3.0)
    assert int((np.asarray(signs) > 0).sum()) == 5000 + threshold
    assert abs(threshold / 2**31 / ratio - 1) <= 0.5 / (abs(ratio) * 2**31)


def test_a_signal_of_one_in_a_thousand_is_seen_and_not_biased():
    # n = 1e8 draws: the mean 1e-3 is 10 standard deviations from zero, and a bias of -4.6 % in the
    # signal, as uniform() < p has at 1e-6, would be less than one.
    size, ratio = 4_000_000, 1e-3
    mean = np.mean([draws(ratio, 1.0, seed, size).mean(dtype=np.float64) for seed in range(25)])
    z = math.sqrt(25 * size)
    assert abs(mean - ratio) * z < Z
    assert mean * z > 10 - Z


def test_the_default_scale_is_the_l2_norm_of_the_array():
    g = jnp.zeros(NUM_DRAWS).at[::4].set(3.0).at[1::4].set(-1.0)
    norm = reference.l2_norm(np.asarray(g))
    signs = np.asarray(signax.stochastic_sign(1, g))
    # The bits of a given R: only a draw within a rounding of its threshold could differ.
    np.testing.assert_array_equal(signs, signax.stochastic_sign(1, g, np.float32(norm)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_signs_keep_shape_and_dtype_and_zero_has_none(dtype: Any):
    g = jnp.zeros((3, 1, 2), dtype)
    assert not np.any(signax.stochastic_sign(0, g))
    out = signax.stochastic_sign(0, g.at[0].set(1), scale=2.0)
    assert out.shape == g.shape
    assert out.dtype == dtype
    assert set(np.unique(np.asarray(out, np.float32))) <= {-1.0, 1.0}
    assert np.isnan(np.asarray(signax.stochastic_sign(0, g.at[1].set(np.nan)), np.float32)).all()
    assert np.isnan(
        np.asarray(signax.stochastic_sign(0, g.at[1].set(np.inf), 1.0), np.float32)
    ).all()
    assert not np.any(signax.stochastic_sign(0, g.at[0].set(1), scale=0.0))
    for shape in ((0,), (3, 0, 2)):
        assert signax.stochastic_sign(0, jnp.zeros(shape, dtype)).shape == shape
    assert abs(float(signax.stochastic_sign(0, jnp.ones((), dtype)))) == 1


# The lift to a tree on M workers.

TREE = {"a": (40_000,), "b": (2, 20_000)}
SCALES = [
    signax.Scale(norm, scope, shared)
    for norm in ("l2", "linf")
    for scope in ("global", "leaf")
    for shared in (False, True)
]


def numpy_scales(rows: list[dict[str, np.ndarray]], scale: signax.Scale) -> list[dict[str, float]]:
    """R of each leaf on each worker, in float64."""

    def norm(leaves):
        flat = np.concatenate([np.ravel(x) for x in leaves]).astype(np.float64)
        return reference.l2_norm(flat) if scale.norm == "l2" else float(np.abs(flat).max())

    out = []
    for tree in rows:
        if scale.scope == "leaf":
            out.append({name: norm([leaf]) for name, leaf in tree.items()})
        else:
            out.append(dict.fromkeys(tree, norm(tree.values())))
    if scale.shared:
        largest = {name: max(r[name] for r in out) for name in out[0]}
        out = [largest] * len(out)
    return out


@functools.cache
def lifted(mapping: str, num_workers: int, scale: Any, key: int = 0):
    tx = signax.scale_by_stochastic_sign(key, axis_name=WORKERS, scale=scale)

    def fn(tree, step):
        return tx.update(tree, tx.init(tree)._replace(count=step))[0]

    return map_workers(mapping, fn, num_workers)


@pytest.mark.parametrize("scale", daily(SCALES, SCALES[:1] + SCALES[-1:]), ids=str)
def test_every_scale_is_the_norm_that_numpy_finds(scale: signax.Scale):
    # Two big coordinates carry the signal: a leaf's mean over its other coordinates, all equal,
    # shows g / R. The spread of magnitudes tells the scales apart.
    num_workers, size = 3, 20_000
    units = np.array([1.0, 3.0, 10.0])
    rows = [
        {
            "a": np.full(size, unit).astype(np.float32),
            "b": np.append(np.full(size - 1, 0.4 * unit), 40 * unit).astype(np.float32),
        }
        for unit in units
    ]
    stacked = {name: jnp.stack([r[name] for r in rows]) for name in ("a", "b")}
    out = lifted("vmap", num_workers, scale)(stacked, jnp.zeros(num_workers, jnp.int32))
    # The bits are those of stochastic signs with NumPy's R, but where R's last bits decide: a
    # relative error of 1e-5 in R moves a threshold by 1e-5 of 2^31, so it changes one draw in 2e5.
    for worker, (row, scales) in enumerate(zip(rows, numpy_scales(rows, scale), strict=True)):
        for name in ("a", "b"):
            fixed = lifted("vmap", num_workers, scales[name])(
                stacked, jnp.zeros(num_workers, jnp.int32)
            )
            differ = np.asarray(fixed[name][worker]) != np.asarray(out[name][worker])
            assert differ.sum() <= 2, (name, worker)
            assert_mean_of(np.asarray(out[name][worker]), row[name] / scales[name])


def assert_mean_of(signs: np.ndarray, means: np.ndarray):
    """z-test of the sum of draws, each with its own mean."""
    means = np.clip(means.astype(np.float64), -1, 1)
    sigma = math.sqrt(np.sum(1 - means**2))
    if sigma == 0:
        np.testing.assert_array_equal(signs, means)
    else:
        assert abs(signs.sum(dtype=np.float64) - means.sum()) < Z * sigma


@pytest.mark.parametrize("num_workers", daily([1, 3, 8], [3]))
def test_bits_are_the_same_under_every_mapping_given_r(num_workers: int):
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(size=(num_workers, 37)),
        "b": {"c": rng.normal(size=(num_workers, 2, 5))},
    }
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    steps = jnp.full(num_workers, 11, jnp.int32)
    linf = signax.Scale("linf", "leaf", shared=True)  # a maximum is the same in any order
    for scale in (2.0, linf):
        simulated = lifted("vmap", num_workers, scale)(tree, steps)
        for mapping in MAPPINGS[1:]:
            out = lifted(mapping, num_workers, scale)(tree, steps)
            jax.tree.map(np.testing.assert_array_equal, out, simulated)
    for name, leaf in (("a", simulated["a"]), ("c", simulated["b"]["c"])):
        assert len(np.unique(leaf.reshape(num_workers, -1), axis=0)) == num_workers, name


def fair_bits(step: int = 0, key: int = 0) -> dict[str, np.ndarray]:
    """Signs of nearly zero gradients of equal leaves on two workers: [2, n] fair bits."""
    tree = {name: jnp.full((2, NUM_DRAWS // 4), 1e-20) for name in ("a", "b")}
    out = lifted("vmap", 2, 1.0, key)(tree, jnp.full(2, step, jnp.int32))
    return {name: np.asarray(x) for name, x in out.items()}


def test_bits_differ_by_worker_step_leaf_path_and_key():
    first = fair_bits()
    assert_mean(first["a"][0], 0.0)
    assert_independent(first["a"][0], first["a"][1])
    assert_independent(first["a"][0], first["b"][0])
    assert_independent(first["a"][0], first["b"][1])
    assert_independent(first["a"][0], fair_bits(step=1)["a"][0])
    assert_independent(first["a"][0], fair_bits(step=1)["a"][1])
    assert_independent(first["a"][0], fair_bits(key=1)["a"][0])
    for lag in (1, 2, 32):
        assert_independent(first["a"][0][lag:], first["a"][0][:-lag])
    np.testing.assert_array_equal(fair_bits(step=5)["a"], fair_bits(step=5)["a"])


def test_the_state_counts_steps_and_its_count_addresses_the_bits():
    tx = signax.scale_by_stochastic_sign(3, axis_name=None, scale=1.0)
    g = jnp.full(64, 0.25)
    state = tx.init(g)
    seen = []
    for _ in range(3):
        signs, state = tx.update(g, state)
        seen.append(np.asarray(signs))
    assert int(state.count) == 3
    assert not np.array_equal(seen[0], seen[1])
    replay, _ = tx.update(g, tx.init(g)._replace(count=jnp.int32(2)))
    np.testing.assert_array_equal(replay, seen[2])


@pytest.mark.parametrize("scale", [*SCALES, 1.0], ids=str)
def test_silent_workers_are_seen_and_zero_leaves_of_others_are_coins(scale: Any):
    size = 10_000  # long: XLA's maximum loses a NaN there
    zero = {"a": np.zeros(size), "b": np.zeros(size)}
    half, nan, one_inf = np.full(size, 0.5), np.full(size, np.nan), np.zeros(size)
    one_inf[7] = np.inf
    rows = [zero, zero | {"b": half}, zero | {"b": nan}, zero | {"b": one_inf}]
    stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *rows)
    out = lifted("vmap", 4, scale)(stacked, jnp.zeros(4, jnp.int32))
    if isinstance(scale, signax.Scale) and not scale.shared:
        assert not np.any(out["a"][0])
        assert not np.any(out["b"][0])
    else:  # R is not its own: a zero is what it has to say, and (R / M) sum stays unbiased
        assert_mean(np.asarray(out["a"][0]), 0.0)
    assert_mean(np.asarray(out["a"][1]), 0.0)  # a zero leaf in a non-zero tree: fair coins
    for bad in (2, 3):
        assert np.isnan(out["a"][bad]).all()
        assert np.isnan(out["b"][bad]).all()


def test_a_leafless_or_empty_tree_passes():
    tx = signax.scale_by_stochastic_sign(0, axis_name=None)
    for tree in ({}, {"none": None}, {"a": jnp.zeros((3, 0, 2)), "b": jnp.zeros(0)}):
        out, state = tx.update(tree, tx.init(tree))
        assert jax.tree.structure(out) == jax.tree.structure(tree)
        assert int(state.count) == 1


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_law_does_not_depend_on_the_unit_of_the_gradient(norm: str, unit: float):
    base = np.append(np.full(20_000, 0.5), [1.0, -1.0]).astype(np.float32)
    tx = signax.scale_by_stochastic_sign(0, axis_name=None, scale=signax.Scale(norm, "leaf"))
    g = jnp.asarray(base * np.float32(unit))
    signs = np.asarray(tx.update(g, tx.init(g))[0])
    r = reference.l2_norm(base) if norm == "l2" else 1.0
    assert_mean_of(signs, base / r)


# Algorithm 3 as a whole.


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_ssdm_steps_by_the_mean_of_algorithm_3(num_workers: int):
    """E[update] = -gamma / M sum_n m_n / R_n at every step, with m_{-1} = g_0."""
    beta, gamma, num_seeds, num_steps, size = 0.7, 0.5, 4000, 3, 6
    rng = np.random.default_rng(num_workers)
    gradients = rng.normal(size=(num_steps, num_workers, size)).astype(np.float32)
    gradients *= np.arange(1, num_workers + 1, dtype=np.float32)[:, None]  # heterogeneous

    def run(key):
        tx = signax.ssdm(gamma, beta, key=key, axis_name=WORKERS, wire="float32")

        def worker(gradients):
            state, updates = tx.init(gradients[0]), []
            for g in gradients:
                update, state = tx.update(g, state)
                updates.append(update)
            return jnp.stack(updates)

        return jax.vmap(worker, in_axes=1, axis_name=WORKERS)(jnp.asarray(gradients))[0]

    updates = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(num_seeds)), np.float64)
    momenta: list[Any] = [None] * num_workers
    for k in range(num_steps):
        momenta = reference.next_momenta(
            momenta, gradients[k].astype(np.float64), beta, reference.momentum_from_first_gradient
        )
        means = np.stack([2 * reference.probability_of_plus(m) - 1 for m in momenta])
        expected = -gamma * means.mean(axis=0)
        # the sum of M independent draws has the variance sum (1 - mean^2)
        sigma = gamma * np.sqrt((1 - means**2).sum(axis=0) / num_seeds) / num_workers
        assert (np.abs(updates[:, k].mean(axis=0) - expected) < Z * sigma).all()
        # Both lattice and extremes: multiples of gamma / M within [-gamma, gamma].
        lattice = np.round(updates[:, k] * num_workers / gamma)
        np.testing.assert_allclose(lattice * gamma / num_workers, updates[:, k], rtol=1e-6)
        assert ((lattice - num_workers) % 2 == 0).all()
        spread = updates[:, k].var(axis=0) / (sigma**2 * num_seeds)
        # the variance of num_seeds draws is known to about sqrt(2 / num_seeds) = 2.2 %, times Z
        np.testing.assert_allclose(spread, 1.0, atol=0.15)


def test_the_shared_scale_makes_the_mean_of_signs_unbiased():
    num_workers, num_seeds = 4, 8000
    rows = np.array([[1.0, -2.0], [10.0, 3.0], [-0.1, 0.2], [4.0, 4.0]], np.float32)
    scale = signax.Scale("linf", "global", shared=True)

    def run(key):
        tx = signax.ssdm(1.0, 0.0, key=key, axis_name=WORKERS, scale=scale, wire="float32")
        return jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name=WORKERS)(
            jnp.asarray(rows)
        )[0]

    updates = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(num_seeds)), np.float64)
    r = 10.0
    sigma = r / math.sqrt(num_workers * num_seeds)  # at most: each draw has variance <= 1
    assert (np.abs(-r * updates.mean(axis=0) - rows.mean(axis=0)) < Z * sigma).all()
