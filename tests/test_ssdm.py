"""SSDM as a whole, against the means and variances of Algorithm 3."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import signax
from chance import Z
from daily import daily
from workers import WORKERS

pytestmark = pytest.mark.machine_code


@pytest.mark.parametrize("num_workers", daily([1, 2, 3, 5, 8], [3]))
def test_ssdm_steps_by_the_mean_of_algorithm_3(num_workers: int):
    """E[update] = -gamma / M sum_n m_n / R_n at every step, with m_{-1} = g_0."""
    beta, gamma, num_seeds, num_steps, size = 0.7, 0.5, 4000, 3, 6
    rng = np.random.default_rng(num_workers)
    gradients = rng.normal(size=(num_steps, num_workers, size)).astype(np.float32)
    gradients *= np.arange(1, num_workers + 1, dtype=np.float32)[:, None]  # heterogeneous

    def run(key):
        tx = signax.ssdm(gamma, beta, key=key, axis_name=WORKERS, wire="float32")

        def worker(gradients):
            state, updates = tx.init(gradients[0]), []
            for g in gradients:
                update, state = tx.update(g, state)
                updates.append(update)
            return jnp.stack(updates)

        return jax.vmap(worker, in_axes=1, axis_name=WORKERS)(jnp.asarray(gradients))[0]

    updates = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(num_seeds)), np.float64)
    momenta: list[Any] = [None] * num_workers
    for k in range(num_steps):
        momenta = reference.next_momenta(
            momenta, gradients[k].astype(np.float64), beta, reference.momentum_from_first_gradient
        )
        means = np.stack([2 * reference.probability_of_plus(m) - 1 for m in momenta])
        expected = -gamma * means.mean(axis=0)
        # the sum of M independent draws has the variance sum (1 - mean^2)
        sigma = gamma * np.sqrt((1 - means**2).sum(axis=0) / num_seeds) / num_workers
        assert (np.abs(updates[:, k].mean(axis=0) - expected) < Z * sigma).all()
        # Both lattice and extremes: multiples of gamma / M within [-gamma, gamma].
        lattice = np.round(updates[:, k] * num_workers / gamma)
        np.testing.assert_allclose(lattice * gamma / num_workers, updates[:, k], rtol=1e-6)
        assert ((lattice - num_workers) % 2 == 0).all()
        spread = updates[:, k].var(axis=0) / (sigma**2 * num_seeds)
        # the variance of num_seeds draws is known to about sqrt(2 / num_seeds) = 2.2 %, times Z
        np.testing.assert_allclose(spread, 1.0, atol=0.15)


def test_the_shared_scale_makes_the_mean_of_signs_unbiased():
    num_workers, num_seeds = 4, 8000
    rows = np.array([[1.0, -2.0], [10.0, 3.0], [-0.1, 0.2], [4.0, 4.0]], np.float32)
    scale = signax.Scale("linf", "global", shared=True)

    def run(key):
        tx = signax.ssdm(1.0, 0.0, key=key, axis_name=WORKERS, scale=scale, wire="float32")
        return jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name=WORKERS)(
            jnp.asarray(rows)
        )[0]

    updates = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(num_seeds)), np.float64)
    r = 10.0
    sigma = r / math.sqrt(num_workers * num_seeds)  # at most: each draw has variance <= 1
    assert (np.abs(-r * updates.mean(axis=0) - rows.mean(axis=0)) < Z * sigma).all()
