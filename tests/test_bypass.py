"""Small leaves dense, large ones by signs: who abstains, what travels, what each part does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import daily
from workers import WORKERS, map_workers, worker_mesh

PARAMS = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8), "scale": jnp.ones(())}
MAKERS = {
    "signum": lambda: signax.signum(0.1, 0.5, axis_name=WORKERS),
    "ssdm": lambda: signax.ssdm(0.1, axis_name=WORKERS, scale=signax.Scale("linf", shared=True)),
    "double_squeeze": lambda: signax.double_squeeze(0.1, axis_name=WORKERS),
    "ef21": lambda: signax.ef21(0.1, axis_name=WORKERS),
}


def bypassed(inner: optax.GradientTransformation, size: int = 9) -> Any:
    return signax.dense_below(size, inner, dense=signax.dense_sgd(1.0, axis_name=WORKERS))


@pytest.mark.parametrize(
    ("name", "bad"),
    daily(
        [("signum", "bias"), ("ssdm", "kernel"), ("double_squeeze", "bias"), ("ef21", "bias")],
        [("ssdm", "kernel"), ("double_squeeze", "bias")],
    ),
)
def test_a_nan_in_one_part_keeps_the_worker_out_of_both(name: str, bad: str):
    tx = bypassed(MAKERS[name]())
    rng = np.random.default_rng(0)
    rows = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(3, *p.shape)), jnp.float32), PARAMS)

    def fn(g):
        is_bad = jax.lax.axis_index(WORKERS) == 1
        spoiled = g | {bad: jnp.where(is_bad, g[bad].at[0].set(jnp.nan), g[bad])}
        (a, _), (b, _) = (
            tx.update(x, tx.init(PARAMS), PARAMS)
            for x in (spoiled, jax.tree.map(lambda u: jnp.where(is_bad, jnp.nan, u), g))
        )
        return a, b

    spoiled, absent = map_workers("vmap", fn, 3)(rows)
    jax.tree.map(np.testing.assert_array_equal, spoiled, absent)
    mean = np.asarray(rows["bias"])[[0, 2]].mean(axis=0)
    np.testing.assert_allclose(spoiled["bias"][0], -mean, rtol=1e-6)
    assert (spoiled["kernel"] != 0).any()


@pytest.mark.parametrize("name", ["double_squeeze", "ef21"])
def test_it_trains_on_devices_with_a_layout_that_is_inferred(name: str):
    tx, mesh = bypassed(MAKERS[name]()), worker_mesh(2)

    def loss_fn(params, batch):
        return sum(jnp.sum((x - jnp.mean(batch)) ** 2) for x in jax.tree.leaves(params))

    step = signax.make_train_step(loss_fn, tx, mesh)
    state = signax.init_train_state(PARAMS, tx, mesh)
    state, metrics = step(state, jnp.array([2.0, jnp.nan]))
    assert metrics["num_abstained"] == 1
    np.testing.assert_array_equal(state.params["bias"], 3.0)  # 1 + 1.0 * 2 (2 - 1)
    assert (state.params["kernel"] > 1).any()


def test_small_leaves_travel_in_full_and_large_ones_by_bits():
    mesh, size = worker_mesh(8), 80_000
    params = {"w": jnp.zeros(size), "b": jnp.zeros(100)}
    inner = signax.sign_sgd(0.1, axis_name=WORKERS, ties="random")
    for limit, dense_coordinates in ((101, 100), (100, 0)):
        tx = bypassed(inner, limit)
        state = tx.init(params)
        mapped = jax.shard_map(
            lambda g, tx=tx, state=state: tx.update(jax.tree.map(lambda x: x[0], g), state)[0],
            mesh=mesh, in_specs=jax.P(WORKERS), out_specs=jax.P(),
        )  # fmt: skip
        gradients = jax.tree.map(lambda p: jnp.zeros((8, *p.shape)), params)
        report = signax.wire_bits(mapped, gradients, num_coordinates=size)
        bits: dict[str, float] = {}
        for c in report.collectives:
            bits[c.kind] = bits.get(c.kind, 0) + c.bits
        # besides, the number of voters of the dense mean: one int32
        most = 2 * 32 * (dense_coordinates + 1) * 7 / 8
        assert 2 * 32 * dense_coordinates * 7 / 8 <= bits.get("all-reduce", 0) <= most
        assert bits["all-to-all"] / size == pytest.approx(7 / 8, rel=0.01)
        assert bits["all-gather"] / size == pytest.approx(7 / 8, rel=0.01)


def test_below_zero_is_refused_and_zero_is_none():
    with pytest.raises(ValueError, match="must not be negative"):
        bypassed(signax.sign_sgd(0.1), -1)
    tx = signax.dense_below(0, signax.sign_sgd(0.5), dense=signax.dense_sgd(1.0))
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert all((u == -0.5).all() for u in jax.tree.leaves(updates))
