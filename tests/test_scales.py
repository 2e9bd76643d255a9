"""The norms behind the scale R: of any size and magnitude, in one pass, never hiding a NaN."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from cut_model import HOSTS, SPECS, mesh_of, targets
from daily import daily
from one_worker_step import temporary_share
from signax.signs import _norms

pytestmark = pytest.mark.machine_code

NORMS = ("l2", "linf")
# Sums of at most 8 squares, of the rounded roots, and XLA's sum of those in some order: for the at
# most 130 terms of an addition below every rounding is 2^-24, and the root halves the sum's.
TOLERANCE = (8 + 4 + 130) / 2 * 2.0**-24


jitted_norm_of = jax.jit(_norms.norm_of, static_argnums=1)


def norm_of(leaves: list[Any], norm: Any) -> float:
    """In float64, so that what is beyond the range of float32 is seen too."""
    found = jitted_norm_of([jnp.asarray(x) for x in leaves], norm)
    return float(np.float64(found.mantissa) * np.float64(found.unit))


def in_numpy(leaves: list[Any], norm: str) -> float:
    flat = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    return float(np.sqrt((flat**2).sum()) if norm == "l2" else np.abs(flat).max(initial=0.0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 23, 1000])
def test_a_norm_is_that_of_every_coordinate(size: int, norm: str):
    g = np.random.default_rng(size).normal(size=size).astype(np.float32)
    assert norm_of([g], norm) == pytest.approx(in_numpy([g], norm), rel=TOLERANCE)
    for i in range(0, size, 1 + size // 25):  # alone, a coordinate is the norm
        alone = np.zeros(size, np.float32)
        alone[i] = -3.0
        assert norm_of([alone], norm) == pytest.approx(3.0, rel=TOLERANCE)


@pytest.mark.parametrize("norm", NORMS)
def test_one_norm_is_that_of_all_leaves_whatever_their_shapes_and_dtypes(norm: str):
    draw = np.random.default_rng(0).normal
    leaves = [
        draw(size=shape).astype(np.float32) for shape in ((), (3, 0), (5,), (4, 2, 3), (7, 9))
    ]
    leaves[2] = jnp.asarray(leaves[2], jnp.bfloat16)
    leaves[4] = leaves[4] * 100
    assert norm_of(leaves, norm) == pytest.approx(in_numpy(leaves, norm), rel=TOLERANCE)
    for leaf in leaves:
        assert norm_of([leaf], norm) == pytest.approx(in_numpy([leaf], norm), rel=TOLERANCE)


# Where squares of float32 begin to leave its range, and where its units meet.
MAGNITUDES = [1e-37, 1e-30, 1e-19, 1e-13, 3e-13, 1e-12, 1.0, 1e9, 1e17, 4e17, 1e19, 1e30, 3e38]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [6, 8, 13, 1027])
def test_a_norm_keeps_its_bits_at_every_magnitude(size: int, norm: str):
    g = np.random.default_rng(1).uniform(0.1, 1.0, size)
    for unit in MAGNITUDES:
        scaled = (g * unit).astype(np.float32)
        assert norm_of([scaled], norm) == pytest.approx(in_numpy([scaled], norm), rel=TOLERANCE)


@pytest.mark.parametrize("norm", NORMS)
def test_magnitudes_may_be_mixed_in_one_place_and_in_one_norm(norm: str):
    for large in MAGNITUDES:
        for small in MAGNITUDES:
            g = np.full(40, small, np.float32)
            g[7] = g[24] = large
            expected = in_numpy([g], norm)
            assert norm_of([g], norm) == pytest.approx(expected, rel=TOLERANCE), (large, small)
            assert norm_of([g[:20], g[20:]], norm) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_bad_coordinate_anywhere_makes_the_norm_no_number(bad: float, norm: Any):
    size = 531
    rows = jnp.where(jnp.eye(size, dtype=bool), bad, jnp.float32(3e38))
    mantissas = jax.vmap(lambda g: jitted_norm_of([g[:100], g[100:]], norm).mantissa)(rows)
    assert not np.isfinite(mantissas).any()
    assert np.isfinite(jitted_norm_of([jnp.full(size, 3e38)], norm).mantissa)


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_nothing_but_zeros_is_zero(norm: Any):
    for leaves in ([jnp.zeros(0)], [jnp.zeros(3), jnp.zeros((2, 40))]):
        assert _norms.norm_of(leaves, norm).mantissa == 0


@pytest.mark.parametrize("norm", NORMS)
def test_a_leaf_that_the_compiler_cuts_stays_cut(norm: Any):
    """Explicit shardings: to take lanes of a leaf would gather it on every device."""
    mesh = jax.make_mesh((4,), ("model",), (AxisType.Explicit,), devices=jax.devices()[:4])
    g = np.random.default_rng(2).normal(size=(8, 125)).astype(np.float32) * np.float32(1e30)
    with jax.set_mesh(mesh):
        placed = jax.device_put(g, NamedSharding(mesh, P("model")))
        compiled = jax.jit(lambda g: _norms.norm_of([g, -2 * g], norm)).lower(placed).compile()
        found = compiled(placed)
    # Sums of 1,000 squares in an order that is XLA's: at most as many roundings.
    expected = pytest.approx(in_numpy([g, -2 * g], norm), rel=1000 * 2.0**-24)
    assert np.float64(found.mantissa) * np.float64(found.unit) == expected
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_a_program_grows_no_faster_than_the_number_of_leaves(scope: Any):
    """What is known of all leaves is not worked out again for each."""
    tx = signax.scale_by_stochastic_sign(0, axis_name=None, scale=signax.Scale("l2", scope))

    def num_lines(num_leaves):
        leaves = [jnp.ones(5_000 + i) for i in range(num_leaves)]
        update = jax.jit(lambda g, state: tx.update(g, state)[0])
        return update.lower(leaves, tx.init(leaves)).compile().as_text().count("\n")

    assert num_lines(40) <= 2 * num_lines(20)


def read_scales(tree: Any, scale: signax.Scale) -> Any:
    """R of each leaf of a host's gradient that is cut over four devices; NaN if it abstains."""
    tx = signax.scale_by_stochastic_sign(0, axis_name=HOSTS, rescale=True, scale=scale)
    tx = signax.sharded(tx, SPECS)

    def magnitudes(g):  # what is said is +-R
        said, _ = tx.update(signax.as_varying(g, HOSTS), tx.init(g))
        return jax.tree.map(lambda x: jax.lax.pmean(jnp.abs(x), HOSTS), said)

    mesh = mesh_of(2, 4)
    return jax.jit(jax.shard_map(magnitudes, mesh=mesh, in_specs=(SPECS,), out_specs=SPECS))(tree)


