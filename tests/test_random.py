"""Random words are an address, and they look like chance.

Tolerances: a z-score of 6.5 is passed by chance once in 1e10; with at most 1,000 scores in a test
the union bound leaves less than 1e-7, and the seeds are fixed.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from signax.signs import _random
from workers import Mapped

pytestmark = pytest.mark.machine_code

LIMIT = 6.5


def stream(tag: int = 1, step: int = 0, worker: int = 0, path: str = "w", size: int = 1 << 16):
    words = _random.link_words(_random.key_words(0), tag, step, worker)
    return np.asarray(_random.random_words(_random.leaf_words(words, [path])[0], size))


def signs(words: np.ndarray) -> np.ndarray:
    """All 32 bits of each word as -1 and +1: [32, size]."""
    return 2.0 * ((words >> np.arange(32, dtype=np.uint32)[:, None]) & 1) - 1


def z_scores(products: np.ndarray) -> np.ndarray:
    """The mean of fair signs times sqrt(n) is standard normal."""
    return products.mean(-1) * np.sqrt(products.shape[-1])


STREAMS = {
    "itself": stream(),
    "another tag": stream(tag=2),
    "the next step": stream(step=1),
    "the next worker": stream(worker=1),
    "another leaf": stream(path="b"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_bit_is_fair(name: str):
    assert np.abs(z_scores(signs(STREAMS[name]))).max() < LIMIT


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "itself"])
def test_neighbouring_addresses_are_independent(name: str):
    product = signs(STREAMS["itself"]) * signs(STREAMS[name])
    assert np.abs(z_scores(product)).max() < LIMIT


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 32, 1024])
def test_neighbouring_coordinates_are_independent(lag: int):
    bits = signs(STREAMS["itself"])
    assert np.abs(z_scores(bits[:, lag:] * bits[:, :-lag])).max() < LIMIT


def test_the_bits_of_one_word_are_independent_of_one_another():
    bits = signs(STREAMS["itself"])
    correlations = bits @ bits.T / np.sqrt(bits.shape[1])
    assert np.abs(correlations[~np.eye(32, dtype=bool)]).max() < LIMIT


@pytest.mark.parametrize("byte", range(4))
def test_bytes_are_uniform(byte: int):
    counts = np.bincount((STREAMS["itself"] >> (8 * byte)) & 255, minlength=256)
    expected = STREAMS["itself"].size / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 255 degrees of freedom: mean 255, standard deviation sqrt(510), nearly normal.
    assert abs(chi_square - 255) < LIMIT * np.sqrt(510)


def test_many_workers_and_steps_have_no_common_bias():
    words = jax.vmap(
        lambda i: _random.random_words(
            _random.link_words(_random.key_words(0), 1, i // 64, i % 64), 64
        )
    )(jnp.arange(4096))
    tops = np.where(np.asarray(words) >> 31, 1.0, -1.0)  # [streams, positions]
    assert np.abs(z_scores(tops.T)).max() < LIMIT, "one position over all streams"
    assert np.abs(z_scores(tops)).max() < LIMIT, "one stream over all positions"


def test_threefry_is_jax_s(mapped: Mapped):
    key = jnp.array([0xFFFFFFF1, 0x12345677], jnp.uint32)  # its words share set bits
    count = jnp.array([3, 4], jnp.uint32)
    expected = threefry_2x32(key, count)
    ours = mapped(lambda c: _random.threefry(key, c[0], c[1]), jnp.stack([count, count]))
    np.testing.assert_array_equal(ours, np.stack([expected, expected]))


def test_an_offset_goes_on_in_the_same_stream():
    words = jnp.array([5, 6], jnp.uint32)
    whole = _random.random_words(words, 100)
    np.testing.assert_array_equal(_random.random_words(words, 40, 60), whole[60:])


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_a_seed_is_the_key_of_jax_in_every_form(seed: int):
    expected = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    forms = (seed, np.int64(seed), jnp.int32(seed), jax.random.key(seed, impl="threefry2x32"))
    for form in (*forms, expected):
        np.testing.assert_array_equal(_random.key_words(form), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_four_words_of_another_implementations_key_are_all_mixed(seed: int):
    key = jax.random.key(seed, impl="rbg")
    data = jax.random.key_data(key)
    for form in (key, data):
        np.testing.assert_array_equal(_random.key_words(form), threefry_2x32(data[:2], data[2:]))


def test_a_key_lives_on_when_the_state_that_was_made_from_it_is_donated():
    key = jax.random.PRNGKey(3)
    jax.jit(lambda words: words + 1, donate_argnums=0)(_random.key_words(key))
    assert key.tolist() == [0, 3]


@pytest.mark.parametrize("key", [0.5, "0", None, True, np.zeros(3, np.uint32), np.arange(2)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match=r"^signax: key must be an integer seed, a PRNG key"):
        _random.key_words(key)


EDGES = [2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1, -1, -(2**31), -(2**31) - 1, -(2**63)]


@pytest.mark.parametrize("seed", EDGES)
def test_a_seed_of_64_bits_is_its_two_words_in_every_form(seed: int):
    is_int32 = -(2**31) <= seed < 0  # has the same words with 64 bits as without
    expected = [0 if is_int32 else (seed >> 32) % 2**32, seed % 2**32]
    assert _random.key_words(seed).tolist() == expected
    with jax.enable_x64(True):
        assert _random.key_words(np.int64(seed)).tolist() == expected
        assert jax.jit(_random.key_words)(jnp.int64(seed)).tolist() == expected
        of_jax = jax.random.key_data(jax.random.key(seed, impl="threefry2x32")).tolist()
        assert is_int32 or of_jax == expected
        assert seed < 0 or _random.key_words(jnp.uint64(seed)).tolist() == expected


def test_the_largest_seeds_have_64_bits():
    assert _random.key_words(2**63).tolist() == [2**31, 0]
    assert _random.key_words(2**64 - 1).tolist() == [2**32 - 1] * 2


def keyed_triple32(x: int, words: tuple[int, int]) -> int:
    """Chris Wellons' triple32 (hash-prospector), in whose start and middle a key is injected."""
    x ^= words[0]
    x = (x ^ (x >> 17)) * 0xED5AD4BB % 2**32 ^ words[1]
    x = (x ^ (x >> 11)) * 0xAC4C1B51 % 2**32
    x = (x ^ (x >> 15)) * 0x31848BAB % 2**32
    return x ^ (x >> 14)


