"""The bits that a worker sends, read from compiled HLO, are those of the formula."""

import jax
import jax.numpy as jnp
import pytest

import signax
from daily import daily
from signax.wire import _cost, _hlo
from workers import WORKERS, worker_mesh

SIZE = 160_000
# A header and a few scalars, and the padding to a word for each of M workers.
SLACK = 0.01


def bits(tx, num_workers: int) -> float:
    mesh = worker_mesh(num_workers)
    step = signax.make_train_step(lambda x, b: jnp.mean((x[None] - b) ** 2), tx, mesh)
    state = signax.init_train_state(jnp.zeros(SIZE), tx, mesh)
    batch = jax.ShapeDtypeStruct((num_workers, SIZE), jnp.float32)
    return signax.wire_bits(step, state, batch, num_coordinates=SIZE).bits_per_coordinate


@pytest.mark.parametrize("num_workers", daily([2, 5, 8], [5]))
def test_a_majority_sends_one_or_two_bits_each_way(num_workers: int):
    share = (num_workers - 1) / num_workers
    random = signax.sign_sgd(0.1, axis_name=WORKERS, ties="random")
    assert bits(random, num_workers) == pytest.approx(2 * share, abs=SLACK)
    zero = signax.sign_sgd(0.1, axis_name=WORKERS)
    assert bits(zero, num_workers) == pytest.approx(4 * share, abs=SLACK)
    radix = signax.sign_sgd(0.1, axis_name=WORKERS, wire="radix")
    assert bits(radix, num_workers) == pytest.approx(3.2 * share, abs=SLACK)


@pytest.mark.parametrize("num_workers", daily([2, 5, 8], [5]))
def test_ssdm_sends_one_bit_up_and_the_count_down(num_workers: int):
    share = (num_workers - 1) / num_workers
    expected = (1 + num_workers.bit_length()) * share
    packed = signax.ssdm(0.1, axis_name=WORKERS)
    assert bits(packed, num_workers) == pytest.approx(expected, abs=SLACK)
    down = {2: 8 / 5, 5: 13 / 5, 8: 10 / 3}[num_workers]
    radix = signax.ssdm(0.1, axis_name=WORKERS, wire="radix")
    assert bits(radix, num_workers) == pytest.approx((1 + down) * share, abs=SLACK)


def test_dense_sgd_sends_64_bits():
    assert bits(signax.dense_sgd(0.1, axis_name=WORKERS), 8) == pytest.approx(56, abs=SLACK)


def test_the_formulas_are_those_of_the_table():
    assert _cost.majority_bits(8, "random") == 2 * 7 / 8
    assert _cost.majority_bits(8, "zero") == 4 * 7 / 8
    assert _cost.majority_bits(8, "zero", "radix") == 3.2 * 7 / 8
    assert _cost.average_signs_bits(8) == 5 * 7 / 8
    assert _cost.average_signs_bits(8, "radix") == pytest.approx((1 + 10 / 3) * 7 / 8)
    assert _cost.dense_bits(8) == 56


HLO = """
HloModule m

ENTRY %main (p: f32[64]) -> f32[256] {
  %p = f32[64]{0} parameter(0)
  %s = (f32[64]{0}, f32[64]{0}) all-reduce-start(f32[64]{0} %p), replica_groups={{0,1},{2,3}}
  %d = f32[64]{0} all-reduce-done((f32[64]{0}, f32[64]{0}) %s)
  ROOT %g = f32[256]{0} all-gather(f32[64]{0} %d), replica_groups=[1,4]<=[4], dimensions={0}
}
"""


def test_async_forms_count_once_and_both_forms_of_groups_are_read():
    reduce, gather = _hlo.read_collectives(HLO)
    assert reduce.kind == "all-reduce"
    assert reduce.groups == ((0, 1), (2, 3))
    assert reduce.bits == 2 * 1 / 2 * 64 * 32
    assert gather.kind == "all-gather"
    assert gather.groups == ((0, 1, 2, 3),)
    assert gather.bits == 3 * 64 * 32


def test_a_report_is_a_table_that_ends_in_sums_and_says_what_it_does_not_know():
    known = _hlo.Collective(
        "all-reduce", "f32", 1000, ((0, 1),), 32_000.0, scope="jit(step)/shard_map/loss/jit(f)"
    )
    unknown = _hlo.Collective(
        "all-gather", "u8", 16, ((0, 1), (2, 3, 4)), 768.0, times=3, exact=False, scope="vote/coins"
    )
    report = signax.WireReport((known, unknown), 1024)
    assert str(report).splitlines() == [
        "collective  operand     times  group  bits sent  scope",
        "all-reduce  f32[1,000]  1      2      32,000     loss",
        "all-gather  u8[16]      3      3      768 ?      vote/coins",
        "4 collectives, 32,768 bits sent per worker, 32 per coordinate (d = 1,024)",
        "? in a loop of unknown length (counted once) or under a branch (all are counted)",
    ]
    assert str(signax.WireReport((known,))).splitlines()[2:] == [
        "1 collectives, 32,000 bits sent per worker"
    ]


