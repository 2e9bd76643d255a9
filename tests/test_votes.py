"""The network links: votes and means against the NumPy reference, on every wire and mapping."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import reference
import signax
from workers import WORKERS, Mapped, map_workers, run_python

WIRES = ("packed", "lanes", "float32")
NUM_WORKERS = (1, 2, 3, 5, 8)
SHAPES = {"kernel": (3, 3), "bias": (5,), "word": (8,), "scalar": ()}
SIZE = 23  # coordinates in SHAPES: no multiple of 8, nor of any M but 1

Rows = np.ndarray  # [M, SIZE]: the workers' updates, flat


def to_tree(rows: Rows) -> dict[str, jax.Array]:
    """Flat rows as trees of SHAPES; optax and JAX order a dict by its keys, and so do we."""
    tree, start = {}, 0
    for name in sorted(SHAPES):
        stop = start + math.prod(SHAPES[name])
        tree[name] = jnp.asarray(rows[:, start:stop]).reshape(-1, *SHAPES[name])
        start = stop
    return tree


def to_rows(tree: dict[str, jax.Array]) -> Rows:
    return np.concatenate([np.reshape(tree[k], (len(tree[k]), -1)) for k in sorted(tree)], axis=1)


def all_votes(axis_name: Any, wires: tuple[str, ...] = WIRES, **kwargs: Any) -> dict[str, Any]:
    links = {"majority": signax.majority_vote, "average": signax.average_signs}
    return {
        f"{name}/{ties}/{wire}": link(axis_name, ties=ties, wire=wire, **kwargs)
        for name, link in links.items()
        for ties in ("zero", "random")
        for wire in wires
    }


def run_votes(axis_name: Any, wires: tuple[str, ...], updates: Any, step: jax.Array) -> Any:
    """Every link's (update, num_abstained) on this worker."""
    out = {}
    for name, tx in all_votes(axis_name, wires).items():
        state = tx.init(updates)._replace(count=step)
        update, new = tx.update(updates, state)
        out[name] = (update, new.num_abstained)
    return out


@functools.cache
def on_workers(mapping: str, num_workers: int, wires: tuple[str, ...] = WIRES):
    return map_workers(mapping, functools.partial(run_votes, WORKERS, wires), num_workers)


def vote(mapping: str, rows: Rows, step: int = 0, wires: tuple[str, ...] = WIRES) -> dict[str, Any]:
    """{"majority/zero/packed": (rows [M, d], num_abstained [M]), ...}"""
    num_workers = len(rows)
    steps = jnp.full(num_workers, step, jnp.int32)
    out = on_workers(mapping, num_workers, wires)(to_tree(rows), steps)
    return {name: (to_rows(tree), np.asarray(n)) for name, (tree, n) in out.items()}


def ballots(num_workers: int, faults: dict[int, float] | None = None, seed: int = 0) -> Rows:
    """Rows of values whose signs are +, - and 0 with many ties; faults fill a whole or part row."""
    rng = np.random.default_rng(seed)
    values = np.array([-3e38, -2.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e38], np.float32)
    rows = rng.choice(values, (num_workers, SIZE))
    rows[:, 0] = 1.0  # nobody is all zero by chance
    rows[:, 1] = np.where(np.arange(num_workers) % 2, -1.0, 1.0)  # a tie at even M
    rows[:, 2] = 0.0
    for worker, value in (faults or {}).items():
        if value == 0:
            rows[worker] = 0.0
        else:
            rows[worker, 3 + worker] = value
    return rows


