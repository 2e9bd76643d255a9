"""The doctor's estimates against laws whose success probabilities, moments and norms are known.

A mean of n independent draws lies within six of its standard deviations but once in 5e8 times; the
seeds are fixed.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from signax import diagnostics, theory
from signax.diagnostics import _success


def linear_loss(params: Any, noise: Any) -> jax.Array:
    """Its gradient is the noise, averaged over a worker's examples, whatever the parameters."""
    terms = jax.tree.map(lambda p, x: jnp.sum(p * jnp.mean(x, axis=0)), params, noise)
    return sum(jax.tree.leaves(terms), start=jnp.zeros(()))


def normal_draws(
    gradient: np.ndarray, sigma: np.ndarray, num_workers: int, num_batches: int, seed: int = 0
) -> np.ndarray:
    random = np.random.default_rng(seed)
    shape = (num_batches, num_workers, gradient.size)
    return (gradient + sigma * random.normal(size=shape)).astype(np.float32)


M, T, D = 8, 64, 400
GRADIENT = np.linspace(-2, 2, D)
SIGMA = np.where(np.arange(D) % 2, 1.0, 0.5)
RHO = stats.norm.cdf(np.abs(GRADIENT) / SIGMA)
DRAWS = M * T // 2  # the second half of the batches


@pytest.fixture(scope="module")
def normal() -> diagnostics.Report:
    """Normal noise, reference estimated."""
    return diagnostics.examine(
        linear_loss, jnp.zeros(D), normal_draws(GRADIENT, SIGMA, M, T), num_workers=M
    )


def test_success_probabilities_are_those_of_the_normal_law(normal: diagnostics.Report):
    assert normal.num_draws == DRAWS
    resolved = np.abs(GRADIENT) > 0.4  # 0.4 * sqrt(256): six standard errors of the reference
    error = normal.coordinates.rho - RHO
    # Hoeffding: P(|error| > t) <= 2 exp(-2 n t^2), over 400 coordinates below 1e-9.
    assert np.max(np.abs(error[resolved])) < math.sqrt(math.log(2 * D / 1e-9) / (2 * DRAWS))
    # The mean error over the coordinates has standard deviation at most 1 / (2 sqrt(n d)).
    assert abs(error[resolved].mean()) < 6 * 0.5 / math.sqrt(DRAWS * resolved.sum())


def test_intervals_cover_the_truth_as_often_as_they_say(normal: diagnostics.Report):
    resolved = np.abs(GRADIENT) > 0.4
    inside = (normal.coordinates.rho_lower <= RHO) & (normal.coordinates.rho_upper >= RHO)
    # A miss has probability 0.01 on average (checked below), so of 320 at most 15 but for 1e-6.
    assert np.sum(~inside[resolved]) <= stats.binom.isf(1e-6, resolved.sum(), 0.011)
    assert normal.coordinates.rho_upper.max() <= 1


@pytest.mark.parametrize("n", [32, 256])
def test_wilsons_interval_covers_by_the_exact_binomial_law(n: int):
    rho, counts = np.linspace(0.01, 0.99, 99), np.arange(n + 1)
    interval = _success.wilson(counts / n, n, 0.99)
    chance = stats.binom.pmf(counts, n, rho[:, None])
    is_inside = (interval.lower <= rho[:, None]) & (rho[:, None] <= interval.upper)
    coverage = np.sum(chance * is_inside, axis=1)
    assert coverage.mean() > 0.988
    assert coverage[np.abs(rho - 0.5) < 0.3].min() > 0.98  # near 1/2, where it decides
    assert coverage.min() > 0.9  # at the ends it is known to dip


