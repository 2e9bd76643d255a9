"""Any tree, any values, any number of workers: votes equal the NumPy reference, bit for bit.

A program is compiled once for each tree, number of workers and mapping, so the default suite draws
its values for a few of them; under `-m slow` the trees themselves are drawn as well.
"""

import functools
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays_of

import reference
from ballots import SIMULATED, WIRES, coins_within_bounds, has_something_to_say, run_votes
from daily import thorough
from workers import WORKERS, map_workers

pytestmark = pytest.mark.machine_code

Spec = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each leaf

MIXED: Spec = (((3, 3), "float32"), ((), "bfloat16"), ((0,), "float32"), ((5,), "float16"))
TINY: Spec = (((1,), "float32"),)
WORDS: Spec = (((2, 9), "float32"), ((8,), "float32"))
SETTINGS = (("shard_map", 8, WORDS), ("vmap", 2, TINY), ("vmap", 5, MIXED))
ROWS = (*SETTINGS[:2], pytest.param(SETTINGS[2], marks=thorough))

# 0, -0, subnormals (zeros to XLA on CPU), small, ordinary and the largest that a dtype holds.
MAGNITUDES = (0.0, 1e-40, 1e-30, 1.0, 2.5, 3e38)
NUM_VALUES = 2 * len(MAGNITUDES)
BAD = (None, np.nan, np.inf, -np.inf)


def size_of(spec: Spec) -> int:
    return sum(math.prod(shape) for shape, _ in spec)


def split(rows: np.ndarray, spec: Spec) -> list[jax.Array]:
    """Flat rows [M, d] as the leaves of the workers' trees, each in its dtype."""
    leaves, start = [], 0
    for shape, dtype in spec:
        part = rows[:, start : start + math.prod(shape)]
        limit = float(jnp.finfo(dtype).max)
        part = np.where(np.isfinite(part), np.clip(part, -limit, limit), part)
        leaves.append(jnp.asarray(part.reshape(len(rows), *shape), dtype))
        start += math.prod(shape)
    return leaves


def join(leaves: list[jax.Array]) -> np.ndarray:
    """What the leaves hold, flat: [M, d]."""
    rows = [
        np.asarray(x.astype(jnp.float32)).reshape(len(x), math.prod(x.shape[1:])) for x in leaves
    ]
    return np.concatenate(rows, axis=1)


@st.composite
def ballots(draw: Any, num_workers: int, size: int) -> np.ndarray:
    """Rows of special values, some of them with a fault."""
    codes = arrays_of.arrays(np.int8, (num_workers, size), elements=st.integers(0, NUM_VALUES - 1))
    codes = draw(codes)
    rows = np.array([s * m for m in MAGNITUDES for s in (1, -1)], np.float32)[codes]
    faults = st.lists(st.sampled_from(BAD), min_size=num_workers, max_size=num_workers)
    for row, fault in zip(rows, draw(faults), strict=True):
        if fault is not None and size:
            row[draw(st.integers(0, size - 1))] = fault
    return rows


@functools.lru_cache(maxsize=len(SETTINGS) + 1)
def program(mapping: str, num_workers: int, spec: Spec, wires: tuple[str, ...]):
    del spec  # a program of its own for each
    return map_workers(mapping, functools.partial(run_votes, WORKERS, wires), num_workers)


def check(mapping: str, num_workers: int, spec: Spec, wires: tuple[str, ...], rows: np.ndarray):
    """All links on all wires, for every replica, against the reference."""
    leaves = split(rows, spec)
    held = join(leaves)
    held = np.where(np.abs(held) < 2.0**-126, 0.0, held)  # XLA on CPU reads subnormals as zeros
    voters = held[has_something_to_say(held)]
    steps = jnp.zeros(num_workers, jnp.int32)
    results = program(mapping, num_workers, spec, wires)(leaves, steps)
    out = {name: (join(tree), np.asarray(n)) for name, (tree, n) in results.items()}
    expected = {
        "majority/zero": reference.majority_vote(voters),
        "average/zero": reference.average_signs(voters),
        **coins_within_bounds(voters, out),
    }
    for name, (got, num_abstained) in out.items():
        want = join(split(np.tile(expected[name.rpartition("/")[0]], (num_workers, 1)), spec))
        np.testing.assert_array_equal(got, want, err_msg=f"{name}, {mapping}")
        np.testing.assert_array_equal(num_abstained, num_workers - len(voters))


@pytest.mark.parametrize("setting", ROWS, ids=lambda s: f"{s[0]}-{s[1]}")
@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_votes_of_any_values_equal_the_reference_on_every_wire_and_replica(setting, data):
    mapping, num_workers, spec = setting
    rows = data.draw(ballots(num_workers, size_of(spec)), label="rows")
    check(mapping, num_workers, spec, WIRES, rows)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8])
@hypothesis.settings(max_examples=250)
@hypothesis.given(data=st.data())
def test_many_votes_of_any_values_equal_the_reference(mapping: str, num_workers: int, data):
    rows = data.draw(ballots(num_workers, size_of(MIXED)), label="rows")
    check(mapping, num_workers, MIXED, WIRES, rows)


LEAVES = st.tuples(
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    data=st.data(),
    spec=st.lists(LEAVES, min_size=1, max_size=4).map(tuple).filter(size_of),
    num_workers=st.integers(1, 20),
    mapping=st.sampled_from(["vmap", "shard_map"]),
)
def test_votes_over_any_tree_equal_the_reference(data, spec, num_workers: int, mapping: str):
    num_workers = min(num_workers, 8) if mapping == "shard_map" else num_workers
    rows = data.draw(ballots(num_workers, size_of(spec)), label="rows")
    check(mapping, num_workers, spec, ("packed", *SIMULATED), rows)