def fault_patterns(num_workers: int) -> dict[str, dict[int, float]]:
    patterns = {
        "nobody": {},
        "nan": {0: np.nan},
        "last inf": {num_workers - 1: -np.inf},
        "zero": {num_workers // 2: 0.0},
        "everyone": dict.fromkeys(range(num_workers), np.nan),
        "everyone zero": dict.fromkeys(range(num_workers), 0.0),
    }
    if num_workers >= 5:
        patterns["three kinds"] = {0: np.inf, 2: 0.0, 4: np.nan}
    return patterns


def has_something_to_say(rows: Rows) -> np.ndarray:
    return reference.is_voter(rows) & (rows != 0).any(axis=1)


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_votes_equal_the_reference_on_all_wires(mapped: Mapped, num_workers: int):
    for name, faults in fault_patterns(num_workers).items():
        rows = ballots(num_workers, faults)
        voters = rows[has_something_to_say(rows)]
        expected = {
            "majority": reference.majority_vote(voters),
            # one division in float32, as of two integers: correctly rounded
            "average": reference.average_signs(voters).astype(np.float32),
        }
        out = vote(mapped.name, rows)
        for link, want in expected.items():
            for wire in WIRES:
                got, num_abstained = out[f"{link}/zero/{wire}"]
                np.testing.assert_array_equal(got, np.tile(want, (num_workers, 1)), err_msg=name)
                np.testing.assert_array_equal(num_abstained, num_workers - len(voters))


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_coins_are_the_same_on_all_wires_replicas_and_mappings(mapped: Mapped, num_workers: int):
    for faults in fault_patterns(num_workers).values():
        rows = ballots(num_workers, faults)
        out = vote(mapped.name, rows, step=7)
        simulated = vote("vmap", rows, step=7)
        for link in ("majority", "average"):
            want = simulated[f"{link}/random/packed"][0][0]
            for wire in WIRES:
                got, num_abstained = out[f"{link}/random/{wire}"]
                np.testing.assert_array_equal(got, np.tile(want, (num_workers, 1)))
                silent = num_workers - has_something_to_say(rows).sum()
                np.testing.assert_array_equal(num_abstained, silent)


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_coins_decide_nothing_but_zeros_and_ties(num_workers: int):
    for faults in fault_patterns(num_workers).values():
        rows = ballots(num_workers, faults)
        voters = rows[has_something_to_say(rows)]
        out = vote("vmap", rows)
        majority, mean = out["majority/random/packed"][0][0], out["average/random/packed"][0][0]
        if len(voters) == 0:
            assert not majority.any()
            assert not mean.any()
            continue
        num_zeros = (voters == 0).sum(axis=0)
        total = reference.sum_of_signs(voters)
        assert set(np.unique(majority)) <= {-1.0, 1.0}
        is_sure = np.abs(total) > num_zeros
        np.testing.assert_array_equal(majority[is_sure], np.sign(total)[is_sure])
        # the sum of signs moves by one for each zero, up or down
        moved = mean * len(voters) - total
        assert (np.abs(moved) <= num_zeros + 1e-5).all()
        np.testing.assert_allclose(np.round(moved - num_zeros) % 2, 0)


# Coins. Hoeffding for n fair coins in {-1, +1}, both sides, wrong once in 1e9:
# |mean| <= sqrt(2 log(2e9) / n), which is 0.0327 at n = 40,000. The product of two independent fair
# coins is a fair coin, so the same bound tests independence.
NUM_COINS = 40_000


def assert_fair(coins: np.ndarray):
    assert set(np.unique(coins)) == {-1.0, 1.0}
    assert abs(coins.mean()) <= math.sqrt(2 * math.log(2e9) / coins.size)


def assert_independent(a: np.ndarray, b: np.ndarray):
    assert_fair(np.asarray(a) * np.asarray(b))


@functools.cache
def mean_with_coins(num_workers: int, axis_name: str = WORKERS):
    """jitted (rows [M, d], step, key) -> (majority, average) of the first replica."""

    def votes(row, step, key):
        out = []
        for link in (signax.majority_vote, signax.average_signs):
            tx = link(axis_name, ties="random", key=key, wire="float32")
            out.append(tx.update(row, tx.init(row)._replace(count=step))[0])
        return tuple(out)

    mapped = jax.vmap(votes, (0, None, None), axis_name=axis_name)
    return jax.jit(lambda *args: jax.tree.map(lambda x: x[0], mapped(*args)))


def tie_coins(step: int = 0, key: int = 0) -> np.ndarray:
    """Two workers disagree about every coordinate: the majority is the tie's coin."""
    rows = jnp.tile(jnp.array([[1.0], [-1.0]]), NUM_COINS)
    return np.asarray(mean_with_coins(2)(rows, jnp.int32(step), key)[0])


def own_coins(worker: int, step: int = 0, key: int = 0) -> np.ndarray:
    """One of three workers says zero (but once), the others +1: the mean shows its coin."""
    rows = jnp.ones((3, NUM_COINS)).at[worker, 1:].set(0.0)
    mean = np.asarray(mean_with_coins(3)(rows, jnp.int32(step), key)[1])
    return np.round(3 * mean - 2)[1:]


def test_coins_are_fair_and_neighbours_independent():
    for coins in (tie_coins(), own_coins(0), own_coins(2)):
        assert_fair(coins)
        for lag in (1, 2, 7, 8, 64):
            assert_independent(coins[lag:], coins[:-lag])


def test_coins_differ_by_step_key_and_worker():
    assert_independent(tie_coins(step=0), tie_coins(step=1))
    assert_independent(tie_coins(key=0), tie_coins(key=1))
    assert_independent(own_coins(0, step=0), own_coins(0, step=1))
    assert_independent(own_coins(0, key=0), own_coins(0, key=1))
    assert_independent(own_coins(0), own_coins(1))
    assert_independent(own_coins(1), own_coins(2))
    np.testing.assert_array_equal(tie_coins(step=3), tie_coins(step=3))


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_the_coin_of_a_tie_is_no_workers_own_coin(worker: int):
    assert_independent(tie_coins()[1:], own_coins(worker))


def test_votes_over_two_parts_of_a_tree_have_independent_coins():
    rows = jnp.tile(jnp.array([[1.0], [-1.0]]), NUM_COINS)

    def vote(row):
        tx = signax.majority_vote(WORKERS, ties="random", wire="float32")
        parts = ({"a": row}, {"b": row})
        return [jax.tree.leaves(tx.update(p, tx.init(p))[0])[0] for p in parts]

    a, b = jax.vmap(vote, axis_name=WORKERS)(rows)
    assert_independent(a[0], b[0])


@pytest.mark.parametrize("num_workers", [127, 128, 255, 256, 1000])
def test_no_count_wraps_at_any_number_of_workers(num_workers: int):
    half = num_workers // 2
    rows = np.ones((num_workers, SIZE), np.float32)
    rows[:, 1] = -1.0
    rows[:half, 2] = -1.0  # a tie at even M, one vote more for + at odd M
    rows[: half + 1, 3] = -1.0
    rows[:, 4] = 0.0
    rows[5, 5] = 0.0
    rows[6:, 6] = 0.0
    out = vote("vmap", rows)
    for wire in WIRES:
        majority, mean = (out[f"{link}/zero/{wire}"] for link in ("majority", "average"))
        np.testing.assert_array_equal(majority[0][[0, -1]], [reference.majority_vote(rows)] * 2)
        expected = reference.average_signs(rows).astype(np.float32)
        np.testing.assert_array_equal(mean[0][[0, -1]], [expected] * 2)
        for link in ("majority", "average"):
            same = out[f"{link}/random/{wire}"][0]
            np.testing.assert_array_equal(same, out[f"{link}/random/packed"][0])
        np.testing.assert_array_equal(out[f"average/random/{wire}"][0][0, :4], expected[:4])


def test_voters_are_counted_beyond_a_byte():
    rows = ballots(300, {1: np.nan, 299: np.inf})
    rows[8:290, 3] = np.nan
    for link, (_, num_abstained) in vote("vmap", rows, wires=("packed", "float32")).items():
        np.testing.assert_array_equal(num_abstained, 284, err_msg=link)


@functools.cache
def on_two_levels(how: str):
    """The votes over the tuple of axes, 2 hosts with 4 devices each; rows in and out are [8, ...]."""
    axes = ("hosts", "devices")
    fn = functools.partial(run_votes, axes, WIRES)
    if how == "nested vmap":
        nested = jax.jit(jax.vmap(jax.vmap(fn, axis_name="devices"), axis_name="hosts"))
        split = lambda x: x.reshape(2, 4, *x.shape[1:])  # noqa: E731
        join = lambda x: x.reshape(8, *x.shape[2:])  # noqa: E731
        return lambda *rows: jax.tree.map(join, nested(*jax.tree.map(split, rows)))
    is_checked = how == "shard_map"

    def row(*args):
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: signax.as_varying(x, axes)[None], out)

    mesh = jax.make_mesh((2, 4), axes, (AxisType.Auto, AxisType.Auto))
    spec = PartitionSpec(axes)
    return jax.jit(
        jax.shard_map(row, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=is_checked)
    )


