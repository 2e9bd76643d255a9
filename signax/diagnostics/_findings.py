"""From sums to what a report says: of each coordinate, of each leaf, of all leaves together."""

from typing import Any

import jax
import numpy as np

from signax import theory
from signax.diagnostics import _disagreement, _draws, _noise, _success, _sums
from signax.diagnostics._measure import Measured
from signax.diagnostics._report import Coordinates, LeafReport

_LEMMA_3 = jax.jit(theory.lemma_3_batch_size)


class Findings:
    """Float64 values for each coordinate, on the host."""

    def __init__(self, measured: Measured, tree: _draws.Tree, confidence: float):
        sums = jax.tree.map(np.asarray, measured.sums)
        unit = np.asarray(measured.reference.unit, np.float64)
        self.sums, self.tree, self.confidence = sums, tree, confidence
        self.mean = np.asarray(measured.reference.mean, np.float64)
        self.num_draws = int(sums.draws.sum())
        residual = sums.residual.astype(np.float64)
        self.noise = _noise.noise_of(sums.powers.astype(np.float64), residual, sums.draws, unit)
        rows = np.asarray(measured.reference.rows, np.float64)
        means = rows + residual / sums.draws[:, None] * unit
        self.disagreement = _disagreement.disagreement_of(means, self.noise.sigma, sums.draws)
        norms = np.linalg.norm(means, axis=1)
        self.norm_spread = float(norms.max() / norms.min()) if norms.min() > 0 else float("inf")
        # A second opinion on the gradient whose noise is not that of the reference.
        is_exact = np.isinf(measured.reference_draws)
        self.other = self.mean if is_exact else means.mean(axis=0)
        self.rho = _success.success_probability(sums.signs, self.mean, self.num_draws)
        self.interval = _success.wilson(self.rho, self.num_draws, confidence)
        error = _success.standard_error(self.noise.sigma, measured.reference_draws)
        self.is_dead = self.mean == 0
        self.is_resolved = ~self.is_dead & (np.abs(self.mean) > _success.RESOLVED * error)
        self.batch_factor = np.asarray(
            _LEMMA_3(self.mean, self.noise.sigma, self.noise.nu), np.float64
        )
        self.promise = self._promise()

    def _promise(self) -> np.ndarray:
        """The terms of the l_{1,2} norm, g^2 / (|g| + sqrt(3) sigma), unbiased in g^2."""
        size = np.abs(self.mean + self.other) / 2 + np.sqrt(3) * self.noise.sigma
        return self.mean * self.other / np.where(size > 0, size, 1.0)

    def coordinates(self) -> Coordinates:
        columns = (
            self.mean, self.rho, *self.interval, self.noise.sigma, self.noise.skewness,
            self.noise.kurtosis, self.batch_factor,
        )  # fmt: skip
        return Coordinates(*(self.tree.unflatten(column) for column in columns))

    def leaf(self, index: int) -> LeafReport:
        """The report on one leaf; on all of them together for the index after the last."""
        is_all = index == len(self.tree.names)
        start, stop = (
            (0, None) if is_all else (self.tree.bounds[index], self.tree.bounds[index + 1])
        )
        at = slice(start, stop)
        mean, resolved, noise = self.mean[at], self.is_resolved[at], self.noise
        lower, upper = self.interval.lower[at], self.interval.upper[at]
        num_right, num_wrong = np.sum(resolved & (lower > 0.5)), np.sum(resolved & (upper < 0.5))
        one, one_error = self._gain(0, index)
        vote, vote_error = self._gain(1, index)
        has_noise = np.isfinite(noise.skewness[at])
        within = float(self.disagreement.within[at].sum())
        squared = float(np.sum(mean * self.other[at]))
        zeros = 1 - self.sums.nonzero[at] / self.num_draws
        return LeafReport(
            name="all leaves" if is_all else self.tree.names[index],
            num_coordinates=mean.size,
            num_right=int(num_right),
            num_wrong=int(num_wrong),
            num_open=int(resolved.sum() - num_right - num_wrong),
            num_unresolved=int(np.sum(~resolved & ~self.is_dead[at])),
            num_dead=int(np.sum(self.is_dead[at])),
            rho_quantiles=_quantiles(self.rho[at][resolved], (0.1, 0.5, 0.9)),
            l1_norm=float(np.abs(mean).sum()),
            squared_norm=squared,
            rho_norm=one,
            rho_norm_error=one_error,
            promised_norm=float(self.promise[at].sum()),
            vote_norm=vote,
            vote_norm_error=vote_error,
            gain=tuple(
                map(float, _success.predicted_gain(self.sums.signs[at], mean, self.num_draws))
            ),
            noise_to_signal=float(np.sqrt(within / squared)) if squared > 0 else float("inf"),
            skewness=_median(np.abs(noise.skewness[at][has_noise])),
            kurtosis=_median(noise.kurtosis[at][has_noise]),
            asymmetric_share=_share(noise.is_asymmetric[at][has_noise]),
            not_unimodal_share=_share(noise.is_not_unimodal[at][has_noise]),
            batch_factor=_quantiles(self.batch_factor[at][resolved], (0.5, 0.9)),
            zero_share=float(zeros.mean()),
            always_zero=int(np.sum(self.sums.nonzero[at] == 0)),
            signal=self._signal(index, is_all),
            between=float(self.disagreement.between[at].sum()),
            within=within,
        )

    @property
    def num_steps(self) -> int:
        return int(self.sums.steps)

    def _gain(self, which: int, index: int) -> tuple[float, float]:
        total, squares = self.sums.gains[which, :, index].astype(np.float64)
        return _success.mean_and_error(total, squares, self.num_steps, self.confidence)

    def _signal(self, index: int, is_all: bool) -> dict[str, float]:
        by_leaf = self.sums.signal.astype(np.float64) / self.num_draws
        sizes = np.array(self.tree.sizes)
        values = by_leaf @ sizes / sizes.sum() if is_all else by_leaf[:, index]
        names = [" ".join(scale) for scale in _sums.SCALES]
        return dict(zip(names, map(float, values), strict=True))


def _quantiles(values: np.ndarray, at: tuple[float, ...]) -> Any:
    # Of the values themselves: batch sizes may be infinite, which cannot be interpolated.
    if not values.size:
        return tuple(float("nan") for _ in at)
    return tuple(float(x) for x in np.quantile(values, at, method="inverted_cdf"))


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _share(flags: np.ndarray) -> float:
    return float(np.mean(flags)) if flags.size else 0.0
