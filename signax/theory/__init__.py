r"""The paper's probabilities, norms and rates, as plain functions of arrays.

| in the paper | here |
| --- | --- |
| Lemma 1: unimodal and symmetric noise | `lemma_1_success_probability` |
| Lemma 2: strong growth | `lemma_2_success_probability`, `lemma_2_batch_size` |
| Lemma 3: any noise with a third moment | `lemma_3_success_probability`, `lemma_3_batch_size` |
| Lemma 4: differential entropy | `lemma_4_largest_entropy`, `lemma_4_spb_entropy` |
| Definition 1: rho-norm, (8) | `rho_norm` |
| (7) and its two equivalences | `l12_norm`, `l12_bounds_near`, `l12_bounds_far` |
| Definition 2: rho_M-norm | `rho_m_norm`, `expected_majority`, `majority_probabilities` |
| speedup with respect to M | `hoeffding_bound` |
| Definition 3: stochastic sign | `stochastic_sign_success_probability` |
| Theorem 1: (9), (10) | `theorem_1_decreasing_bound`, `theorem_1_bound` |
| Theorem 2 | `theorem_2_decreasing_bound`, `theorem_2_bound` |
| Theorem 3: (11), (12) | `theorem_3_decreasing_bound`, `theorem_3_bound` |
| Theorem 4 | `theorem_4_bound` |
| their step sizes | `inverse_sqrt_schedule`, `theorem_4_hyperparameters` |

All are written in `jax.numpy`: they broadcast, run under `jax.jit`, `jax.vmap` and `jax.grad`, and
work in float32 or, under `jax.enable_x64`, in float64. Where a statement of the paper fails as
printed, the docstring says so. In all of them g is the true gradient, sigma the standard deviation
of one coordinate of the stochastic gradient, and rho the probability that its sign is right.

Source: Safaryan and Richtarik, Stochastic Sign Descent Methods: New Algorithms and Better Theory,
ICML 2021, arXiv:1905.12938.
"""

from signax.theory._entropy import lemma_4_largest_entropy, lemma_4_spb_entropy
from signax.theory._majority import (
    MajorityProbabilities,
    expected_majority,
    hoeffding_bound,
    majority_probabilities,
)
from signax.theory._norms import (
    Bounds,
    l12_bounds_far,
    l12_bounds_near,
    l12_norm,
    rho_m_norm,
    rho_norm,
)
from signax.theory._rates import (
    theorem_1_bound,
    theorem_1_decreasing_bound,
    theorem_2_bound,
    theorem_2_decreasing_bound,
    theorem_3_bound,
    theorem_3_decreasing_bound,
    theorem_4_bound,
)
from signax.theory._step_sizes import (
    SSDMHyperparameters,
    inverse_sqrt_schedule,
    theorem_4_hyperparameters,
)
from signax.theory._success import (
    lemma_1_success_probability,
    lemma_2_batch_size,
    lemma_2_success_probability,
    lemma_3_batch_size,
    lemma_3_success_probability,
    stochastic_sign_success_probability,
)

__all__ = [
    "Bounds",
    "MajorityProbabilities",
    "SSDMHyperparameters",
    "expected_majority",
    "hoeffding_bound",
    "inverse_sqrt_schedule",
    "l12_bounds_far",
    "l12_bounds_near",
    "l12_norm",
    "lemma_1_success_probability",
    "lemma_2_batch_size",
    "lemma_2_success_probability",
    "lemma_3_batch_size",
    "lemma_3_success_probability",
    "lemma_4_largest_entropy",
    "lemma_4_spb_entropy",
    "majority_probabilities",
    "rho_m_norm",
    "rho_norm",
    "stochastic_sign_success_probability",
    "theorem_1_bound",
    "theorem_1_decreasing_bound",
    "theorem_2_bound",
    "theorem_2_decreasing_bound",
    "theorem_3_bound",
    "theorem_3_decreasing_bound",
    "theorem_4_bound",
    "theorem_4_hyperparameters",
]
