"""The reader of HLO text, on text: every kind of collective, loops, branches, forms of groups."""

import pytest

from signax.wire import _hlo

GROUPS = "replica_groups={{0,1,2,3}}"
SENT = {  # of 64 float32 by one of 4 workers
    "all-reduce": 2 * 2048 * 3 / 4,
    "all-gather": 2048 * 3,
    "reduce-scatter": 2048 * 3 / 4,
    "all-to-all": 2048 * 3 / 4,
    "collective-permute": 2048,
    "collective-broadcast": 2048,
}


def module(*lines: str, others: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return (
        "HloModule m, num_partitions=4\n\n"
        f"{others}\nENTRY %main (p: f32[64]) -> f32[64] {{\n"
        f"  %p = f32[64]{{0}} parameter(0)\n{body}\n}}\n"
    )


@pytest.mark.parametrize("kind", SENT)
def test_what_a_worker_sends_is_known_for_each_kind(kind: str):
    (found,) = _hlo.read_collectives(module(f"%r = f32[64]{{0}} {kind}(%p), {GROUPS}"))
    assert (found.kind, found.dtype, found.elements, found.group_size) == (kind, "f32", 64, 4)
    assert found.bits == SENT[kind]
    assert (found.times, found.exact, found.branch) == (1, True, None)


def test_of_a_ragged_all_to_all_only_what_is_sent_counts():
    line = f"%r = f32[64]{{0}} ragged-all-to-all(%p, %p, %p), {GROUPS}"
    (found,) = _hlo.read_collectives(module(line))
    assert found.elements == 64
    assert found.bits == SENT["all-to-all"]


def test_a_bool_travels_as_a_byte_and_the_scopes_are_kept():
    line = f'%r = pred[64]{{0}} all-gather(%p), {GROUPS}, metadata={{op_name="step/vote"}}'
    text = module(line).replace("f32[64]{0} parameter", "pred[64]{0} parameter")
    (found,) = _hlo.read_collectives(text)
    assert (found.dtype, found.bits, found.scope) == ("pred", 64 * 8 * 3, "step/vote")


def test_without_groups_all_devices_talk():
    (found,) = _hlo.read_collectives(module("%r = f32[64]{0} all-gather(%p)"))
    assert found.groups == ((0, 1, 2, 3),)


BODY = f"""%body (b: f32[64]) -> f32[64] {{
  %b = f32[64]{{0}} parameter(0)
  ROOT %s = f32[64]{{0}} all-reduce(%b), {GROUPS}
}}
"""


@pytest.mark.parametrize(
    ("trips", "times", "is_exact"),
    [(', backend_config={"known_trip_count":{"n":"5"}}', 5, True), ("", 1, False)],
)
def test_a_loop_counts_as_often_as_it_is_known_to_run(trips: str, times: int, is_exact: bool):
    line = f"%w = f32[64]{{0}} while(%p), condition=%c, body=%body{trips}"
    (found,) = _hlo.read_collectives(module(line, others=BODY))
    assert (found.times, found.exact) == (times, is_exact)
    assert found.bits == times * SENT["all-reduce"]


@pytest.mark.parametrize(
    ("trips", "times", "is_exact"),
    [(', backend_config={"known_trip_count":{"n":"5"}}', 6, True), ("", 1, False)],
)
def test_the_condition_of_a_loop_runs_once_more_than_its_body(
    trips: str, times: int, is_exact: bool
):
    line = f"%w = f32[64]{{0}} while(%p), condition=%body, body=%other{trips}"
    (found,) = _hlo.read_collectives(module(line, others=BODY))
    assert (found.times, found.exact) == (times, is_exact)


def test_what_a_worker_keeps_is_not_sent():
    line = "%r = f32[64]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}"
    (found,) = _hlo.read_collectives(module(line))
    assert (found.bits, found.group_size) == (0, 1)


def test_a_call_is_exact_and_the_branches_of_a_condition_are_not():
    called = module("%w = f32[64]{0} call(%p), to_apply=%body", others=BODY)
    (found,) = _hlo.read_collectives(called)
    assert (found.exact, found.branch) == (True, None)
    both = "%w = f32[64]{0} conditional(%p, %p), branch_computations={%other, %body}"
    other = BODY.replace("%body", "%other").replace("all-reduce", "all-gather")
    first, second = _hlo.read_collectives(module(both, others=BODY + other))
    assert (first.kind, first.branch, first.exact) == ("all-gather", 0, False)
    assert (second.kind, second.branch, second.exact) == ("all-reduce", 1, False)


def test_of_the_older_form_of_a_condition_branch_1_is_the_true_one():
    line = "%w = f32[64]{0} conditional(%p, %p), true_computation=%body, false_computation=%other"
    other = BODY.replace("%body", "%other").replace("all-reduce", "all-gather")
    # What stands behind the entry is not the entry.
    first, second = _hlo.read_collectives(module(line, others=BODY) + "\n" + other)
    assert (first.kind, first.branch) == ("all-gather", 0)
    assert (second.kind, second.branch) == ("all-reduce", 1)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,4},{1,5}}", ((0, 4), (1, 5))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", ((0, 1, 2), (3, 4, 5))),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", ((0, 3), (1, 4), (2, 5))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'c','a'}", ((0, 4, 1, 5), (2, 6, 3, 7))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", ((3, 2), (1, 0))),
        ("no groups", ()),
    ],
)
def test_groups_are_read_in_every_form_that_xla_writes(text: str, groups: _hlo.Groups):
    assert _hlo.replica_groups(text) == groups
