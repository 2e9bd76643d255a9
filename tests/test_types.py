"""The types and defaults that users see: pyright checks what stands here, and pytest runs it.

`assert_type` is an error of pyright's (`[tool.pyright]` includes this file) where a public
signature promises something else, or nothing; at run time it returns its argument.
"""

import inspect
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import signax
from signax import baselines, diagnostics, theory

AXIS = "workers"
# An argument has one default wherever it has any, but for the functions named.
DEFAULTS = {
    "accumulate_steps": 1,
    "accumulator_dtype": None,
    "b1": 0.9,
    "beta": 0.9,
    "down_dtype": "float32",
    "fraction": 0.01,
    "has_aux": False,
    "key": 0,
    "levels": 7,
    "local_steps": 1,
    "mask": None,
    "momentum": None,
    "noise": "normal",
    "norm": "l2",
    "on_nonfinite": "abstain",
    "rank": 4,
    "rescale": False,
    "scope": "leaf",
    "ties": "zero",
    "weight_decay": 0.0,
    "wire": "packed",
}
OTHERWISE = {
    ("average_signs", "ties"),
    ("init_train_state", "key"),
    ("abstract_train_state", "key"),
}


def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.mean((params[None] - batch) ** 2)


def test_an_argument_has_the_same_default_in_every_function():
    public = [(n, getattr(m, n)) for m in (signax, baselines) for n in m.__all__]
    found = {
        (name, p.name): p.default
        for name, function in public
        if inspect.isroutine(function)
        for p in inspect.signature(function).parameters.values()
        if p.default is not p.empty and p.name in DEFAULTS
    }
    assert {argument for _, argument in found} == {*DEFAULTS}
    assert {at for at, default in found.items() if default != DEFAULTS[at[1]]} == OTHERWISE


def test_signs_are_arrays_and_links_are_transformations():
    key, g = jax.random.key(0), jnp.ones(3)
    assert_type(signax.stochastic_sign(key, g), jax.Array)
    assert_type(signax.noisy_sign(key, g, 0.1), jax.Array)
    assert_type(signax.scaled_sign(g), jax.Array)
    assert_type(signax.unpack_bits(signax.pack_bits(g > 0), 3), jax.Array)
    assert_type(signax.Scale("linf", 256, shared=True), signax.Scale)
    assert_type(signax.scale_by_stochastic_sign(key, axis_name=AXIS), optax.GradientTransformation)
    assert_type(signax.majority_vote(AXIS, ties="random"), optax.GradientTransformation)
    assert_type(signax.average_signs((AXIS, "hosts")), optax.GradientTransformation)
    assert_type(signax.ema_from_first_gradient(0.9), optax.GradientTransformation)


def test_a_named_algorithm_takes_a_rate_or_a_schedule():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    for rate in (0.1, schedule):
        assert_type(signax.sign_sgd(rate), optax.GradientTransformationExtraArgs)
        assert_type(signax.ssdm(rate, axis_name=AXIS), optax.GradientTransformationExtraArgs)
        assert_type(baselines.qsgd(rate, axis_name=AXIS), optax.GradientTransformationExtraArgs)
    assert_type(signax.monotone_sign_sgd(schedule), optax.GradientTransformationExtraArgs)


def test_a_step_takes_a_state_to_a_state_and_metrics():
    mesh = assert_type(signax.make_worker_mesh(2), Mesh)
    tx = signax.signum(0.1, axis_name=AXIS)
    state = assert_type(signax.init_train_state(jnp.zeros(3), tx, mesh), signax.TrainState)
    step = signax.make_train_step(loss_fn, tx, mesh)
    state, metrics = step(state, jnp.ones((4, 3)))
    assert_type(state, signax.TrainState)
    assert_type(metrics, dict[str, jax.Array])
    assert_type(signax.wire_bits(step, state, jnp.ones((4, 3))), signax.WireReport)
    assert_type(signax.change_num_workers(state, tx, mesh), signax.TrainState)


def test_theory_returns_arrays():
    assert_type(theory.expected_majority(0.6, 3), jax.Array)
    assert_type(theory.majority_probabilities(0.6, 3), theory.MajorityProbabilities)


def examined(batches: list[jax.Array]) -> None:
    """For pyright alone: it takes seconds to run, and tests/test_diagnostics.py does."""
    report = diagnostics.examine(loss_fn, jnp.zeros(3), batches)
    assert_type(report, diagnostics.Report)
    assert_type(report.to_dict(), dict[str, Any])
