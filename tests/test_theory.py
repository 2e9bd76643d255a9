"""Every public function of `signax.theory`: its docstring, and what one may do with it in JAX."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from signax import theory

FUNCTIONS = {
    "expected_majority": (lambda rho: theory.expected_majority(rho, 5), [0.3, 0.8]),
    "hoeffding_bound": (lambda rho: theory.hoeffding_bound(rho, 5), [0.6, 0.8]),
    "majority": (lambda rho: jnp.stack(theory.majority_probabilities(rho, 4)), [0.3, 0.8]),
    "lemma_1": (theory.lemma_1_success_probability, [0.5, -2.0], [1.0, 0.3]),
    "lemma_2": (theory.lemma_2_success_probability, [0.5, 2.0], [8.0, 9.0]),
    "lemma_3": (
        theory.lemma_3_success_probability,
        [0.5, -2.0],
        [1.0, 0.9],
        [1.3, 1.2],
        [8.0, 1.0],
    ),
    "lemma_4_bound": (theory.lemma_4_largest_entropy, [0.5, 2.0]),
    "lemma_4_spb": (theory.lemma_4_spb_entropy, [0.5, 2.0], [0.6, 0.7], [10.0, 20.0]),
    "l12_norm": (lambda g, s: theory.l12_norm(g[None], s[None]), [0.5, -2.0], [1.0, 0.3]),
    "rho_m_norm": (lambda g, r: theory.rho_m_norm(g[None], r[None], 6), [0.5, -2.0], [0.9, 0.7]),
    "theorem_1": (theory.theorem_1_bound, [1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    "theorem_3": (
        theory.theorem_3_decreasing_bound,
        *([1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    ),
    "theorem_2": (
        theory.theorem_2_decreasing_bound,
        *([1.0, 2.0], [3.0, 4.0], [0.1, 0.2], [10.0, 20.0]),
    ),
    "theorem_4": (
        theory.theorem_4_bound,
        [1.0, 2.0],
        [3.0, 4.0],
        [0.1, 0.2],
        [4.0, 9.0],
        [9.0, 8.0],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_differentiable_and_runs_under_jit_and_vmap(name):
    fn, *rows = FUNCTIONS[name]
    jitted = jax.jit(fn)
    with jax.enable_x64(True):
        args = tuple(jnp.array(row) for row in rows)
        one_by_one = jnp.stack([jitted(*(a[i] for a in args)) for i in range(2)])
        assert one_by_one.dtype == np.float64
        np.testing.assert_allclose(jax.jit(jax.vmap(fn))(*args), one_by_one, rtol=1e-14)
        check_grads(jitted, tuple(a[0] for a in args), order=1, rtol=1e-4)
    alone = fn(*(jnp.float32(row[0]) for row in rows))
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, one_by_one[0], rtol=1e-5)


def test_the_number_of_workers_may_be_an_array_and_traced():
    m = jnp.arange(1, 9)
    want = theory.expected_majority(0.7, m)
    alone = theory.expected_majority(0.7, 8)
    np.testing.assert_allclose(alone, want[7], rtol=1e-6)
    in_turn = jax.jit(jax.vmap(theory.expected_majority, (None, 0)))(0.7, m)
    np.testing.assert_allclose(in_turn, want, rtol=1e-6)
    assert theory.rho_m_norm(jnp.ones((1, 5, 3)), 0.7, m[:, None, None]).shape == (8, 5)


@pytest.mark.parametrize("name", theory.__all__)
def test_every_public_function_has_its_statement_an_example_and_its_place_in_the_paper(name):
    assert list(theory.__all__) == sorted(theory.__all__)
    value = getattr(theory, name)
    doc = inspect.getdoc(value) or ""
    if inspect.isroutine(value):
        assert ">>> " in doc
        assert "arXiv:1905.12938" in doc
        assert f"`{name}`" in (theory.__doc__ or ""), "missing in the table of the paper's numbers"
