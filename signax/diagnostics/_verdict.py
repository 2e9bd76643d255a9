"""From the numbers to a recommendation in plain words, with its reasons.

The thresholds are named below: they are judgements, not theorems. What each is compared with stands
in the reasons, so that a reader may judge otherwise.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from signax.diagnostics._cost import DENSE, VOTE

Name = Literal["sign_friendly", "noisy", "signs_fail", "heterogeneous", "not_enough_batches"]

# Workers disagree for good if what lies between them is at least this share of a draw's variance
# and of the squared gradient: less drowns in the noise, or leaves the signs as they are.
DISAGREEMENT_TO_NOISE = 0.5
DISAGREEMENT_TO_GRADIENT = 0.5
# Signs fail if they surely gain less than this share of what Lemma 1 promises for noise of this
# size: then it is the shape of the noise that does the harm. Normal noise gains 1.38 times it.
SHARE_OF_PROMISE = 0.5
# Below this share of the noise-free gain a vote of the M workers is mostly noise.
NOISY_SHARE = 0.1
# Share of coordinates that are zero for everyone, from which coins for zeros do harm.
ZERO_SHARE = 0.001
SPEEDUP = 1.2


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The recommendation."""

    name: Name
    summary: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    compress: bool | None  # whether it pays at the given bandwidth; None without one


def verdict_of(total: Any, leaves: Any, cost: Any, num_workers: int, norm_spread: float) -> Verdict:
    """The verdict on a `LeafReport` of everything, with its parts and the cost of a step."""
    name = _name(total, cost.num_workers)
    compress, cost_reason = _compress(cost)
    zeros = _zeros(total)
    if name == "heterogeneous":
        reasons = _why_divided(total, num_workers, norm_spread)
    else:
        reasons = _why(name, total, leaves, num_workers)
    advice = [*_ADVICE[name], *_advice_in_numbers(name, total)]
    if compress is False:
        advice.insert(0, "signax.dense_sgd(learning_rate, axis_name=...): do not compress here")
    if zeros:
        advice.append('keep ties="zero" (the default), never ties="random"')
    reasons = tuple(filter(None, [*reasons, *zeros, cost_reason]))
    return Verdict(name, _SUMMARY[name], reasons, tuple(advice), compress)


def _name(total: Any, num_workers: int) -> Name:
    if _is_heterogeneous(total):
        return "heterogeneous"
    if total.rho_norm + total.rho_norm_error < SHARE_OF_PROMISE * total.promised_norm:
        return "signs_fail"
    if total.rho_norm - total.rho_norm_error <= 0:
        return "not_enough_batches"
    return "noisy" if _share(total, num_workers) < NOISY_SHARE else "sign_friendly"


def _is_heterogeneous(total: Any) -> bool:
    """Never for one worker, whose `between` is NaN."""
    return (
        total.disagreement > DISAGREEMENT_TO_NOISE
        and total.disagreement_to_gradient > DISAGREEMENT_TO_GRADIENT
    )


def _share(total: Any, num_workers: int) -> float:
    """What a vote of M workers gains, of what noise-free signs would."""
    return total.gain[min(num_workers, len(total.gain)) - 1] / total.l1_norm


_SUMMARY: dict[Name, str] = {
    "sign_friendly": "Sign methods suit this problem here.",
    "noisy": "Signs point the right way, but most of each vote is noise: vote with more behind it.",
    "signs_fail": "Plain signs fail here: on average they do not point downhill.",
    "heterogeneous": "The workers disagree for good: their majority is not their mean.",
    "not_enough_batches": "Undecided: too few batches to tell these signs from coin tosses.",
}


def _why(name: Name, total: Any, leaves: Any, num_workers: int) -> Iterator[str]:
    yield _gain_line(total)
    yield _promise_line(total)
    yield _count_line(total)
    yield _shape_line(total)
    if name == "signs_fail":
        return
    weak = [leaf.name for leaf in leaves if leaf.rho_norm + leaf.rho_norm_error < 0]
    if weak:
        yield f"in {', '.join(weak)} the signs point uphill: watch these leaves."
    if num_workers > 1:
        yield _agreement_line(total)


def _why_divided(total: Any, num_workers: int, spread: float) -> Iterator[str]:
    yield _agreement_line(total)
    yield (
        f"the measured vote of {num_workers} workers gains {total.vote_norm / total.l1_norm:.0%} of"
        " what noise-free signs would, one worker's signs"
        f" {total.rho_norm / total.l1_norm:.0%}."
    )
    yield (
        f"their mean gradients' norms differ {spread:.2g} times, which a scale of each worker's own"
        " hides and a shared one keeps."
    )


