"""The network links: votes and means against the NumPy reference, on every wire and mapping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import reference
import signax
from ballots import (
    SIMULATED,
    all_votes,
    ballots,
    coins_within_bounds,
    fault_patterns,
    has_something_to_say,
    run_votes,
    to_rows,
    to_tree,
    vote,
)
from daily import daily
from signax import _rules
from workers import MAPPINGS, WORKERS, Mapped, map_workers, run_python

pytestmark = pytest.mark.machine_code


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_votes_equal_the_reference_on_all_wires_replicas_and_mappings(num_workers: int):
    # One compiled program per mapping; the slow wires on an odd and an even number of workers.
    some = ("lanes", "packed", "radix") if num_workers in (3, 8) else ("packed", "radix")
    wires = {"vmap": ("float32", *some), "pmap": some, "shard_map": some}
    for name, faults in fault_patterns(num_workers).items():
        rows = ballots(num_workers, faults)
        voters = rows[has_something_to_say(rows)]
        expected = {
            "majority/zero": reference.majority_vote(voters),
            # one division in float32, as of two integers: correctly rounded
            "average/zero": reference.average_signs(voters).astype(np.float32),
            **coins_within_bounds(voters, vote("vmap", rows, wires=wires["vmap"])),
        }
        for mapping in MAPPINGS:
            for link, (got, num_abstained) in vote(mapping, rows, wires=wires[mapping]).items():
                want = np.tile(expected[link.rpartition("/")[0]], (num_workers, 1))
                np.testing.assert_array_equal(got, want, err_msg=f"{mapping} {link} {name}")
                np.testing.assert_array_equal(num_abstained, num_workers - len(voters))


@functools.cache
def simulated(link: str, num_workers: int):
    """jitted rows [M, d] -> (updates [M, d], num_abstained [M]) of one of `all_votes`."""
    tx = all_votes(WORKERS)[link]

    def fn(row):
        update, state = tx.update(row, tx.init(row))
        return update, state.num_abstained

    return map_workers("vmap", fn, num_workers)


MANY = [
    (127, "average/zero/lanes"),
    (128, "average/zero/packed"),
    (255, "majority/random/packed"),
    (255, "majority/zero/radix"),
    (256, "majority/zero/float32"),
]
EACH = [
    (num_workers, link)
    for num_workers in (127, 128, 255, 256, 1000)
    for _, link in MANY
    if num_workers % 2 or "zero" in link  # a coin decides no tie here
]


@pytest.mark.parametrize(("num_workers", "link"), daily(EACH, MANY))
def test_no_count_wraps_at_any_number_of_workers(num_workers: int, link: str):
    half = num_workers // 2
    rows = np.ones((num_workers, 10), np.float32)
    rows[:, 1] = -1.0
    rows[:half, 2] = -1.0  # a tie at even M, one vote more for + at odd M
    rows[: half + 1, 3] = -1.0
    if "zero" in link:  # no coins
        rows[:, 4] = 0.0
        rows[5, 5] = 0.0
        rows[6:, 6] = 0.0
    expected = {
        "majority": reference.majority_vote(rows),
        "average": reference.average_signs(rows).astype(np.float32),
    }[link.partition("/")[0]]
    update, num_abstained = simulated(link, num_workers)(jnp.asarray(rows))
    np.testing.assert_array_equal(update, np.tile(expected, (num_workers, 1)))
    assert not num_abstained.any()


@pytest.mark.parametrize("link", ["majority/random/packed", "average/zero/lanes"])
def test_voters_are_counted_beyond_a_byte(link: str):
    num_workers = 255 if "packed" in link else 1000
    rows = np.ones((num_workers, 10), np.float32)
    for num_silent in (1, 200, num_workers - 1, num_workers):
        rows[:num_silent, 3] = np.nan
        update, num_abstained = simulated(link, num_workers)(jnp.asarray(rows))
        np.testing.assert_array_equal(num_abstained, num_silent)
        np.testing.assert_array_equal(update, float(num_silent < num_workers))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 8, 15])
@pytest.mark.parametrize("ties", ["random", "zero"])
def test_every_count_of_any_number_of_workers_is_decoded_to_the_mean(
    num_workers: int, ties: _rules.Ties
):
    """Few counts are looked up and many computed, to the same bits."""
    most = num_workers if ties == "random" else 2 * num_workers
    counts = np.arange(most + 1)
    planes = [signax.pack_bits((counts >> k) & 1) for k in range(most.bit_length())]
    total = 2 * counts - num_workers if ties == "random" else counts - num_workers
    decode = jax.jit(_rules.AVERAGE[ties].decode, static_argnums=(1, 2, 4))
    mean = decode(planes, counts.size, jnp.float32, jnp.int32(num_workers), num_workers)
    np.testing.assert_array_equal(mean, total.astype(np.float32) / np.float32(num_workers))


@pytest.mark.parametrize("num_workers", [1, 7, 41, 1000, 4095])
def test_a_mean_of_signs_is_rounded_alike_in_every_program(num_workers: int):
    # XLA turns x / scalar into x * (1 / scalar), and 3 * (1 / 7) is not 3 / 7 in float32.
    totals = np.arange(-num_workers, num_workers + 1)
    expected = totals.astype(np.float32) / np.float32(num_workers)
    mean = functools.partial(_rules.mean_over_voters, dtype=jnp.float32)
    for voters in (jnp.int32(num_workers), jnp.full(totals.shape, num_workers, jnp.int32)):
        np.testing.assert_array_equal(jax.jit(mean)(jnp.asarray(totals), voters), expected)
        np.testing.assert_array_equal(mean(jnp.asarray(totals), voters), expected)


@functools.cache
def on_two_levels(how: str):
    """The votes over two axes, 2 hosts with 4 devices each; rows in and out are [8, ...]."""
    axes = ("hosts", "devices")
    fn = functools.partial(run_votes, axes, ("packed",))
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


@pytest.mark.parametrize(
    "how", daily(["shard_map", "shard_map without check", "nested vmap"], ["shard_map"])
)
def test_a_tuple_of_axes_votes_like_one_axis_of_all_workers(how: str):
    rows = ballots(8, {3: np.nan})
    out = on_two_levels(how)(to_tree(rows), jnp.full(8, 5, jnp.int32))
    flat = vote("vmap", rows, step=5, wires=SIMULATED)
    for name, (expected, num_abstained) in flat.items():
        name = name.replace("float32", "packed")
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
        # one division, perhaps as a product with 1 / M: two roundings of 2^-24
        np.testing.assert_allclose(mean, np.tile(expected, (num_workers, 1)), rtol=2.5 * 2.0**-24)
        np.testing.assert_array_equal(state.num_abstained, len(silent))


def test_one_worker_without_a_network_has_the_majority():
    rows = ballots(1)
    fn = jax.jit(functools.partial(run_votes, None, SIMULATED))
    out = fn(jax.tree.map(lambda x: x[0], to_tree(rows)), jnp.int32(0))
    for name, (expected, _) in vote("vmap", rows, wires=SIMULATED).items():
        update, num_abstained = jax.tree.map(lambda x: x[None], out[name])
        np.testing.assert_array_equal(to_rows(update), expected, err_msg=name)
        assert int(num_abstained[0]) == 0


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


@pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
def test_an_empty_tree_and_empty_leaves_pass_every_link(mapping: str):
    links = {**all_votes(WORKERS), "dense": signax.average_gradients(WORKERS)}

    def fn(worker, rows):
        del worker
        out = []
        for tx in links.values():
            for tree in ({}, {"none": None, "masked": optax.MaskedNode()}, rows):
                update, state = tx.update(tree, tx.init(tree))
                assert jax.tree.structure(update) == jax.tree.structure(tree)
                out.append((update, state))
        return out

    empty = {"a": jnp.zeros((2, 0)), "b": jnp.zeros((2, 3, 0, 2))}
    out = map_workers(mapping, fn, 2)(jnp.arange(2), empty)
    for update, _ in out:
        assert all(x.size == 0 for x in jax.tree.leaves(update))
    assert all((state.count == 1).all() for _, state in out)


def test_nonfinite_updates_propagate_or_raise_when_asked_to():
    clean = jnp.array([[1.0, 0.0, -2.0], [3.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    rows = clean.at[1, 2].set(jnp.inf)
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
    assert "in the updates of 1 worker(s)" in done.stderr
