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
}


@pytest.mark.parametrize("what", NO_NUMBER)
def test_the_axis_in_the_place_of_a_number_is_refused_at_construction(what: str):
    with pytest.raises(TypeError, match=re.escape(f"{what} must be a number, got 'workers'")):
        NO_NUMBER[what]("workers")


@pytest.mark.parametrize("scale", ["linf", None, True])
def test_a_scale_is_a_scale_or_a_number(scale: Any):
    with pytest.raises(TypeError, match=r"^signax\.ssdm: scale must be a "):
        signax.ssdm(0.1, scale=scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), jnp.array(0.0)])
def test_a_scale_that_is_not_positive_is_refused_at_construction(scale):
    with pytest.raises(ValueError, match=r"^signax\.scale_by_stochastic_sign: scale must be pos"):
        signax.scale_by_stochastic_sign(0, axis_name=None, scale=scale)
    with pytest.raises(ValueError, match=r"^signax\.diana: scale must be positive"):
        signax.diana(0.1, scale=scale)


def test_r_of_the_stochastic_sign_is_a_number_and_not_negative():
    with pytest.raises(ValueError, match="scale must not be negative"):
        signax.stochastic_sign(0, jnp.ones(3), -1.0)
    with pytest.raises(TypeError, match="scale must be a number, got 'l2'"):
        signax.stochastic_sign(0, jnp.ones(3), "l2")


def test_scales_of_blocks_are_no_scale_of_a_leaf_also_in_a_chain_of_ones_own():
    with pytest.raises(ValueError, match="scale_by_stochastic_sign: rescale=True sends one scale"):
        signax.scale_by_stochastic_sign(
            0, axis_name=None, scale=signax.Scale(scope=2), rescale=True
        )