def test_the_floats_of_the_first_argument_are_counted_here_and_on_all_devices():
    mesh = worker_mesh(2)
    rows = jax.P(WORKERS)

    def fn(tree, x):  # one leaf is cut, one is whole, one is not used, one is no float
        return jax.lax.psum(jnp.sum(tree["cut"]) + tree["whole"][0] + x, WORKERS)

    specs = {"cut": rows, "whole": jax.P(), "unused": jax.P(), "count": jax.P()}
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=(specs, jax.P()), out_specs=jax.P())
    tree = {"cut": jnp.ones(60), "whole": jnp.ones(7), "unused": jnp.ones(3), "count": 5}
    report = signax.wire_bits(mapped, tree, jnp.ones(()))
    assert report.num_coordinates == 30 + 7 + 3
    assert report.whole == 60 + 7 + 3
    assert report.across(WORKERS, mesh).num_coordinates == 70
    told = signax.wire_bits(mapped, tree, jnp.ones(()), num_coordinates=11)
    assert told.across(WORKERS, mesh).num_coordinates == 11
    by_hand = signax.WireReport(report.collectives, 40)  # of whole arrays it knows nothing
    assert by_hand.across(WORKERS, mesh).num_coordinates == 40


def test_a_program_that_sends_nothing_says_so():
    report = signax.wire_bits(lambda x: x + 1, jnp.ones(3))
    assert str(report).startswith("no collectives")
    assert report.bits == report.bits_per_coordinate == 0


def test_bits_per_coordinate_need_to_know_how_many_there_are():
    count = lambda n: n + 1  # noqa: E731
    with pytest.raises(ValueError, match=r"^signax\.wire_bits: .*num_coordinates=d"):
        _ = signax.wire_bits(count, jnp.int32(0)).bits_per_coordinate
    assert signax.wire_bits(count, jnp.int32(0), num_coordinates=7).bits_per_coordinate == 0


def test_the_branches_of_a_warm_up_are_told_apart():
    tx = signax.warmup(
        5,
        signax.sign_sgd(0.1, axis_name="workers", ties="random"),
        dense=signax.dense_sgd(0.1, axis_name="workers"),
    )
    mesh = signax.make_worker_mesh(8)
    step = signax.make_train_step(lambda x, b: jnp.sum(x) * jnp.mean(b), tx, mesh)
    size = 64_000
    state = signax.init_train_state(jnp.zeros(size), tx, mesh)
    report = signax.wire_bits(step, state, jnp.ones(8))
    # On top of each: the mean loss and, where a vote runs, who votes (some hundred bits in all).
    rest = 1000 / size
    assert report.of_branch(0).bits_per_coordinate == pytest.approx(2 * 7 / 8, abs=rest)
    assert report.of_branch(1).bits_per_coordinate == pytest.approx(64 * 7 / 8, abs=rest)
    assert report.bits_per_coordinate == pytest.approx(66 * 7 / 8, abs=2 * rest)


def test_a_host_sends_the_bits_of_all_its_devices_whatever_their_number():
    for num_hosts in (2, 4):
        mesh = jax.make_mesh(
            (num_hosts, 8 // num_hosts), ("hosts", "devices"), (jax.sharding.AxisType.Auto,) * 2
        )
        tx = signax.majority_vote("hosts", ties="random")
        tx = signax.sharded(tx, jax.P("devices"))

        def vote(gradients, tx=tx):  # each device's own shard of its host's gradient
            return tx.update(gradients[0], tx.init(gradients))[0]

        rows = jax.P("hosts", "devices")
        on_shards = jax.shard_map(vote, mesh=mesh, in_specs=rows, out_specs=jax.P("devices"))
        gradients = jax.ShapeDtypeStruct((num_hosts, SIZE), jnp.float32)
        report = signax.wire_bits(on_shards, gradients, num_coordinates=SIZE)
        across = report.across("hosts", mesh)
        share = (num_hosts - 1) / num_hosts
        assert across.bits_per_coordinate == pytest.approx(2 * share, abs=SLACK)
        assert across.num_collectives == 2
        last = str(across).splitlines()[-1]
        assert last.startswith(
            f"2 collectives, {across.bits:,.0f} bits sent per place along 'hosts'"
        )
        assert last.endswith(" per coordinate (d = 160,000)")
        assert report.across("devices", mesh).bits < 2000  # flags: who votes, agreed in the host
    with pytest.raises(ValueError, match=r"^signax\.WireReport\.across: .* no axis 'rack'"):
        report.across("rack", mesh)
