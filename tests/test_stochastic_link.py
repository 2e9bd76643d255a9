"""The stochastic sign of a tree on M workers: its scales, its addresses, who is silent."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import signax
from chance import assert_independent, assert_mean, assert_mean_of
from daily import daily
from workers import MAPPINGS, WORKERS, map_workers

pytestmark = pytest.mark.machine_code

NUM_DRAWS = 100_000
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
    tree = {name: jnp.full((2, NUM_DRAWS), 1e-20) for name in ("a", "b")}
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


@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0, 0.0])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_traced_scale_that_can_be_no_r_says_nothing(scale: float, rescale: bool):
    g = jnp.array([1.0, -2.0, 0.0])

    @jax.jit
    def say(scale):
        tx = signax.scale_by_stochastic_sign(0, axis_name=None, scale=scale, rescale=rescale)
        return tx.update(g, tx.init(g))[0], signax.stochastic_sign(0, g, scale)

    for said in say(scale):
        np.testing.assert_array_equal(said, np.full(3, 0.0 if scale == 0 else np.nan))


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
