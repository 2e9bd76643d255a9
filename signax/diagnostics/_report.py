"""What an examination found: frozen numbers, as text (`str`) and for JSON (`to_dict`)."""

import dataclasses
import math
from typing import Any, NamedTuple

from signax.diagnostics import _text
from signax.diagnostics._cost import Cost
from signax.diagnostics._verdict import Verdict


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One leaf, or all leaves together.

    Norms are in the unit of the gradient and refer to the mean gradient of the workers. Counts of
    coordinates add up: `num_right + num_wrong + num_open + num_unresolved + num_dead`.
    """

    name: str
    num_coordinates: int
    num_right: int  # confidence interval of rho above 1/2
    num_wrong: int  # below 1/2
    num_open: int  # 1/2 inside
    num_unresolved: int  # the reference itself is within 3 standard errors of zero
    num_dead: int  # reference zero: SPB asks for nothing
    rho_quantiles: tuple[float, float, float]  # 10, 50, 90 % of coordinates with resolved sign
    l1_norm: float  # of the reference: what noise-free signs gain
    squared_norm: float  # of the gradient, l2; unbiased, so at most a little below zero
    rho_norm: float  # what one worker's signs gain per step, Definition 1
    rho_norm_error: float  # half the width of its interval
    promised_norm: float  # Lemma 1's lower bound: noise of this size, unimodal and symmetric
    vote_norm: float  # what the majority of the M workers gained, measured
    vote_norm_error: float
    gain: tuple[float, ...]  # predicted: rho_M-norm for M = 1..64
    noise_to_signal: float  # standard deviation of a draw / length of the gradient, l2
    skewness: float  # median over coordinates of |skewness|
    kurtosis: float  # median excess kurtosis
    asymmetric_share: float  # of coordinates with noise; 1 % would be chance for normal noise
    not_unimodal_share: float
    batch_factor: tuple[float, float]  # Lemma 3's least tau in mini-batches, 50 and 90 %
    zero_share: float  # of all signs drawn
    always_zero: int  # coordinates that were zero in every draw of every worker
    signal: dict[str, float]  # mean |g_i| / R by scale: "l2 global" is the paper's
    # Squared distance of the workers' true gradients: NaN for one worker. The estimate is unbiased,
    # so without any it comes out now and then a little below zero.
    between: float
    within: float  # squared noise of one draw

    @property
    def disagreement(self) -> float:
        """Variance between the workers over the variance of a draw; NaN for one worker."""
        return _ratio(self.between, self.within)

    @property
    def disagreement_to_gradient(self) -> float:
        """Variance between the workers over the squared gradient; NaN for one worker."""
        return _ratio(self.between, self.squared_norm)


class Coordinates(NamedTuple):
    """Trees like the parameters, one float64 value for each coordinate."""

    gradient: Any  # the reference a
    rho: Any  # NaN where the reference is zero
    rho_lower: Any
    rho_upper: Any
    sigma: Any
    skewness: Any
    kurtosis: Any
    batch_factor: Any  # Lemma 3's tau, in mini-batches


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `signax.diagnostics.examine`; print it to read it."""

    num_workers: int
    num_batches: int  # measured, without those of the reference
    num_draws: int  # finite gradients measured
    num_nonfinite: int  # gradients with a NaN or an infinity: they would abstain
    examples_per_draw: int
    reference: str  # "given", or how many batches it is the mean of
    confidence: float
    norm_spread: float  # largest over smallest of the workers' mean gradient norms
    total: LeafReport
    leaves: tuple[LeafReport, ...]
    cost: Cost
    verdict: Verdict
    coordinates: Coordinates = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for `json.dumps`: all but `coordinates`; NaN and infinity become None."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "coordinates"
        }
        return {name: _plain(value) for name, value in fields.items()}

    def __str__(self) -> str:
        return _text.text_of(self)


def _ratio(numerator: float, denominator: float) -> float:
    if numerator == 0 or math.isnan(numerator):
        return numerator
    return numerator / denominator if denominator > 0 else math.copysign(math.inf, numerator)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