def test_no_draw_judges_itself():
    """Pure noise: agreement with a mean that one is part of would find 0.557 here."""
    draws = normal_draws(np.zeros(D), np.ones(D), 1, 64)
    report = diagnostics.examine(linear_loss, jnp.zeros(D), draws)
    n = 32 * D
    naive = np.mean(np.sign(draws[32:, 0]) == np.sign(draws[32:].mean(axis=(0, 1)))[None])
    tolerance = 6 * 0.5 / math.sqrt(n)
    assert naive > 0.5 + tolerance
    assert abs(report.coordinates.rho.mean() - 0.5) < tolerance
    # Two coordinates in 740 seem resolved by chance: of 400, hardly ever more than 8.
    assert report.total.num_unresolved >= D - 8
    # Nothing is there to see, and it says so.
    assert abs(report.total.rho_norm) <= 2 * report.total.rho_norm_error
    assert report.verdict.name == "not_enough_batches"


def test_norms_and_the_gain_of_m_workers_are_those_of_the_theory(normal: diagnostics.Report):
    total = normal.total
    truth = float(theory.rho_norm(GRADIENT, RHO))
    # The steps' spread gives an interval of 2.58 standard deviations, given a reference whose own
    # error adds as much again as sum sigma^2 / n: six standard deviations of both.
    reference = math.sqrt(np.sum(SIGMA**2) / DRAWS)
    tolerance = 6 * math.hypot(total.rho_norm_error / 2.576, reference)
    assert total.rho_norm == pytest.approx(truth, abs=tolerance)
    assert tolerance < 0.05 * truth
    assert total.gain[0] == pytest.approx(total.rho_norm, rel=1e-5)  # two ways to the same sum
    for m in (3, 15, 63):
        expected = float(theory.rho_m_norm(GRADIENT, RHO, m))
        # rho^ has standard deviation up to 0.03, across a curve that bends: up to 2 % are lost.
        assert total.gain[m - 1] == pytest.approx(expected, abs=tolerance + 0.02 * expected)
    assert total.vote_norm == pytest.approx(float(theory.rho_m_norm(GRADIENT, RHO, M)), rel=0.03)
    promised = float(theory.l12_norm(GRADIENT, SIGMA))
    assert total.promised_norm == pytest.approx(promised, rel=0.03)


def test_the_noise_is_measured_and_has_the_shape_of_the_normal_law(normal: diagnostics.Report):
    at = normal.coordinates
    # A standard deviation from n normal draws has relative spread 1 / sqrt(2 n).
    np.testing.assert_allclose(at.sigma, SIGMA, rtol=6 / math.sqrt(2 * DRAWS))
    assert normal.total.noise_to_signal == pytest.approx(
        math.sqrt(np.sum(SIGMA**2) / np.sum(GRADIENT**2)), rel=0.03
    )
    assert np.median(at.kurtosis) == pytest.approx(0, abs=0.1)
    # 1 % of 400 coordinates by chance; 13 or more once in 1e4 (skewness is near normal at n = 256).
    assert normal.total.asymmetric_share <= 13 / D
    assert normal.total.not_unimodal_share == 0
    assert normal.verdict.name == "sign_friendly"


# Laws of mean 0 and variance 1: (draw, skewness, excess kurtosis, E|x|^3, is it unimodal)
LAWS: dict[str, tuple[Any, float, float, float, bool]] = {
    "normal": (lambda r, s: r.normal(size=s), 0.0, 0.0, math.sqrt(8 / math.pi), True),
    "laplace": (lambda r, s: r.laplace(0, 0.5**0.5, s), 0.0, 3.0, 6 / 8**0.5, True),
    "uniform": (lambda r, s: r.uniform(-(3**0.5), 3**0.5, s), 0.0, -1.2, 3**1.5 / 4, True),
    "two values": (lambda r, s: r.choice([-1.0, 1.0], s), 0.0, -2.0, 1.0, False),
    "exponential": (lambda r, s: r.exponential(size=s) - 1, 2.0, 6.0, 12 / math.e - 2, True),
    "skewed pair": (lambda r, s: np.where(r.random(s) < 0.2, 2.0, -0.5), 1.5, 0.25, 1.7, False),
}
LEAF = 60


