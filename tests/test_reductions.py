"""One number of a whole tree: exact where it can be, and in passes that write nothing as large."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signax import _reductions


def test_the_power_of_two_below_a_number_has_an_inverse():
    numbers = [0.0, 1e-45, 2.0**-127, 2.0**-126, 1.0, 1 + 2.0**-23, 2.0, 3e10, 2.0**126, 2.0**127]
    numbers += [2 - 2.0**-23, float(np.finfo(np.float32).max)]
    units = np.asarray(_reductions.power_of_two(jnp.asarray(numbers, jnp.float32)))
    exponents = [min(max(math.floor(math.log2(r)), -126), 126) if r else -126 for r in numbers]
    np.testing.assert_array_equal(units, 2.0 ** np.array(exponents))


def test_the_common_unit_is_that_of_the_largest_at_each_place():
    lanes = [[-4.0, 0.0, 1.0, np.nan], [3.0, 0.0, -7.0, 1.0], [0.5, -0.0, 2.0, np.inf]]
    rows = [jnp.asarray(lane, jnp.float32) for lane in lanes]
    scaled, unit = _reductions.in_common_unit(rows)
    np.testing.assert_array_equal(unit, [4, 2.0**-126, 4, 2.0**126])
    np.testing.assert_array_equal(scaled, np.asarray(rows) / np.asarray(unit))


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (8,), (3, 0, 5), (1, 2, 1)], ids=str)
def test_the_mean_magnitude_is_that_of_all_coordinates(sizes: tuple[int, ...]):
    """Sums of small integers are exact, so only the division rounds."""
    parts = np.split(np.arange(sum(sizes)) - 2, np.cumsum(sizes)[:-1]) if sizes else []
    leaves = [jnp.asarray(part, jnp.bfloat16) for part in parts]
    mean = _reductions.mean_magnitude(leaves)
    assert mean.dtype == jnp.float32
    total = sum(abs(np.concatenate(parts))) if parts else 0
    assert mean == np.float32(total / max(sum(sizes), 1))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 4_099])
@pytest.mark.parametrize("magnitude", [1e-37, 1.0, 3e38])
def test_a_mean_magnitude_keeps_its_bits_at_every_magnitude(size: int, magnitude: float):
    rng = np.random.default_rng(0)
    g = rng.choice([-1, 1], size) * rng.uniform(0.5, 1, size) * magnitude
    g = g.astype(np.float32)
    mean = _reductions.mean_magnitude([jnp.asarray(g)])
    # as many roundings of 2^-24 as there are terms, at most
    expected = np.abs(g.astype(np.float64)).mean()
    np.testing.assert_allclose(np.float64(mean), expected, rtol=max(size, 8) * 2.0**-24)


@pytest.mark.parametrize("place", [0, 5, 4_096, 4_098])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_largest_of_many_is_not_finite_where_one_is_not(bad: float, place: int):
    g = np.linspace(-1, 0.5, 4_099, dtype=np.float32)
    assert _reductions.largest([jnp.asarray(g)]) == 1
    g[place] = bad
    assert not np.isfinite(_reductions.largest([jnp.ones(3), jnp.asarray(g)]))


@pytest.mark.parametrize("reduce", [_reductions.mean_magnitude, _reductions.largest])
def test_of_a_leaf_that_is_just_made_an_eighth_is_written_and_not_all(reduce: Callable):
    made = jax.jit(lambda x: reduce([jnp.sin(x) + 1]))
    size = 100_000  # floats
    memory = made.lower(jnp.ones(size)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * size / 8 * 1.5
