"""What leaves a worker: noisy signs, the scales of blocks, running maxima."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_family
import signax
from chance import Z
from daily import daily
from workers import WORKERS, Mapped, map_workers, worker_mesh


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


NUM_STEPS = 20

NUM_DRAWS = 200_000


def assert_mean(draws: np.ndarray, mean: float, deviation: float):
    z = (draws.mean(dtype=np.float64) - mean) * math.sqrt(draws.size) / deviation
    assert abs(z) < Z, f"z = {z:.2f} for the mean {mean}"


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
    return jax.jit(tx.update)(g, tx.init(g)._replace(count=jnp.int32(step)))[0]


@pytest.mark.parametrize("norm", daily(["l2", "linf"], ["linf"]))
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
@pytest.mark.parametrize("scope", daily(["global", "leaf", 2], [2]))
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


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_a_number_for_a_scale_is_sto_sign(num_workers: int):
    """Jin et al. 2020: P(+1) = (b + g) / (2b); over 20 steps, M workers, the sum of their signs.

    A z-test of mean and variance, from seeds and steps that are fixed: P(|N| > 6.5) = 8e-11.
    """
    b, num_copies = 2.0, 4000
    rows = np.random.default_rng(num_workers).uniform(-2, 2, (num_workers, 3))
    rows = rows.astype(np.float32)
    tx = signax.ssdm(1.0, 0.0, axis_name=WORKERS, scale=b, wire="float32")

    def worker(g):
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