@pytest.fixture(scope="module", params=[1.0, 1e-14], ids=["unit 1", "unit 1e-14"])
def laws(request: pytest.FixtureRequest) -> diagnostics.Report:
    """One leaf for each law, gradient 1 / 2, reference given; in a tiny unit, too."""
    random, unit = np.random.default_rng(1), request.param
    shape = (T, M, LEAF)
    draws = {k: unit * (0.5 + law[0](random, shape)) for k, law in LAWS.items()}
    batches = [{k: jnp.asarray(x[t], jnp.float32) for k, x in draws.items()} for t in range(T)]
    params = {k: jnp.zeros(LEAF) for k in LAWS}
    reference = {k: jnp.full(LEAF, 0.5 * unit) for k in LAWS}
    return diagnostics.examine(linear_loss, params, batches, num_workers=M, reference=reference)


@pytest.mark.parametrize("name", LAWS)
def test_the_shape_of_a_known_law_is_found(laws: diagnostics.Report, name: str):
    _, skewness, kurtosis, absolute, is_unimodal = LAWS[name]
    found = {leaf.name: leaf for leaf in laws.leaves}[f"['{name}']"]
    at = jax.tree.map(lambda x: x[name], laws.coordinates, is_leaf=lambda x: isinstance(x, dict))
    # Medians over 60 coordinates of statistics with n = 512; the exponential's sample kurtosis has
    # a long tail and a median below the law's.
    assert np.median(at.skewness) == pytest.approx(skewness, abs=0.15)
    assert np.median(at.kurtosis) == pytest.approx(kurtosis, abs=0.25 + 0.2 * abs(kurtosis))
    assert found.not_unimodal_share == (0 if is_unimodal else 1)
    assert (found.asymmetric_share > 0.5) == (skewness != 0)
    expected = theory.lemma_3_batch_size(0.5, 1.0, absolute ** (1 / 3))
    assert np.median(at.batch_factor) == pytest.approx(float(expected), abs=1)


def test_leaves_add_up_to_the_total(laws: diagnostics.Report):
    parts, total = laws.leaves, laws.total
    for field in ("num_coordinates", "num_right", "num_open", "rho_norm", "l1_norm", "between"):
        assert getattr(total, field) == pytest.approx(sum(getattr(p, field) for p in parts), 1e-3)
    counted = ("num_right", "num_wrong", "num_open", "num_unresolved", "num_dead")
    for part in (*parts, total):
        assert sum(getattr(part, field) for field in counted) == part.num_coordinates


def test_a_gradient_without_noise_is_always_right():
    g = np.array([3.0, -4.0, 0.0, 1.0], np.float32)
    report = diagnostics.examine(
        lambda p, x: linear_loss(p, {"a": x[:, :3], "b": x[:, 3:]}),
        {"a": jnp.zeros(3), "b": jnp.zeros(1)},
        np.tile(g, (16, 1, 1)),
    )
    total = report.total
    assert (total.num_right, total.num_dead, total.always_zero) == (3, 1, 1)
    assert total.zero_share == 0.25
    assert total.rho_norm == total.l1_norm == total.gain[63] == 8
    assert total.batch_factor == (1, 1)
    assert total.noise_to_signal == 0
    assert math.isnan(total.kurtosis)
    # The signal by hand: mean over four coordinates of |g_i| / R.
    expected = {
        "l2 global": 8 / 26**0.5 / 4,
        "l2 leaf": (7 / 5 + 1) / 4,
        "linf global": 2 / 4,
        "linf leaf": (7 / 4 + 1) / 4,
    }
    assert total.signal == pytest.approx(expected, rel=1e-5)
    assert any("random-walk" in reason for reason in report.verdict.reasons)
    assert any('ties="zero"' in advice for advice in report.verdict.advice)


