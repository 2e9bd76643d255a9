"""Algorithm 1, Option 2: a step is taken only where it lowers the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import signax

NUM_STEPS = 20


def test_the_monotone_method_takes_the_steps_of_algorithm_1_option_2():
    def f(x):  # exact in float32 at multiples of 1/16
        return 3 * x[0] ** 2 + x[1] ** 2

    tx, x = signax.monotone_sign_sgd(0.125), jnp.array([0.6875, -1.0])
    state, expected, values = tx.init(x), np.asarray(x, np.float64), []
    for _ in range(NUM_STEPS):
        value, g = jax.value_and_grad(f)(x)
        updates, state = tx.update(g, state, x, value=value, value_fn=f)
        x = optax.apply_updates(x, updates)
        expected = reference.monotone_sign_sgd_step(f, expected, np.asarray(g), 0.125)
        np.testing.assert_array_equal(x, expected)
        values.append(float(value))
    assert (np.diff(values) <= 0).all()
    assert values[0] > 2
    assert values[-1] < 0.05
    assert values[-1] == values[-2], "it waits where every step goes up"


def test_on_equality_the_monotone_method_stays_and_it_evaluates_once():
    calls = []

    def f(x):
        calls.append(x)
        return jnp.sum(x**2)

    tx, x = signax.monotone_sign_sgd(1.0), jnp.array([0.5])  # f(0.5 - 1) = f(0.5)
    updates, _ = tx.update(2 * x, tx.init(x), x, value=jnp.float32(0.25), value_fn=f)
    np.testing.assert_array_equal(updates, 0.0)
    assert len(calls) == 1


def test_the_monotone_method_passes_the_arguments_that_its_function_names():
    def f(x, batch):
        return jnp.sum((x - jnp.mean(batch)) ** 2)

    tx, x = signax.monotone_sign_sgd(1.0), jnp.array([0.0])
    updates, _ = tx.update(-2 * x - 8, tx.init(x), x, value=16.0, value_fn=f, batch=4.0, grad=None)
    np.testing.assert_array_equal(updates, 1.0)


def test_the_monotone_method_says_what_it_needs():
    tx, x = signax.monotone_sign_sgd(1.0), jnp.ones(2)
    with pytest.raises(ValueError, match="value_fn=loss_fn"):
        tx.update(x, tx.init(x), x, value=1.0)