@pytest.mark.parametrize("how", ["shard_map", "shard_map without check", "nested vmap"])
def test_a_tuple_of_axes_votes_like_one_axis_of_all_workers(how: str):
    rows = ballots(8, {3: np.nan})
    out = on_two_levels(how)(to_tree(rows), jnp.full(8, 5, jnp.int32))
    for name, (expected, num_abstained) in vote("vmap", rows, step=5).items():
        np.testing.assert_array_equal(to_rows(out[name][0]), expected, err_msg=name)
        np.testing.assert_array_equal(out[name][1], num_abstained)


@pytest.mark.parametrize("how", ["shard_map", "nested vmap"])
def test_hosts_vote_on_the_exact_mean_of_their_own_workers(how: str):
    tx = optax.chain(signax.average_gradients("local"), signax.majority_vote("hosts"))
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, (8, 21)).astype(np.float32)
    rows[5, 0] = np.nan  # its host's mean is over the other
    rows[6:, 1] = np.inf  # this host abstains
    update = lambda g: tx.update(g, tx.init(g))[0]  # noqa: E731
    if how == "nested vmap":
        nested = jax.vmap(jax.vmap(update, axis_name="local"), axis_name="hosts")
        out = np.asarray(jax.jit(nested)(jnp.asarray(rows.reshape(4, 2, -1)))).reshape(8, -1)
    else:
        mesh = jax.make_mesh((4, 2), ("hosts", "local"), (AxisType.Auto, AxisType.Auto))
        rows_spec = PartitionSpec(("hosts", "local"))
        # replicated out_specs under the default check: the compiler has proved it
        fn = lambda row: update(row[0])  # noqa: E731
        specs = {"in_specs": rows_spec, "out_specs": PartitionSpec()}
        out = jax.jit(jax.shard_map(fn, mesh=mesh, **specs))(jnp.asarray(rows))[None]
    with np.errstate(invalid="ignore"):
        means = np.stack([rows[0:2].mean(0), rows[2:4].mean(0), rows[4]])
    np.testing.assert_array_equal(out, np.tile(reference.majority_vote(means), (len(out), 1)))


