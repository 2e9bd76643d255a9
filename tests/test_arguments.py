"""Arguments that make no sense are refused where an algorithm is made, before anything runs."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import signax

UNKNOWN = {
    "ties": lambda: signax.majority_vote(None, ties="coin"),
    "wire": lambda: signax.majority_vote(None, wire="bytes"),
    "average ties": lambda: signax.average_signs(None, ties="coin"),
    "average wire": lambda: signax.average_signs(None, wire="bytes"),
    "signum ties": lambda: signax.signum(0.1, ties="coin"),
    "sign_sgd wire": lambda: signax.sign_sgd(0.1, wire="bytes"),
    "ssdm wire": lambda: signax.ssdm(0.1, wire="bytes"),
    "norm": lambda: signax.Scale(norm="l1"),
    "scope": lambda: signax.Scale(scope="layer"),
    "scaled scope": lambda: signax.scale_by_scaled_sign(axis_name=None, scope="layer"),
    "noise": lambda: signax.noisy_sign_sgd(0.1, 1.0, noise="cauchy"),
    "on_nonfinite": lambda: signax.ssdm(0.1, on_nonfinite="ignore"),
    "aggregate": lambda: signax.distributed_lion(0.1, aggregate="sum"),
}
CHOICES = {
    "ties": ("'zero'", "'random'"),
    "wire": ("'packed'", "'radix'", "'lanes'", "'float32'"),
    "norm": ("'l2'", "'linf'"),
    "scope": ("'global'", "'leaf'"),
    "noise": ("'normal'", "'uniform'"),
    "on_nonfinite": ("'abstain'", "'propagate'", "'error'"),
    "aggregate": ("'majority'", "'average'"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_word_is_refused_at_construction_with_the_choices(name: str):
    argument = name.split()[-1]
    with pytest.raises(ValueError, match=rf"^signax\.\w+: unknown {argument} '") as error:
        UNKNOWN[name]()
    for choice in CHOICES[argument]:
        assert choice in str(error.value)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5, float("nan"), np.float32(2.0), jnp.array(1.0)])
@pytest.mark.parametrize(
    "make",
    [
        signax.ema_from_first_gradient,
        lambda b: signax.signum(0.1, b),
        lambda b: signax.ssdm(0.1, b),
    ],
)
def test_a_beta_outside_its_range_is_refused_at_construction(make: Callable, beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
        make(beta)


NO_SENSE = {
    "signax.scale_by_noisy_sign: noise_scale must not be negative, got -0.5": lambda: (
        signax.noisy_sign_sgd(0.1, -0.5)
    ),
    "dense_steps must not be negative, got -1": lambda: signax.warmup(
        -1, signax.sign_sgd(0.1), dense=signax.dense_sgd(0.1)
    ),
    "freeze_steps must be at least 1, got 0": lambda: signax.one_bit_adam(0.1, freeze_steps=0),
    "signax.dense_sgd: momentum must be in [0, 1), got 1.5": lambda: signax.dense_sgd(0.1, 1.5),
    "got sign='stochastic' and wire='lanes'": lambda: signax.ssdm(0.1, rescale=True, wire="lanes"),
    "use signax.ef_sign_sgd": lambda: signax.ssdm(0.1, rescale=True, sign="deterministic"),
}


@pytest.mark.parametrize("message", NO_SENSE)
def test_what_makes_no_sense_is_refused_at_construction(message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        NO_SENSE[message]()


NO_NUMBER: dict[str, Callable] = {
    "signax.signum: beta": lambda x: signax.signum(0.1, x),
    "signax.distributed_lion: b1": lambda x: signax.distributed_lion(0.1, x),
    "signax.ef21: beta": lambda x: signax.ef21(0.1, x),
    "signax.diana: alpha": lambda x: signax.diana(0.1, x),
    "signax.dense_sgd: momentum": lambda x: signax.dense_sgd(0.1, x),
    "signax.scale_by_noisy_sign: noise_scale": lambda x: signax.noisy_sign_sgd(0.1, x),
    "signax.one_bit_adam: freeze_steps": lambda x: signax.one_bit_adam(0.1, freeze_steps=x),
    "signax.baselines.tern_grad: clip_sigmas": lambda x: signax.baselines.tern_grad(
        0.1, clip_sigmas=x
    ),
    "signax.warmup: dense_steps": lambda x: signax.warmup(
        x, signax.sign_sgd(0.1), dense=signax.dense_sgd(0.1)
    ),
    "signax.dense_below: num_coordinates": lambda x: signax.dense_below(
        x, signax.sign_sgd(0.1), dense=signax.dense_sgd(0.1)
    ),
    "signax.diagnostics.track_votes: decay": lambda x: signax.diagnostics.track_votes(
        signax.majority_vote(None), axis_name=None, decay=x
    ),
}


@pytest.mark.parametrize("what", NO_NUMBER)
def test_a_word_in_the_place_of_a_number_is_refused_at_construction(what: str):
    with pytest.raises(TypeError, match=re.escape(f"{what} must be a number, got 'workers'")):
        NO_NUMBER[what]("workers")


NO_INTEGER: dict[str, Callable] = {
    "signax.Scale: share_every": lambda x: signax.Scale("linf", running=True, share_every=x),
    "signax.make_worker_mesh: num_workers": signax.make_worker_mesh,
    "signax.make_worker_mesh: inside['devices']": lambda x: signax.make_worker_mesh(
        1, inside={"devices": x}
    ),
}


@pytest.mark.parametrize("what", NO_INTEGER)
@pytest.mark.parametrize("value", ["2", 1.5, 0, True, [2]])
def test_a_number_of_things_is_an_integer_of_at_least_one(what: str, value: Any):
    message = f"{what} must be an integer of at least 1, got {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        NO_INTEGER[what](value)


@pytest.mark.parametrize("two", [np.int64(2), np.array(2), jnp.array(2)])
def test_an_integer_of_numpy_or_jax_is_an_integer(two: Any):
    scale = signax.Scale("linf", two, running=True, share_every=two)
    assert scale == signax.Scale("linf", 2, running=True, share_every=2)
    assert (type(scale.scope), type(scale.share_every)) == (int, int)
    assert signax.make_worker_mesh(two).shape == {"workers": 2}


@pytest.mark.parametrize(
    ("call", "swapped"),
    [
        (
            "init_opt_state(tx, params, mesh)",
            lambda tx, params: signax.init_opt_state(params, tx, 2),
        ),
        ("state_specs(tx, params, mesh)", lambda tx, params: signax.state_specs(params, tx, 2)),
        (
            "init_train_state(params, tx, mesh)",
            lambda tx, params: signax.init_train_state(tx, params, 2),
        ),
        (
            "make_train_step(loss_fn, tx, mesh)",
            lambda tx, params: signax.make_train_step(tx, params, signax.make_worker_mesh(1)),
        ),
        (
            "simulate_train_step(loss_fn, tx, num_workers)",
            lambda tx, params: signax.simulate_train_step(tx, params, 2),
        ),
        (
            "abstract_train_state(params, tx, mesh, saved_on=...)",
            lambda tx, params: signax.abstract_train_state(
                tx, params, signax.make_worker_mesh(1), saved_on={"workers": 1}
            ),
        ),
        (
            "change_num_workers(state, tx, mesh)",
            lambda tx, state: signax.change_num_workers(tx, state, 2),
        ),
    ],
)
def test_parameters_in_the_place_of_the_optimizer_are_refused_with_the_right_call(
    call: str, swapped: Callable
):
    tx, params = signax.sign_sgd(0.1), {"w": jnp.ones(2)}
    message = f"signax.{call.split('(')[0]}: tx must be an Optax transformation, got a dict. Write"
    with pytest.raises(TypeError, match=re.escape(f"{message} signax.{call}.")):
        swapped(tx, params)


def test_which_leaves_are_dense_is_no_number_of_a_program():
    with pytest.raises(TypeError, match=r'^signax\.dense_below: .*static_args="num_coordinates"'):
        signax.dense_below(jnp.array(2), signax.sign_sgd(0.1), dense=signax.dense_sgd(0.1))
    with pytest.raises(ValueError, match="must not be negative, got nan"):
        signax.dense_below(float("nan"), signax.sign_sgd(0.1), dense=signax.dense_sgd(0.1))


@pytest.mark.parametrize("scale", ["linf", None, True])
def test_a_scale_is_a_scale_or_a_number(scale: Any):
    with pytest.raises(TypeError, match=r"^signax\.ssdm: scale must be a "):
        signax.ssdm(0.1, scale=scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e39, jnp.array(0.0)])
def test_a_scale_that_is_not_positive_or_not_finite_is_refused_at_construction(scale):
    with pytest.raises(ValueError, match=r"^signax\.scale_by_stochastic_sign: scale must be pos"):
        signax.scale_by_stochastic_sign(0, axis_name=None, scale=scale)
    with pytest.raises(ValueError, match=r"^signax\.diana: scale must be positive"):
        signax.diana(0.1, scale=scale)


def test_r_of_the_stochastic_sign_is_a_finite_number_and_not_negative():
    for scale in (-1.0, np.inf, np.nan, 1e39):
        with pytest.raises(ValueError, match="scale must be finite in float32 and not negative"):
            signax.stochastic_sign(0, jnp.ones(3), scale)
    with pytest.raises(TypeError, match="scale must be a number, got 'l2'"):
        signax.stochastic_sign(0, jnp.ones(3), "l2")


def test_scales_of_blocks_are_no_scale_of_a_leaf_also_in_a_chain_of_ones_own():
    with pytest.raises(ValueError, match="scale_by_stochastic_sign: rescale=True sends one scale"):
        signax.scale_by_stochastic_sign(
            0, axis_name=None, scale=signax.Scale(scope=2), rescale=True
        )
