"""The stochastic sign of one array: its law by z-test, and the ends of the law word by word."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import signax
from chance import Z, assert_mean
from signax.signs import _random

pytestmark = pytest.mark.machine_code

NUM_DRAWS = 400_000


@functools.cache
def _drawer(size: int):
    def draw(seed, g, scale):
        return signax.stochastic_sign(seed, jnp.broadcast_to(g, (size,)), scale)

    return jax.jit(draw)


def draws(g: float, scale: float, seed: int = 0, size: int = NUM_DRAWS) -> np.ndarray:
    return np.asarray(_drawer(size)(seed, jnp.float32(g), jnp.float32(scale)))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.1, 1e-3, 0.0, -0.3, -1.0])
def test_the_probability_of_plus_is_that_of_the_paper(ratio: float, unit: float):
    p = float(reference.probability_of_plus(np.array([ratio]), scale=1.0)[0])
    assert_mean(draws(ratio * unit, unit), 2 * p - 1)


@pytest.mark.parametrize("g", [2.0, -2.0, 1e30, -3e38])
def test_a_coordinate_beyond_the_scale_is_certain(g: float):
    assert_mean(draws(g, 1.0), np.sign(g))


@pytest.mark.parametrize("ratio", [1.0, -1.0])
def test_a_certain_sign_holds_for_the_largest_and_the_smallest_word(
    ratio: float, monkeypatch: pytest.MonkeyPatch
):
    # The threshold for 1 would be 2^31, which is no int32; the largest float32 below is 128 less,
    # and the words from there on come once in 33 million draws.
    extreme = np.array([2**31 - 1, 2**31 - 128, -(2**31)], np.int64).astype(np.uint32)
    monkeypatch.setattr(_random, "words_at", lambda *_: jnp.asarray(extreme))
    signs = signax.stochastic_sign(0, jnp.full(extreme.shape, 3.0 * ratio), 3.0)
    assert (np.asarray(signs) == ratio).all()


@pytest.mark.parametrize("ratio", [1e-6, -1e-6, 1e-8, 3e-10])
def test_a_small_probability_keeps_its_signal(ratio: float, monkeypatch: pytest.MonkeyPatch):
    # P(w < t) = 1/2 + t / 2^32 for a uniform int32 w, with t = round(g / R 2^31): 2147, 21 and 1.
    # To see 1e-8 by chance takes 1e17 draws, so each word near zero is tried once: against a zero
    # coordinate, exactly t more of them say +1.
    threshold = round(ratio * 2**31)
    near = jnp.arange(-5000, 5000, dtype=jnp.int32)
    words = jax.lax.bitcast_convert_type(near, jnp.uint32)
    monkeypatch.setattr(_random, "words_at", lambda *_: words)
    signs = signax.stochastic_sign(0, jnp.full(near.shape, 3.0 * ratio), 3.0)
    assert int((np.asarray(signs) > 0).sum()) == 5000 + threshold
    assert abs(threshold / 2**31 / ratio - 1) <= 0.5 / (abs(ratio) * 2**31)


def test_a_signal_of_one_in_a_thousand_is_seen_and_not_biased():
    # n = 1e8 draws: the mean 1e-3 is 10 standard deviations from zero, and a bias of -4.6 % in the
    # signal, as uniform() < p has at 1e-6, would be less than one.
    size, ratio = 4_000_000, 1e-3
    mean = np.mean([draws(ratio, 1.0, seed, size).mean(dtype=np.float64) for seed in range(25)])
    z = math.sqrt(25 * size)
    assert abs(mean - ratio) * z < Z
    assert mean * z > 10 - Z


def test_the_default_scale_is_the_l2_norm_of_the_array():
    g = jnp.zeros(NUM_DRAWS).at[::4].set(3.0).at[1::4].set(-1.0)
    norm = reference.l2_norm(np.asarray(g))
    signs = np.asarray(signax.stochastic_sign(1, g))
    # The bits of a given R: only a draw within a rounding of its threshold could differ.
    np.testing.assert_array_equal(signs, signax.stochastic_sign(1, g, np.float32(norm)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_signs_keep_shape_and_dtype_and_zero_has_none(dtype: Any):
    g = jnp.zeros((3, 1, 2), dtype)
    assert not np.any(signax.stochastic_sign(0, g))
    out = signax.stochastic_sign(0, g.at[0].set(1), scale=2.0)
    assert out.shape == g.shape
    assert out.dtype == dtype
    assert set(np.unique(np.asarray(out, np.float32))) <= {-1.0, 1.0}
    assert np.isnan(np.asarray(signax.stochastic_sign(0, g.at[1].set(np.nan)), np.float32)).all()
    assert np.isnan(
        np.asarray(signax.stochastic_sign(0, g.at[1].set(np.inf), 1.0), np.float32)
    ).all()
    assert not np.any(signax.stochastic_sign(0, g.at[0].set(1), scale=0.0))
    for shape in ((0,), (3, 0, 2)):
        assert signax.stochastic_sign(0, jnp.zeros(shape, dtype)).shape == shape
    assert abs(float(signax.stochastic_sign(0, jnp.ones((), dtype)))) == 1
