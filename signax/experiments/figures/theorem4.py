"""The rate of Theorem 4: SSDM with beta = 1 - K^(-1/2) and gamma = K^(-3/4), against K.

(1/K) sum_k E||grad f(x_k)|| for runs of K steps. With homogeneous workers (f_n = f, M = 5) it falls
as K^(-1/4). With workers that differ it stalls, as the stochastic sign does not see how large a
worker's gradient is; one scale for all workers is the cure.

Left open by the paper, chosen here (it has no such experiment):
  homogeneous    f(x) = sum_i x_i^2 / 2, d = 10, normal noise of standard deviation 1 per coordinate
  heterogeneous  f_1(x) = (x - 2)^2 / 4 and f_2(x) = 3 (x + 2)^2 / 4 without noise, d = 1: from
                 x0 = sqrt(2) - 1 the two signs cancel for ever, and |f'| = 1.41
  K              100 to 100,000, 4 repetitions; the slope is fitted in log-log to all K
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import signax
from signax import theory
from signax.experiments.compare import compare
from signax.experiments.figures.made import Claim, Made, tidy

_DIMENSION, _WORKERS, _NOISE = 10, 5, 1.0
_CENTERS, _WEIGHTS = jnp.array([2.0, -2.0]), jnp.array([0.5, 1.5])  # f_n' = w_n (x - c_n)
_HOMOGENEOUS, _STALLED, _CURED = "homogeneous", "heterogeneous", "heterogeneous, shared scale"


def make(is_quick: bool) -> Made:
    """Runs the three cases for every K and fits the slopes."""
    all_steps = [100, 10_000] if is_quick else [100, 316, 1000, 3162, 10_000, 31_623, 100_000]
    seeds = range(2 if is_quick else 4)
    shared = signax.Scale(shared=True)
    cases = {
        _HOMOGENEOUS: partial(_homogeneous, seeds=seeds),
        _STALLED: partial(_heterogeneous, scale=signax.Scale()),
        _CURED: partial(_heterogeneous, scale=shared),
    }
    averages = {
        name: np.array([run(num_steps=k).mean() for k in all_steps]) for name, run in cases.items()
    }
    bound = [
        theory.theorem_4_bound(_DIMENSION / 2, _NOISE * _DIMENSION**0.5, 1.0, _DIMENSION, float(k))
        for k in all_steps
    ]
    bound = np.asarray(bound)
    slopes = {
        name: float(np.polyfit(np.log(all_steps), np.log(average), 1)[0])
        for name, average in averages.items()
    }
    table = {"num_steps": all_steps, "bound_homogeneous": bound, **averages}
    settings = f"K = {all_steps[0]} to {all_steps[-1]:,}, {len(seeds)} repetitions"
    return Made(
        _draw(all_steps, averages, bound, slopes),
        {"": table},
        settings,
        _claims(averages, bound, slopes),
    )


def _homogeneous(num_steps: int, seeds: range) -> np.ndarray:
    def sample(key, worker):
        del worker
        return _NOISE * jax.random.normal(key, (1, _DIMENSION))

    loss = lambda x, noise: jnp.sum(x**2) / 2 + jnp.sum(noise @ x)  # noqa: E731
    start = jnp.ones(_DIMENSION)
    return _gradient_norms(
        loss, jnp.linalg.norm, start, sample, _WORKERS, num_steps, seeds, signax.Scale()
    )


def _heterogeneous(num_steps: int, scale: signax.Scale) -> np.ndarray:
    def loss(x, worker):
        n = worker[0]
        return jnp.sum(_WEIGHTS[n] * (x - _CENTERS[n]) ** 2) / 2

    def norm(x):
        return jnp.abs(jnp.mean(_WEIGHTS * (x[0] - _CENTERS)))

    start = jnp.array([2.0**0.5 - 1.0])
    sample = lambda key, worker: worker[None]  # noqa: E731
    return _gradient_norms(loss, norm, start, sample, 2, num_steps, range(2), scale)


def _gradient_norms(loss, norm, start, sample, num_workers, num_steps, seeds, scale) -> np.ndarray:
    """||grad f(x_k)||, k = 0, ..., K - 1: [seed, k]."""
    rate, beta = theory.theorem_4_hyperparameters(num_steps)
    result = compare(
        loss,
        start,
        sample,
        {"SSDM": lambda rate: signax.ssdm(rate, beta, axis_name="workers", scale=scale)},
        learning_rates=[float(rate)],
        num_workers=num_workers,
        num_steps=num_steps,
        seeds=seeds,
        metrics={"norm": norm},
        eval_steps=num_steps,
    )
    return result["norm"][0, 0, 0, :, :-1]


def _claims(averages: Any, bound: np.ndarray, slopes: dict[str, float]) -> tuple[Claim, ...]:
    last = averages[_STALLED][-1]
    return (
        Claim(
            "homogeneous workers: rate K^(-1/4) (slope within 0.1)",
            f"slope {slopes[_HOMOGENEOUS]:.3f}",
            abs(slopes[_HOMOGENEOUS] + 0.25) < 0.1,
        ),
        Claim(
            "homogeneous workers: the average is below Theorem 4's bound at every K",
            f"at most {np.max(averages[_HOMOGENEOUS] / bound):.3f} of the bound",
            bool(np.all(averages[_HOMOGENEOUS] <= bound)),
        ),
        Claim(
            "printed for any workers, the rate K^(-1/4) also for those that differ (slope within"
            " 0.1)",
            f"slope {slopes[_STALLED]:.3f}, average gradient {last:.3f} at the largest K: it"
            f" stalls. With Scale(shared=True): slope {slopes[_CURED]:.3f},"
            f" {averages[_CURED][-1]:.3f}",
            abs(slopes[_STALLED] + 0.25) < 0.1,
        ),
    )


def _draw(all_steps: Any, averages: Any, bound: np.ndarray, slopes: dict[str, float]) -> Figure:
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    ax = figure.subplots()
    for name, marker in ((_HOMOGENEOUS, "o-"), (_STALLED, "s-"), (_CURED, "^-")):
        label = f"{name}: slope {slopes[name]:.2f}"
        ax.loglog(all_steps, averages[name], marker, label=label)
    guide = averages[_HOMOGENEOUS][0] * (np.array(all_steps) / all_steps[0]) ** -0.25
    ax.loglog(all_steps, guide, ":", color="0.5", label="slope -1/4")
    ax.loglog(all_steps, bound, "--", color="0.5", label="Theorem 4's bound (homogeneous)")
    ax.set_xlabel("number of steps K")
    ax.set_ylabel(r"mean over k < K of $\|\nabla f(x_k)\|$")
    ax.legend(fontsize=9)
    tidy(ax)
    return figure