@pytest.mark.parametrize("num_workers", [1, 5, 8])
def test_average_gradients_is_the_mean_over_finite_workers(mapped: Mapped, num_workers: int):
    tx = signax.average_gradients(WORKERS)
    rows = np.random.default_rng(1).integers(-9, 9, (num_workers, 6)).astype(np.float32)
    fn = map_workers(mapped.name, lambda g: tx.update(g, tx.init(g)), num_workers)
    for silent in ([], [0], list(range(num_workers))):
        rows[silent, 2] = np.nan
        finite = rows[reference.is_voter(rows)]
        mean, state = fn(jnp.asarray(rows))
        expected = finite.sum(0) / np.float32(max(len(finite), 1))
        np.testing.assert_array_equal(mean, np.tile(expected, (num_workers, 1)))
        np.testing.assert_array_equal(state.num_abstained, len(silent))


def test_one_worker_without_a_network_has_the_majority():
    rows = ballots(1)
    for name, (update, num_abstained) in jax.jit(
        functools.partial(run_votes, None, WIRES), static_argnums=()
    )(jax.tree.map(lambda x: x[0], to_tree(rows)), jnp.int32(0)).items():
        expected = vote("vmap", rows)[name][0][0]
        flat = np.concatenate([np.ravel(update[k]) for k in sorted(update)])
        np.testing.assert_array_equal(flat, expected, err_msg=name)
        assert int(num_abstained) == 0


