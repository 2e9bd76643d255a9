"""Pieces of a buffer are cut so that those of one size are one loop of machine code."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from signax import _alike
from workers import Mapped

SIZES = (3, 5, 3, 0, 3, 0, 1, 2)


def cut_by_numpy(x: jax.Array) -> list[np.ndarray]:
    return np.split(np.asarray(x), np.cumsum(SIZES), axis=1)[:-1]  # but for what is left over


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 - 1, -(2**31)])
def test_pieces_are_cut_one_after_the_other_whatever_the_seed(seed: int):
    x = jnp.arange(40.0).reshape(2, 20)
    pieces = jax.jit(lambda x, seed: _alike.cut([x, 2 * x], SIZES, seed))(x, jnp.int32(seed))
    for found, expected in zip(pieces, cut_by_numpy(x), strict=True):
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], 2 * expected)


def test_each_worker_cuts_its_own_array_with_a_seed_of_its_own(mapped: Mapped):
    rows, seeds = jnp.arange(80.0).reshape(4, 20), jnp.arange(4) - 1
    pieces = mapped(lambda x, seed: _alike.cut([x], SIZES, seed), rows, seeds)
    for (found,), expected in zip(pieces, cut_by_numpy(rows), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_only_pieces_of_a_size_that_comes_again_are_cut_at_a_number_in_memory():
    program = jax.make_jaxpr(lambda x, seed: _alike.cut([x], SIZES, seed))(jnp.ones(20), 1)
    cuts = [str(equation.primitive) for equation in program.eqns]
    assert cuts.count("slice") == 3, "of 5, 1 and 2"
    assert cuts.count("dynamic_slice") == 5


def loops(tx: optax.GradientTransformation, num_leaves: int) -> int:
    """How many different loops the compiled update of one worker has."""
    grads = {f"leaf {i}": jnp.ones(5_000) for i in range(num_leaves)}
    text = jax.jit(tx.update).lower(grads, tx.init(grads)).compile().as_text()
    found = re.findall(r"\n(%?fused_computation\S* .*?\n\})", text, re.DOTALL)
    return len(set(map(without_names, found)))


def without_names(computation: str) -> str:
    """Values are numbered in the order in which they appear; where in Python they are from goes."""
    names: dict[str, str] = {}
    computation = re.sub(r", metadata=\{[^}]*\}", "", computation)
    return re.sub(
        r"%[\w.\-]+|\b(param|fused_computation)[\w.]*",
        lambda name: names.setdefault(name[0].lstrip("%"), f"v{len(names)}"),
        computation,
    )


@pytest.mark.parametrize("make", [signax.ssdm, signax.signum])
def test_twice_as_many_leaves_of_one_size_have_no_more_loops(make: Callable):
    """Neither for their momentum and norm nor for their draws, words, values or steps."""
    tx = make(0.1, axis_name=None)
    assert 1 < loops(tx, 20) <= loops(tx, 10)