def _gain_line(total: Any) -> str:
    share, error = total.rho_norm / total.l1_norm, total.rho_norm_error / total.l1_norm
    return (
        f"one worker's signs gain {share:.1%} (+- {error:.1%}) of what noise-free signs would"
        " (rho-norm / l1 norm)."
    )


def _count_line(total: Any) -> str:
    return (
        f"of {total.num_right + total.num_wrong + total.num_open:,} coordinates with a clear"
        f" gradient {total.num_right:,} surely have rho > 1/2, {total.num_wrong:,} rho < 1/2."
    )


def _promise_line(total: Any) -> str:
    promise = total.promised_norm / total.l1_norm
    return f"Lemma 1 promises {promise:.1%} for noise of this size that is unimodal and symmetric."


def _shape_line(total: Any) -> str:
    return (
        f"noise {total.noise_to_signal:.2g} times the gradient (l2); asymmetric in"
        f" {total.asymmetric_share:.0%} of the coordinates, surely not unimodal in"
        f" {total.not_unimodal_share:.0%}."
    )


def _agreement_line(total: Any) -> str:
    return (
        f"between the workers lies {total.disagreement:.2g} times the variance of one draw, and"
        f" {total.disagreement_to_gradient:.2g} times the squared gradient (harm if"
        f" above {DISAGREEMENT_TO_NOISE:g} and {DISAGREEMENT_TO_GRADIENT:g}, both)."
    )


def _zeros(total: Any) -> list[str]:
    if total.always_zero <= ZERO_SHARE * total.num_coordinates:
        return []
    return [
        f"{total.always_zero:,} of {total.num_coordinates:,} coordinates were zero in every draw:"
        ' with ties="random" they would random-walk by the learning rate.'
    ]


def _compress(cost: Any) -> tuple[bool | None, str]:
    if cost.bandwidth is None:
        return None, ""
    vote, dense = cost.of(VOTE), cost.of(DENSE)
    limit = cost.break_even_bandwidth
    until = f" A vote is the faster one up to {_megabits(limit)}." if limit else ""
    return vote.speedup >= SPEEDUP, (
        f"at {_megabits(cost.bandwidth)} a step with a majority vote takes"
        f" {vote.step_seconds * 1e3:.3g} ms, with dense SGD {dense.step_seconds * 1e3:.3g} ms"
        f" ({vote.speedup:.2f} times that).{until} Latency is not counted, nor that the"
        " methods need unlike numbers of steps."
    )


def _megabits(bandwidth: float) -> str:
    return f"{bandwidth / 1e6:,.3g} Mbit/s" if bandwidth < 1e9 else f"{bandwidth / 1e9:,.3g} Gbit/s"


_ADVICE: dict[Name, tuple[str, ...]] = {
    "sign_friendly": ("signax.signum(learning_rate, axis_name=...)",),
    "noisy": (
        "signax.signum(learning_rate, beta=0.9 or more, axis_name=...): averages before it votes",
    ),
    "signs_fail": (
        "signax.ef_sign_sgd(learning_rate, axis_name=...): error feedback remembers sizes",
        'signax.ssdm(learning_rate, scale=signax.Scale("linf", "leaf"), axis_name=...)',
    ),
    "heterogeneous": (
        'signax.ssdm(learning_rate, scale=signax.Scale("linf", 256, shared=True),'
        " axis_name=...): scales that all workers share",
        "or signax.ef_sign_sgd(learning_rate, axis_name=...): a memory of what the signs left out",
    ),
    "not_enough_batches": ("examine more batches (num_batches), or larger ones",),
}


def _advice_in_numbers(name: Name, total: Any) -> Iterator[str]:
    """How many more workers or examples would help, where they would."""
    if name == "noisy":
        few, many = (total.gain[m - 1] / total.gain[0] for m in (9, 63))
        yield f"more workers: 9 gain {few:.2g} times as much as one, 63 {many:.2g} times"
    factor = total.batch_factor[0]
    if name in ("sign_friendly", "noisy", "signs_fail") and 1 < factor < float("inf"):
        yield (
            f"a larger mini-batch: Lemma 3 is sure of the median coordinate at {factor:,.0f} times"
            " this one (a bound: often far fewer do)"
        )
