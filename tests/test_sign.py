"""The scaled sign, its mean magnitude, its coins, and what all signs ask of a leaf."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from chance import assert_independent, assert_mean
from cut_model import HOSTS, SPECS, mesh_of, targets
from daily import daily
from signax.signs import _sign
from workers import WORKERS, map_workers


def scale_by_scaled_sign(scope: Any = "leaf", key: int = 0, axis_name: Any = None) -> Any:
    return signax.scale_by_scaled_sign(key, axis_name=axis_name, scope=scope)


def said(tree: Any, scope: Any = "leaf", key: int = 0, step: int = 0) -> Any:
    """What one worker says at a step."""
    tx = scale_by_scaled_sign(scope, key)
    return tx.update(tree, tx.init(tree)._replace(count=jnp.int32(step)))[0]


def test_the_scaled_sign_is_the_mean_magnitude_with_the_sign():
    g = jnp.array([[3.0, 0.0], [-6.0, 3.0]])
    np.testing.assert_array_equal(signax.scaled_sign(g), [[3.0, 0.0], [-3.0, 3.0]])


@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1.0, 1e30, 3e38])
def test_the_scale_of_a_scaled_sign_neither_overflows_nor_vanishes(unit: float):
    g = np.linspace(0.1, 1.0, 1000, dtype=np.float32) * np.float32(unit)
    scaled = np.asarray(signax.scaled_sign(jnp.asarray(g)))
    # 1,000 terms, added in blocks: at most 1,000 roundings of 2^-24
    np.testing.assert_allclose(scaled, g.astype(np.float64).mean(), rtol=1000 * 2.0**-24)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_leaf_holds_exactly_plus_and_minus_c(dtype: Any):
    tree = {"a": jnp.linspace(-1, 2, 97, dtype=dtype), "b": jnp.zeros(5, dtype)}
    for scope, b_is_zero in (("leaf", True), ("global", False)):
        leaves = said(tree, scope)
        assert leaves["a"].dtype == dtype
        assert len(np.unique(np.abs(np.asarray(leaves["a"], np.float32)))) == 1
        np.testing.assert_array_equal(leaves["a"] > 0, tree["a"] > 0)
        assert (leaves["b"] == 0).all() == b_is_zero


def test_c_is_the_mean_of_a_leaf_or_of_the_whole_tree():
    tree = {"a": jnp.array([1.0, -3.0]), "b": jnp.array([[5.0, -6.0, 1.0]]), "c": jnp.array(-16.0)}
    by_leaf = {"a": [2.0, -2.0], "b": [[4.0, -4.0, 4.0]], "c": -16.0}
    jax.tree.map(np.testing.assert_array_equal, said(tree), jax.tree.map(jnp.asarray, by_leaf))
    c = np.float32(32 / 6)
    for leaf, g in zip(map(said(tree, "global").get, "abc"), map(tree.get, "abc"), strict=True):
        np.testing.assert_array_equal(leaf, c * np.sign(g))


NUM_COINS = 64  # two addresses with the same coins: one chance in 2^64


def coins(key: int = 0, step: int = 0, name: str = "a") -> np.ndarray:
    return np.asarray(said({name: jnp.zeros(NUM_COINS)}, "global", key, step)[name])


def test_a_zero_says_a_coin_that_only_its_address_decides():
    g = jnp.zeros(NUM_COINS).at[7].set(float(NUM_COINS)).at[9].set(-float(NUM_COINS))
    c = 2.0
    first = np.asarray(said({"a": g}, "leaf")["a"])
    assert first[7] == c
    assert first[9] == -c
    assert set(first) == {-c, c}
    moved = jnp.roll(g, 20).at[:5].set(-0.0)
    others = np.setdiff1d(np.arange(NUM_COINS), [7, 9, 27, 29])
    np.testing.assert_array_equal(first[others], np.asarray(said({"a": moved})["a"])[others])
    addresses = itertools.product((0, 1), (0, 1), "ab")
    beside = [said({n: g, "z": jnp.ones(2)}, "leaf", k, s)[n] for k, s, n in addresses]
    assert len({np.asarray(leaf).tobytes() for leaf in beside}) == 8
    np.testing.assert_array_equal(beside[0], first)


NUM_DRAWS = 200_000


def test_a_zero_coordinate_of_a_scaled_sign_is_a_fair_coin_of_each_worker_and_step():
    g = jnp.zeros(NUM_DRAWS).at[0].set(float(NUM_DRAWS))  # c = 1
    tx = scale_by_scaled_sign(axis_name=WORKERS)
    state = tx.init(g)

    def two_steps(g):
        first, new = tx.update(g, state)
        return first, tx.update(g, new)[0]

    (a, b), (c, _) = map_workers("vmap", two_steps, 2)(jnp.stack([g, g]))
    draws = [np.asarray(x)[1:] for x in (a, b, c)]
    for i in range(3):
        assert_mean(draws[i], 0.0)
        assert_independent(draws[i], draws[i - 1])


def test_the_scaled_sign_of_a_worker_has_its_own_magnitude():
    tx = scale_by_scaled_sign(axis_name=WORKERS)
    said = map_workers("vmap", lambda g: tx.update(g, tx.init(g))[0], 2)
    g = jnp.array([[1.0, -3.0], [10.0, 30.0]])
    np.testing.assert_array_equal(said(g), [[2.0, -2.0], [20.0, 20.0]])


def test_shared_means_are_those_of_the_workers_that_are_finite():
    g = np.array([[1, -3, 5], [2, 2, 8], [np.nan, 0, 1], [7, 7, -1]], np.float32)
    tx = scale_by_scaled_sign(axis_name=WORKERS)

    def scales(g):
        tree = {"a": g[:2], "b": g[2]}
        return _sign.signs_and_scales(tree, tx.init(tree), WORKERS, "leaf", is_shared=True)[1]

    shared = map_workers("vmap", scales, 4)(jnp.asarray(g))
    np.testing.assert_array_equal(shared["a"], np.full(4, np.float32(11 / 3)))
    np.testing.assert_allclose(shared["b"], np.full(4, 14 / 3), rtol=2 * 2.0**-23)
    alone = map_workers("vmap", scales, 3)(jnp.asarray(g[1:3].repeat([1, 2], 0)))
    np.testing.assert_array_equal([alone["a"], alone["b"]], np.repeat([[2.0], [8.0]], 3, 1))
    nobody = map_workers("vmap", scales, 2)(jnp.full((2, 3), jnp.inf))
    np.testing.assert_array_equal([nobody["a"], nobody["b"]], np.zeros((2, 2)))


def magnitudes_on_shards(scope: str, tree: Any) -> Any:
    """How far a leaf moves, with two hosts of four devices over which the tree is cut."""
    tx = signax.sharded(scale_by_scaled_sign(scope, axis_name=HOSTS), SPECS)
    specs = {name: SPECS[name] for name in tree}

    def magnitudes(g):
        leaves, _ = tx.update(signax.as_varying(g, HOSTS), tx.init(g))
        return jax.tree.map(lambda x: jax.lax.pmax(jnp.abs(x), HOSTS), leaves)

    return jax.jit(
        jax.shard_map(magnitudes, mesh=mesh_of(2, 4), in_specs=(specs,), out_specs=specs)
    )(tree)


@pytest.mark.parametrize("apart", daily([0, 50], [50]))
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_the_mean_over_shards_is_that_of_the_whole_leaf(scope: str, apart: int):
    """Integers below 2^7 and their sums are exact, and the largest is not on every shard.

    Leaves whose sizes lie far apart neither vanish nor overflow in the unit of another.
    """
    tree = jax.tree.map(lambda x: np.cumsum(x[0]).reshape(x[0].shape), targets(2, 1))
    tree["rows"][7, 4] = 100.0
    tree["scalar"] = np.array(-3.0, np.float32)
    powers = {"columns": -1, "copied": 0, "rows": 2, "scalar": 1}  # the first leaf is the smallest
    tree = {name: tree[name] * np.float32(2.0) ** (apart * i) for name, i in powers.items()}
    found = magnitudes_on_shards(scope, tree)
    sums = {name: np.abs(g.astype(np.float64)).sum() for name, g in tree.items()}
    for name, g in tree.items():
        mean = sums[name] / g.size
        if scope == "global":
            mean = sum(sums.values()) / sum(x.size for x in tree.values())
        np.testing.assert_allclose(found[name], np.full(g.shape, mean), rtol=2 * 2.0**-23)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_the_mean_over_shards_of_a_single_number_is_its_magnitude(scope: str):
    assert magnitudes_on_shards(scope, {"scalar": jnp.float32(-3.0)})["scalar"] == 3.0


@pytest.mark.parametrize("size", [0, 1, 8, 511, 512, 513, 1100])
def test_one_bad_coordinate_anywhere_is_found(size: int):
    all_finite = jax.jit(_sign.all_finite)
    assert all_finite(jnp.ones(size))
    for bad in (np.nan, np.inf, -np.inf):
        rows = jnp.where(jnp.eye(size, dtype=bool), bad, jnp.float32(3e38))
        assert not jax.vmap(all_finite)(rows).any()
    assert not all_finite(jnp.full(size, np.nan)) or size == 0  # no count of them wraps


def test_no_count_of_bad_coordinates_wraps():
    assert not _sign.all_finite(jnp.full(256 * 512, np.nan))  # the counts are bytes


def test_a_tree_is_finite_if_all_its_leaves_are():
    good, bad = jnp.ones((3, 2)), jnp.array([1.0, np.nan])
    assert _sign.all_finite()
    assert _sign.all_finite({}, [])
    assert _sign.all_finite({"a": good}, [good, 2.0])
    for i in range(3):
        leaves = [good] * 3
        leaves[i] = bad
        assert not _sign.all_finite(leaves[:2], {"c": leaves[2]})


def test_a_leaf_that_the_compiler_cuts_is_looked_at_where_it_lies():
    """One flag is agreed on; to cut the leaf into rows of 512 would gather it."""
    mesh, specs = mesh_of(2, 4), {"a": P(None, "devices")}
    seen = optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda g, state, _: (_sign.all_finite(g), state)
    )
    tx = signax.sharded(seen, specs)

    def is_finite(g):
        g = jax.tree.map(lambda x: x[0], g)
        return jax.lax.pmin(tx.update(g, tx.init(g))[0].astype(jnp.int32), HOSTS)

    mapped = jax.shard_map(
        is_finite, mesh=mesh, in_specs=P(HOSTS), out_specs=P(), axis_names={HOSTS}
    )
    g = jax.device_put(jnp.ones((2, 64, 32)), NamedSharding(mesh, P(HOSTS, None, "devices")))
    assert mapped({"a": g}) == 1
    report = signax.wire_bits(mapped, {"a": g})
    assert {c.kind for c in report.collectives} == {"all-reduce"}, report


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float8_e4m3fn"])
def test_a_leaf_without_a_sign_is_named_by_its_path_and_dtype(dtype: str):
    where = rf"^signax\.sign_sgd: the update at \['b'\]\[1\] has dtype {dtype}\. "
    with pytest.raises(TypeError, match=where):
        _sign.require_real({"a": jnp.ones(2), "b": [1.0, jnp.ones(3, dtype)]}, "sign_sgd")
    with pytest.raises(TypeError, match=r"^signax\.scaled_sign: the update at \(the whole tree\)"):
        signax.scaled_sign(jnp.ones((), dtype))
    for kept in ("float16", "bfloat16", "float32"):
        _sign.require_real([jnp.ones(1, kept), 1.0], "sign_sgd")
