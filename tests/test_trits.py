"""Five ternary digits in a byte: the coding alone. Votes that use it are in test_votes.py."""

import jax
import numpy as np
import pytest

from signax.wire import _trits

pytestmark = pytest.mark.machine_code


@pytest.mark.parametrize("num_words", [0, 1, 4, 5, 6, 64, 333])
def test_planes_are_what_they_were_and_a_byte_holds_five_coordinates(num_words: int):
    rng = np.random.default_rng(num_words)
    is_not_negative = rng.integers(0, 256, (3, num_words), dtype=np.uint8)
    is_positive = is_not_negative & rng.integers(0, 256, (3, num_words), dtype=np.uint8)
    planes = np.stack([is_positive, is_not_negative], axis=1)
    sent = jax.jit(_trits.encode)(planes)
    assert sent.shape == (3, 8 * -(-num_words // 5))
    assert (np.asarray(sent) < 3**5).all()
    received = jax.jit(_trits.decode, static_argnums=1)(sent, num_words)
    np.testing.assert_array_equal(received, planes)


def test_each_byte_is_a_number_in_base_three():
    # Five words, so one for each digit; only bit 0 of each is read here.
    signs = np.array([1, 0, -1, 0, 1])
    planes = np.stack([signs > 0, signs >= 0]).astype(np.uint8)
    digits = [2, 1, 0, 1, 2]  # sign + 1
    first = int(np.asarray(_trits.encode(planes))[0])
    assert first == sum(digit * 3**k for k, digit in enumerate(digits))