def workers_with(means: np.ndarray, sigma: float) -> np.ndarray:
    """Draws of M workers whose mean gradients are the rows of `means`."""
    noise = np.random.default_rng(2).normal(size=(T, *means.shape))
    return (means + sigma * noise).astype(np.float32)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_disagreement_between_the_workers_is_told_from_noise(spread: float):
    signs = np.array([1, 1, -1, -1])[:, None]
    means = 0.3 + spread * signs * np.ones((4, 100))
    report = diagnostics.examine(
        linear_loss, jnp.zeros(100), workers_with(means, 1.0), num_workers=4
    )
    # Between: 100 coordinates of variance 4/3 spread^2. The sample variance of four means of 32
    # draws has the standard deviation sqrt(2/3) / 32 where their expectations agree, and at most
    # 4/3 spread / sqrt(32) more where they do not; the sum over 100 coordinates ten times that.
    truth = 100 * 4 / 3 * spread**2
    tolerance = 6 * 10 * (math.sqrt(2 / 3) / 32 + 4 / 3 * spread / math.sqrt(32))
    assert report.total.between == pytest.approx(truth, abs=tolerance)
    assert report.total.within == pytest.approx(100, rel=0.1)
    assert report.verdict.name == ("heterogeneous" if spread else "sign_friendly")
    assert any("shared=True" in advice for advice in report.verdict.advice) == bool(spread)


def test_workers_without_noise_can_disagree_for_good():
    """f_1 = (x - 2)^2 / 4 and f_2 = 3 (x + 2)^2 / 4 at sqrt(2) - 1: the signs are opposite."""
    slopes, targets = jnp.array([0.5, 1.5]), jnp.array([2.0, -2.0])

    def loss(x, worker):
        return jnp.mean(slopes[worker] / 2 * (x[0] - targets[worker]) ** 2)

    x = jnp.array([2**0.5 - 1])
    report = diagnostics.examine(loss, x, [jnp.arange(2)] * 8, num_workers=2)
    assert report.verdict.name == "heterogeneous"
    assert report.total.vote_norm == 0
    g = np.array([0.5, 1.5]) * (2**0.5 - 1 - np.array([2, -2]))
    assert report.total.between == pytest.approx(np.var(g, ddof=1), rel=1e-5)
    assert report.total.squared_norm == pytest.approx(g.mean() ** 2, rel=1e-5)
    assert report.norm_spread == pytest.approx(abs(g[1] / g[0]), rel=1e-5)


def test_weak_signals_are_called_noisy_and_workers_help():
    g = np.full(D, 0.02)
    draws = normal_draws(g, np.ones(D), M, T)
    report = diagnostics.examine(
        linear_loss, jnp.zeros(D), draws, num_workers=M, reference=jnp.asarray(g, jnp.float32)
    )
    # rho = 0.508; the mean of n d = 204,800 signs has standard deviation 1 / 453.
    ratio = report.total.rho_norm / report.total.l1_norm
    assert ratio == pytest.approx(2 * stats.norm.cdf(0.02) - 1, abs=6 / 453)
    assert report.verdict.name == "noisy"
    assert any("more workers: 9 gain" in advice for advice in report.verdict.advice)


def test_one_worker_cannot_disagree():
    report = diagnostics.examine(linear_loss, jnp.zeros(3), normal_draws(np.ones(3), 1.0, 1, 32))
    assert math.isnan(report.total.between)
    assert report.cost.num_workers == 8


def test_the_report_is_text_and_json_and_frozen(normal: diagnostics.Report):
    plain = json.loads(json.dumps(normal.to_dict(), allow_nan=False))
    assert plain["total"]["num_right"] == normal.total.num_right
    assert plain["verdict"]["name"] == "sign_friendly"
    assert "coordinates" not in plain
    text = str(normal)
    assert "VERDICT  sign_friendly" in text
    assert f"{normal.total.rho_norm / normal.total.l1_norm:.1%}" in text
    assert max(map(len, text.split("VERDICT")[0].splitlines())) <= 110
    with pytest.raises(dataclasses.FrozenInstanceError):
        normal.num_workers = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_draw_that_is_not_finite_is_left_out_and_counted():
    draws = normal_draws(np.full(5, 3.0), 1.0, 2, 32)
    draws[3, 0, 1], draws[20, 1, 2] = np.nan, np.inf
    report = diagnostics.examine(linear_loss, jnp.zeros(5), draws, num_workers=2)
    assert (report.num_nonfinite, report.num_draws) == (2, 31)
    assert np.all(np.isfinite(report.coordinates.sigma))
    assert report.total.num_right == 5
    draws[:, 1] = np.nan
    with pytest.raises(ValueError, match="worker 1 has fewer than two finite gradients"):
        diagnostics.examine(linear_loss, jnp.zeros(5), draws, num_workers=2)


