"""What `track_votes` reports of a vote, counted again by hand."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from signax import _specs, diagnostics
from workers import WORKERS, Mapped, worker_mesh

VOTES = np.random.default_rng(3).choice([-1.0, -0.1, 0.0, 0.2, 3.0], (8, 37)).astype(np.float32)


def by_hand(votes: np.ndarray) -> dict[str, np.ndarray]:
    """What `track_votes` should see, counted in NumPy."""
    voting = np.isfinite(votes).all(axis=1) & (votes != 0).any(axis=1)
    signs = np.where(voting[:, None], np.sign(votes), 0.0)
    total = np.nansum(signs, axis=0)
    agree, against = ((signs * np.sign(total) == s).sum(axis=1) for s in (1, -1))
    own = agree / np.maximum(agree + against, 1)
    return {
        "margin": np.mean(np.abs(total)) / voting.sum(),
        "tie_share": np.mean(total == 0),
        "agreement": np.mean(own[voting]),
        "own_agreement": np.where(voting, own, np.nan),
        "abstained_share": 1 - voting.mean(),
    }


@pytest.mark.parametrize("link", [signax.majority_vote, signax.average_signs])
def test_tracking_counts_what_a_count_by_hand_finds(mapped: Mapped, link: Any):
    votes = VOTES.copy()
    votes[2, 5] = np.nan  # worker 2 abstains
    inner = link(WORKERS, ties="zero")
    tx = diagnostics.track_votes(inner, axis_name=WORKERS)

    def update(g):
        tree = {"a": g[:30].reshape(5, 6), "b": g[30:]}
        updates, state = tx.update(tree, tx.init(tree))
        return updates, state, inner.update(tree, inner.init(tree))[0]

    updates, state, plain = mapped(update, jnp.asarray(votes))
    jax.tree.map(np.testing.assert_array_equal, updates, plain)
    for name, expected in by_hand(votes).items():
        found = getattr(state, name)
        np.testing.assert_allclose(found, np.broadcast_to(expected, 8), rtol=1e-6, err_msg=name)
    assert set(np.asarray(state.inner_state.num_abstained)) == {1}


def test_running_means_are_plain_means_first_and_then_forget():
    tx = diagnostics.track_votes(signax.majority_vote(None), axis_name=None, decay=0.75)
    state, update = tx.init(jnp.zeros(4)), jax.jit(tx.update)
    assert np.isnan(state.margin)
    margins = []
    for num_zero in (0, 4, 2, 1, 0, 0):  # the second step is all zero: nobody votes
        g = jnp.where(jnp.arange(4) < num_zero, 0.0, -1.0)
        state = update(g, state)[1]
        margins.append(float(state.margin))
    # Margins of the steps 1, -, 1/2, 3/4, 1, 1: means of one, two and three, then weight 1/4.
    expected = [1, 1, 3 / 4, 3 / 4, 13 / 16]
    expected.append(expected[-1] * 3 / 4 + 1 / 4)
    np.testing.assert_allclose(margins, expected, rtol=1e-6)
    assert state.count == 5
    assert state.own_agreement == 1
    assert 0 < state.abstained_share < 1


def tracked_signum(**kwargs: Any) -> optax.GradientTransformation:
    vote = signax.majority_vote(WORKERS, **kwargs)
    return optax.chain(
        optax.ema(0.9, debias=False),
        diagnostics.track_votes(vote, axis_name=WORKERS),
        optax.scale(-0.1),
    )


def test_only_a_workers_own_agreement_is_its_own_in_the_layout():
    specs = signax.state_specs(tracked_signum(), jnp.zeros(3), 8)
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=_specs.is_spec)
    own = {jax.tree_util.keystr(path) for path, spec in leaves if spec != jax.P()}
    assert own == {"[0].ema", "[1].own_agreement"}


@pytest.mark.parametrize("make", [signax.make_train_step, signax.simulate_train_step])
def test_a_training_step_logs_the_votes(make: Any):
    mesh = signax.make_worker_mesh(4) if make is signax.make_train_step else 4
    tx = tracked_signum()
    step = make(lambda x, target: jnp.mean((x[None] - target) ** 2), tx, mesh)
    state = signax.init_train_state(jnp.zeros(5), tx, mesh)
    target = jnp.broadcast_to(jnp.array([1.0, 1.0, 1.0, -1.0])[:, None], (4, 5))
    for _ in range(2):
        state, _ = step(state, target)
    assert optax.tree.get(state.opt_state, "margin") == 0.5
    assert optax.tree.get(state.opt_state, "agreement") == 0.75
    np.testing.assert_array_equal(optax.tree.get(state.opt_state, "own_agreement"), [1, 1, 1, 0])


def test_tracking_sends_one_all_reduce_of_four_scalars_more():
    mesh, d = worker_mesh(8), 1000
    reports = []
    for tx in (signax.majority_vote(WORKERS), None):
        tx = tx or diagnostics.track_votes(signax.majority_vote(WORKERS), axis_name=WORKERS)
        step = signax.make_train_step(lambda x, b: jnp.mean((x[None] - b) ** 2), tx, mesh)
        state = signax.init_train_state(jnp.zeros(d), tx, mesh)
        reports.append(signax.wire_bits(step, state, jnp.zeros((8, d))))
    plain, tracked = reports
    assert tracked.bits - plain.bits == 2 * 4 * 32 * 7 / 8
    assert tracked.num_collectives - plain.num_collectives <= 1  # XLA may join it with another


def test_ties_decided_by_a_coin_are_not_seen():
    votes = jnp.array([[1.0, 1.0], [-1.0, 1.0]])

    def shares(ties):
        tx = diagnostics.track_votes(signax.majority_vote(WORKERS, ties=ties), axis_name=WORKERS)
        update = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[1], axis_name=WORKERS))
        state = update(votes)
        return float(state.tie_share[0]), float(state.margin[0])

    assert shares("zero") == (0.5, 0.5)
    assert shares("random") == (0.0, 0.5)  # the margin is seen all the same


@pytest.mark.parametrize("num_workers", range(1, 12))
def test_agreement_by_chance_is_that_of_all_ways_to_toss_coins(num_workers: int):
    coins = np.array(list(itertools.product([1, -1], repeat=num_workers)))
    majority = np.sign(coins.sum(axis=1, keepdims=True))
    decided = (majority != 0)[:, 0]
    expected = np.mean((coins == majority)[decided])
    chance = diagnostics.agreement_by_chance(num_workers)
    assert float(chance) == pytest.approx(expected, rel=1e-6)


def test_tracking_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        diagnostics.track_votes(signax.majority_vote(None), axis_name=None, decay=1.0)
    tx = diagnostics.track_votes(signax.majority_vote(None), axis_name=WORKERS)
    with pytest.raises(ValueError, match="no axis named 'workers' is bound"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_an_empty_tree_passes_the_tracker(mapped: Mapped):
    tx = diagnostics.track_votes(signax.majority_vote(WORKERS), axis_name=WORKERS)
    state = mapped(lambda: tx.update({}, tx.init({}))[1], num_workers=2)
    assert np.isnan(state.margin).all()
