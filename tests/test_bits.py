"""Packing, counting and comparing on packed words equal plain arithmetic on coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from signax import _rows
from signax.wire import _bits, _contiguous

pytestmark = pytest.mark.machine_code

RNG = np.random.default_rng(0)
# Long arrays are packed by rows, and what is left of the last row like a short one; the words of
# longer ones are copied.
LONG = [_rows._SMALL - 1, _rows._SMALL, _rows._SMALL + 3 * _rows.ROW + 13]
LONG += [8 * _contiguous._SMALL + 3 * _rows.ROW + 13]


def bits_of(planes, size: int) -> np.ndarray:
    rows = [np.unpackbits(np.asarray(p), bitorder="little")[:size].astype(int) for p in planes]
    return sum(2**k * row for k, row in enumerate(rows))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, *LONG])
def test_unpacking_is_the_inverse_of_packing(size: int):
    mask = RNG.random(size) < 0.5
    words = signax.pack_bits(mask)
    assert words.dtype == jnp.uint8
    assert words.size == -(-size // 8)
    np.testing.assert_array_equal(signax.unpack_bits(words, size), mask)


def test_the_first_coordinate_is_the_lowest_bit_and_shapes_are_read_in_c_order():
    mask = np.zeros((2, 5), bool)
    mask[0, 0] = mask[1, 4] = True
    np.testing.assert_array_equal(signax.pack_bits(mask), [1, 2])


@pytest.mark.parametrize("size", [1, 8, 13, 64, *LONG])
def test_signs_are_two_planes_and_both_are_set_where_a_value_is_not_finite(size: int):
    x = RNG.choice(np.array([-2, -0.0, 0, 3, np.nan, np.inf, -np.inf, 1e-30], np.float32), size)
    positive, negative = (
        np.unpackbits(np.asarray(p), bitorder="little")[:size] for p in _bits.pack_signs(x)
    )
    absent = ~np.isfinite(x)
    np.testing.assert_array_equal(positive, (x > 0) | absent)
    np.testing.assert_array_equal(negative, (x < 0) | absent)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8, 15, 16, 17, 127, 128, 255, 256, 1000])
def test_the_count_of_any_number_of_rows_is_exact_and_has_no_plane_too_many(num_rows: int):
    rows = RNG.integers(0, 256, (num_rows, 5), np.uint8)
    rows[:, 0] = 255  # all vote
    planes = jax.jit(_bits.count_planes)(rows)
    assert len(planes) == num_rows.bit_length()
    expected = np.unpackbits(rows, axis=1, bitorder="little").astype(int).sum(0)
    np.testing.assert_array_equal(bits_of(planes, 40), expected)


@pytest.mark.parametrize("threshold", [-3, 0, 1, 4, 7, 8, 100])
def test_comparing_with_a_threshold_is_comparing_the_counts(threshold: int):
    rows = RNG.integers(0, 256, (7, 6), np.uint8)
    planes = _bits.count_planes(jnp.asarray(rows))
    greater, equal = jax.jit(_bits.compare_planes)(planes, threshold)
    counts = bits_of(planes, 48)
    np.testing.assert_array_equal(bits_of([greater], 48), counts > threshold)
    np.testing.assert_array_equal(bits_of([equal], 48), counts == threshold)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16])
def test_unpacking_planes_is_their_weighted_sum(dtype):
    planes = [jnp.asarray(RNG.integers(0, 256, 3, np.uint8)) for _ in range(3)]
    values = _bits.unpack_planes(planes, (1, 2, 4), 21, dtype)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values.astype(np.float32), bits_of(planes, 21))


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_signs_that_are_dear_to_draw_are_drawn_in_the_loop_that_packs_them(noise: Any):
    size = 100_003  # whole rows and a rest: two readers, for which XLA would write the signs out
    step = jax.jit(lambda g: _bits.pack_signs(signax.noisy_sign(0, g, 1.0, noise)))
    compiled = step.lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < size


def test_a_sum_in_a_small_dtype_is_rounded_once():
    planes = [jnp.full(1, 255, jnp.uint8)] * 3
    values = _bits.unpack_planes(planes, (256, 1, 1), 8, jnp.bfloat16)  # which holds no 257
    np.testing.assert_array_equal(values.astype(np.float32), np.full(8, 258))


def test_bad_words_say_what_to_pass():
    with pytest.raises(TypeError, match="must be a uint8 vector"):
        signax.unpack_bits(jnp.zeros(3), 4)
    for size in (9, -1):
        with pytest.raises(ValueError, match=f"1 words hold 8 coordinates, but size={size}"):
            signax.unpack_bits(jnp.zeros(1, jnp.uint8), size)