def test_the_update_leaves_every_link_typed_as_replicated():
    mesh = signax.make_worker_mesh(8)
    links = {**all_votes(WORKERS), "dense": signax.average_gradients(WORKERS)}
    updates = {"a": jnp.ones((8, 3)), "b": jnp.ones(8)}

    def fn(rows):
        g = jax.tree.map(lambda x: x[0], rows)
        return {name: tx.update(g, tx.init(g)) for name, tx in links.items()}

    spec = PartitionSpec(WORKERS)
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    jax.eval_shape(mapped, updates)  # an error if the compiler could not prove it


def test_an_empty_tree_passes_every_link(mapped: Mapped):
    links = {**all_votes(WORKERS), "dense": signax.average_gradients(WORKERS)}

    def fn(_):
        empty: list[Any] = [{}, {"none": None, "masked": optax.MaskedNode()}, jnp.zeros((0,))]
        for tx in links.values():
            for tree in empty:
                update, state = tx.update(tree, tx.init(tree))
                assert jax.tree.structure(update) == jax.tree.structure(tree)
                assert state.count.shape == ()
        return jnp.zeros(())

    if mapped.name == "shard_map":  # nothing in an array of no coordinates varies: mark it
        links = {name: tx for name, tx in links.items() if "dense" not in name}
        empty_rows = jnp.zeros((2, 0))
        update = mapped(lambda g: links["majority/zero/packed"].update(
            g, links["majority/zero/packed"].init(g))[0], empty_rows)
        assert update.shape == (2, 0)
    else:
        mapped(fn, jnp.zeros(2))


def test_a_sender_of_nan_never_changes_a_vote():
    # The seven honest workers alone, and with an eighth that says NaN: the same update.
    rows = ballots(8, {7: np.nan})
    honest = reference.majority_vote(rows[:7])
    np.testing.assert_array_equal(vote("vmap", rows)["majority/zero/packed"][0][0], honest)


def test_nonfinite_updates_propagate_or_raise_when_asked_to():
    rows = jnp.asarray(ballots(3, {1: np.inf}))
    clean = jnp.asarray(ballots(3))
    for link in (signax.majority_vote, signax.average_signs, signax.average_gradients):
        tx = link(WORKERS, on_nonfinite="propagate")
        fn = jax.jit(jax.vmap(lambda g, tx=tx: tx.update(g, tx.init(g))[0], axis_name=WORKERS))
        assert np.isnan(fn(rows)).all()
        assert np.isfinite(fn(clean)).all()
        with pytest.raises(ValueError, match="unknown on_nonfinite 'stop'"):
            link(WORKERS, on_nonfinite="stop")


ERROR = """
import jax, jax.numpy as jnp, signax
tx = signax.majority_vote("workers", on_nonfinite="error")
fn = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="workers"))
fn(jnp.ones((3, 2))).block_until_ready()
print("clean", flush=True)
fn(jnp.array([[1.0, 2.0], [jnp.nan, 1.0], [1.0, 1.0]])).block_until_ready()
jax.effects_barrier()
"""


def test_on_nonfinite_error_raises_only_at_a_step_with_one():
    done = run_python(ERROR, timeout=60, check=False)
    assert done.stdout.startswith("clean")
    assert done.returncode != 0
    assert "FloatingPointError" in done.stderr
    assert "1 workers" in done.stderr