def test_a_stream_is_read_once_and_no_further_than_asked():
    seen = []

    def stream() -> Iterator[np.ndarray]:
        for t in itertools.count():
            seen.append(t)
            yield normal_draws(np.ones(2), 1.0, 1, 1, seed=t)[0]

    report = diagnostics.examine(linear_loss, jnp.zeros(2), stream(), num_batches=10)
    assert seen == list(range(10))
    assert report.num_batches == 5


def test_auxiliary_output_of_the_loss_is_ignored():
    def loss(params, noise):
        return linear_loss(params, noise), {"accuracy": 0.0}

    draws = normal_draws(np.ones(2), 0.1, 1, 20)
    assert diagnostics.examine(loss, jnp.zeros(2), draws, has_aux=True).total.num_right == 2


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no coordinates": ({"params": {}}, ValueError, "hold no coordinate"),
    "integers": ({"params": jnp.zeros(2, int)}, TypeError, "dtype int32"),
    "few batches": ({"batches": np.ones((5, 2, 2))}, ValueError, "ended after 5 batches"),
    "few asked for": ({"num_batches": 7}, ValueError, "num_batches=7"),
    "no worker": ({"num_workers": 0}, ValueError, "at least 1"),
    "uneven batch": ({"num_workers": 3}, ValueError, r"shape \(2, 2\)"),
    "confidence": ({"confidence": 95}, ValueError, "between 0 and 1"),
    "no planned worker": ({"planned_workers": 0}, ValueError, "planned_workers=0"),
    "no bandwidth": ({"bandwidth": 0.0}, ValueError, "bandwidth=0.0"),
    "reference": ({"reference": jnp.zeros(3)}, ValueError, r"that of the parameter, \(2,\)"),
    "reference's tree": ({"reference": {"a": jnp.zeros(2)}}, ValueError, "a tree like params"),
    "reference's NaN": ({"reference": jnp.full(2, jnp.nan)}, ValueError, "a NaN"),
    "stationary": ({"batches": np.zeros((8, 2, 2))}, ValueError, "zero in every coordinate"),
    "empty batch": ({"batches": [{}] * 8}, ValueError, "batch 0 holds no array"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_to_write_instead(mistake: str):
    changes, error, message = MISTAKES[mistake]
    arguments: dict[str, Any] = {"params": jnp.zeros(2), "batches": np.ones((8, 2, 2))}
    with pytest.raises(error, match=message):
        diagnostics.examine(linear_loss, **(arguments | changes))


def test_compression_pays_on_a_slow_link_and_not_on_a_fast_one():
    d, slow, fast = 20_000, 1e5, 1e15
    draws = normal_draws(np.ones(d), 1.0, 1, 8)
    reports = [
        diagnostics.examine(
            linear_loss, jnp.zeros(d), draws, bandwidth=b, compute_seconds=0.01, planned_workers=4
        )
        for b in (slow, fast)
    ]
    costs = [report.cost for report in reports]
    for cost, bandwidth in zip(costs, (slow, fast), strict=True):
        for method in cost.methods:
            sending = method.bits_per_coordinate * d / bandwidth
            assert method.step_seconds == pytest.approx(0.01 + method.local_seconds + sending)
    # The slow link is all there is: 48 bits against 3.
    assert costs[0].of('majority vote, ties="zero"').speedup == pytest.approx(16, rel=0.2)
    assert [report.verdict.compress for report in reports] == [True, False]
    assert "signax.dense_sgd" in reports[1].verdict.advice[0]
    assert "compress at this bandwidth? no" in str(reports[1])
