"""Values as digits of numbers: the coding alone. Votes that use it are in test_votes.py."""

import jax
import numpy as np
import pytest

from signax.wire import _radix

pytestmark = pytest.mark.machine_code

RADICES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 33, 65, 129, 257)


def values_of(radix: int, num_rows: int, num_words: int) -> np.ndarray:
    """Values at random, after a run of the largest and before one of the smallest."""
    rng = np.random.default_rng(radix + num_words)
    values = rng.integers(0, radix, (num_rows, 8 * num_words))
    values[:, : 2 * num_words] = radix - 1
    values[:, 6 * num_words :] = 0
    return values


def planes_of(values: np.ndarray, num_planes: int) -> list[np.ndarray]:
    bits = [(values >> i & 1).astype(np.uint8) for i in range(num_planes)]
    return [np.packbits(x, axis=1, bitorder="little") for x in bits]


def values_in(planes: list[jax.Array]) -> np.ndarray:
    bits = [np.unpackbits(np.asarray(x), axis=1, bitorder="little") for x in planes]
    return sum(x.astype(np.int64) << i for i, x in enumerate(bits))


@pytest.mark.parametrize("num_words", [1, 2, 5, 6, 64, 333])
@pytest.mark.parametrize("radix", RADICES)
def test_what_comes_back_is_what_was_sent(radix: int, num_words: int):
    values = values_of(radix, 3, num_words)
    planes = planes_of(values, (radix - 1).bit_length())
    numbers = jax.jit(_radix.encode, static_argnums=1)(planes, radix)
    received = jax.jit(_radix.decode, static_argnums=(1, 2))(numbers, radix, num_words)
    np.testing.assert_array_equal(received, planes)
    # The bits are those that bits_per_value says, but for what fills up the last parts.
    sent, expected = sum(x.shape[1] for x in numbers), _radix.bits_per_value(radix) * num_words
    assert expected <= sent + 1e-9 <= expected + len(numbers)


@pytest.mark.parametrize(("radix", "num_digits"), [(3, 5), (5, 3), (6, 5), (9, 3), (17, 3)])
def test_numbers_have_the_values_as_their_digits(radix: int, num_digits: int):
    values = values_of(radix, 2, 4 * num_digits)
    numbers = _radix.encode(planes_of(values, (radix - 1).bit_length()), radix)
    digits = values.reshape(2, num_digits, -1)
    expected = np.tensordot(radix ** np.arange(num_digits), digits, axes=(0, 1))
    np.testing.assert_array_equal(values_in(numbers), expected)


def test_values_of_2_to_the_k_plus_1_take_fewer_bits_than_planes_and_none_takes_more():
    expected = {2: 1, 3: 1.6, 4: 2, 5: 7 / 3, 7: 3, 8: 3, 9: 10 / 3, 17: 13 / 3, 33: 5.5, 257: 8.5}
    assert {radix: _radix.bits_per_value(radix) for radix in expected} == expected
    for radix in RADICES:
        bits, as_planes = _radix.bits_per_value(radix), (radix - 1).bit_length()
        assert np.log2(radix) <= bits <= as_planes
        assert bits < as_planes or (radix - 1).bit_count() > 1 or radix == 2


def test_an_empty_buffer_passes():
    empty = np.zeros((2, 0), np.uint8)
    numbers = _radix.encode([empty] * 2, 3)
    for plane in _radix.decode(numbers, 3, 0):
        assert plane.shape == (2, 0)