def test_a_stream_is_the_same_in_every_release():
    words, positions = (0x9E3779B9, 0x243F6A88), [0, 1, 2, 255, 2**31, 2**32 - 1]
    found = _random.words_at(jnp.array(words, jnp.uint32), jnp.array(positions, jnp.uint32))
    assert found.tolist() == [keyed_triple32(x, words) for x in positions]


def test_the_words_of_a_leaf_come_from_all_64_bits_of_the_hash_of_its_path():
    words = jnp.array([5, 6], jnp.uint32)
    counts = np.frombuffer(hashlib.blake2b(b"['w']", digest_size=8).digest(), "<u4")
    expected = threefry_2x32(words, jnp.asarray(counts))
    np.testing.assert_array_equal(_random.leaf_words(words, ["['w']"])[0], expected)


def test_the_words_of_a_leaf_do_not_depend_on_other_leaves():
    words, paths = _random.key_words(3), ["['a']", "['b']", "['c']"]
    rows = _random.leaf_words(words, paths)
    assert rows.shape == (3, 2)
    assert len(np.unique(rows)) == 6
    alone = [_random.leaf_words(words, [path])[0] for path in paths]
    np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed: int):
    assert _random.key_words(seed % 2**64).shape == (2,)
    with pytest.raises(ValueError, match=r"^signax: seed .* more than 64 bits"):
        _random.key_words(seed)


def test_many_keys_in_place_of_one_are_refused():
    with pytest.raises(ValueError, match=r"array of keys of shape \(3,\)"):
        _random.key_words(jax.random.split(jax.random.key(0), 3))


def test_randomness_is_the_same_with_64_bits():
    before = stream(size=100)
    with jax.enable_x64(True):
        after = stream(size=100)
    np.testing.assert_array_equal(before, after)