OF_SHARDS = [signax.Scale(norm, scope) for norm in NORMS for scope in ("global", "leaf")]
OF_SHARDS += [signax.Scale("linf", "leaf", running=True)]


@pytest.mark.parametrize("scale", daily(OF_SHARDS, OF_SHARDS[:1]), ids=str)
def test_the_norms_of_shards_are_those_of_whole_leaves_at_every_magnitude(scale: signax.Scale):
    base = jax.tree.map(lambda x: np.cumsum(x[0]).reshape(x[0].shape) + 0.5, targets(2, 1))
    for unit in (1e-30, 1.0, 1e36):  # times at most 100 and the root of 127: below 3.4e38
        tree = jax.tree.map(lambda x, unit=unit: (x * unit).astype(np.float32), base)
        for name, found in read_scales(tree, scale).items():
            leaves = tree.values() if scale.scope == "global" else [tree[name]]
            r = in_numpy(list(leaves), scale.norm)
            np.testing.assert_allclose(found, np.full(found.shape, r), rtol=TOLERANCE)
    for bad in (np.nan, np.inf):  # on one of four devices, in one of the leaves
        base["columns"][1, 20] = bad
        for found in read_scales(jax.tree.map(jnp.float32, base), scale).values():
            assert np.isnan(found).all()


def test_there_is_one_running_maximum_for_each_scale():
    tree = {"a": jnp.ones((3, 7)), "b": jnp.ones(8), "c": jnp.ones(())}
    for scope, number in (("global", 1), ("leaf", 3), (8, 3 + 1 + 1), (1, 21 + 8 + 1)):
        scale = signax.Scale("linf", scope, running=True, share_every=1)
        tx = signax.scale_by_stochastic_sign(0, axis_name=None, scale=scale)
        _, state = jax.jit(tx.update)(tree, tx.init(tree))
        np.testing.assert_array_equal(state.largest, np.ones(number))
        assert tx.init(tree).largest.shape == (number,)


SCALES = [signax.Scale(norm, scope) for norm in NORMS for scope in ("global", "leaf", 256)]


@pytest.mark.parametrize("scale", daily(SCALES, SCALES[:1] + SCALES[4:]), ids=str)
def test_a_workers_step_writes_nothing_as_large_as_the_model(scale: signax.Scale):
    """XLA fuses the momentum, marked if the worker abstains, into the norm: no copy of it."""
    tx = signax.ssdm(1e-3, axis_name=None, scale=scale)
    for shape in ((300, 1024), (301, 1021)):  # whole blocks, and a short one at the end
        # An eighth for the lanes laid upon each other, three sixteenths for two bits and their
        # planes.
        assert temporary_share(tx, shape) < 1 / 2


def test_a_scale_is_a_value_that_can_be_compared_and_replaced():
    assert signax.Scale() == signax.Scale("l2", "global", shared=False)
    assert dataclasses.replace(signax.Scale(), shared=True) == signax.Scale(shared=True)
    assert hash(signax.Scale()) == hash(signax.Scale())
