"""The dense mean, at magnitudes that a sum of 16 bits does not reach."""

import jax
import jax.numpy as jnp
import numpy as np

import signax
from workers import WORKERS


def test_a_mean_of_float16_stays_in_its_range():
    g = jnp.full((8, 2), 3e4, jnp.float16)  # whose sum is none
    tx = signax.average_gradients(WORKERS)
    mean = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name=WORKERS)(g)
    assert mean.dtype == jnp.float16
    np.testing.assert_array_equal(mean, g)
