"""1-bit SGD: two means for each column, what they cost on the wire, and the paper's steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_family
import signax
from daily import daily
from workers import WORKERS, Mapped, map_workers, worker_mesh

SHAPES = {"conv": (2, 2, 3, 3), "dense": (11, 4), "row": (5,), "scalar": ()}
SIZE = 36 + 44 + 5 + 1
COLUMNS = [
    *np.arange(36).reshape(12, 3).T,
    *(36 + np.arange(44)).reshape(11, 4).T,
    80 + np.arange(5),
    np.array([85]),
]


def to_tree(x: jax.Array) -> dict[str, jax.Array]:
    parts = jnp.split(x, [36, 80, 85])
    return {k: part.reshape(s) for part, (k, s) in zip(parts, SHAPES.items(), strict=True)}


def to_vector(tree: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([tree[k].reshape(-1) for k in SHAPES])


def random_rows(num_workers: int, num_steps: int = 20) -> np.ndarray:
    rng = np.random.default_rng(num_workers)
    rows = rng.normal(size=(num_steps, num_workers, SIZE)) * (1 + np.arange(num_workers))[:, None]
    rows = rows.astype(np.float32)
    rows[3 % num_steps, 0, 7] = np.nan
    rows[8 % num_steps, :, 2] = np.inf
    return rows


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_one_bit_sgd_takes_the_steps_of_its_paper(num_workers: int):
    rows = random_rows(num_workers)
    tx = signax.one_bit_sgd(0.1, axis_name=WORKERS)

    def run(rows):
        def step(carry, g):
            x, state = carry
            updates, state = tx.update(to_tree(g), state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), to_vector(x)

        x = to_tree(jnp.ones(SIZE))
        state = jax.tree.map(lambda x: x + jnp.zeros_like(x), tx.init(x))
        return jax.lax.scan(step, (x, state), rows)[1]

    path = np.asarray(map_workers("vmap", run, num_workers)(jnp.asarray(rows.swapaxes(0, 1))))
    np.testing.assert_array_equal(path, np.broadcast_to(path[:1], path.shape))
    x, errors, expected = np.ones(SIZE), np.zeros(rows.shape[1:]), []
    for row in rows.astype(np.float64):
        x, errors = reference_family.one_bit_sgd_step(x, errors, row, 0.1, COLUMNS)
        expected.append(x)
    expected = np.array(expected)
    assert np.abs(path[0] - expected).max() <= 1e-6 * np.abs(expected).max()


def test_two_values_in_each_column_travel_unchanged_in_every_mapping(mapped: Mapped):
    rows = random_rows(3, 1)[0]
    rows = np.where(np.isfinite(rows), rows, 1.0).astype(np.float32)
    say, average = signax.scale_by_column_means(), signax.average_column_means(WORKERS)

    def fn(g):
        said, _ = say.update(to_tree(g), say.init(None))
        mean, _ = average.update(said, average.init(None))
        return to_vector(said), to_vector(mean)

    said, mean = map(np.asarray, mapped(fn, jnp.asarray(rows)))
    for n in range(3):
        expected = reference_family.quantize_columns(rows[n].astype(np.float64), COLUMNS)
        np.testing.assert_allclose(said[n], expected, rtol=1e-5)
    np.testing.assert_array_equal(said[:, -1], rows[:, -1], "a scalar is said exactly")
    np.testing.assert_allclose(mean[0], said.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mean, np.broadcast_to(mean[:1], mean.shape))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e38])
def test_column_means_neither_overflow_nor_vanish(unit: float):
    g = np.array([[3.0, -1.0], [1.0, -2.0], [-2.0, 0.0]], np.float32) * np.float32(unit)
    tx = signax.scale_by_column_means()
    said, _ = tx.update(jnp.asarray(g), tx.init(g))
    expected = np.array([[2.0, -1.5], [2.0, -1.5], [-2.0, 0.0]]) * unit
    np.testing.assert_allclose(said, expected, rtol=1e-6)


def test_one_bit_and_two_floats_per_column_up_and_full_precision_down():
    fan_in, num_columns, mesh = 512, 160, worker_mesh(8)
    params = {"w": jnp.zeros((fan_in, num_columns))}
    size = fan_in * num_columns
    for down, down_dtype in ((32, "float32"), (16, "bfloat16")):
        tx: Any = signax.average_column_means(WORKERS, down_dtype=down_dtype)
        mapped = jax.shard_map(
            lambda g, tx=tx: tx.update({"w": g["w"][0]}, tx.init(None))[0],
            mesh=mesh, in_specs=jax.P(WORKERS), out_specs=jax.P(),
        )  # fmt: skip
        gradients = {"w": jnp.zeros((8, *params["w"].shape))}
        report = signax.wire_bits(mapped, gradients, num_coordinates=size)
        bits = {c.kind: c.bits for c in report.collectives}
        assert sorted(bits) == ["all-gather", "all-to-all"]
        # 7/8 of everything leaves the worker; besides, one byte says to each server: I vote
        up = size + 2 * 32 * num_columns
        assert up * 7 / 8 <= bits["all-to-all"] <= up * 7 / 8 + 8 * 8
        assert bits["all-gather"] == pytest.approx(down * size * 7 / 8, rel=0.001)


def test_an_abstaining_worker_keeps_its_residual():
    tx = signax.one_bit_sgd(1.0, axis_name=WORKERS)

    def fn(good):
        _, before = tx.update(good, tx.init(good))
        bad = jnp.where(jax.lax.axis_index(WORKERS) == 1, jnp.inf, good)
        update, after = tx.update(bad, before)
        return update, before[0].residual, after[0].residual, after[1].num_abstained

    update, before, after, num_abstained = map_workers("vmap", fn, 2)(
        jnp.array([[1.0, 2.0, -3.0], [4.0, -8.0, 1.0]])
    )
    np.testing.assert_array_equal(before[1], after[1])
    # worker 0 alone: p = [1, 2, -3] + [-0.5, 0.5, 0], so 1.5 and -3 are said
    np.testing.assert_array_equal(update, [[-1.5, -1.5, 3.0]] * 2)
    np.testing.assert_array_equal(after[0], [-1.0, 1.0, 0.0])
    np.testing.assert_array_equal(num_abstained, [1, 1])


def test_a_dtype_that_is_no_float_is_refused():
    with pytest.raises(ValueError, match="down_dtype must be a floating dtype"):
        signax.one_bit_sgd(0.1, down_dtype="int8")
