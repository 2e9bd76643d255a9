"""The report as text: one line for each leaf, then what they mean."""

import math
from typing import Any

_GAIN_AT = (1, 3, 5, 9, 17, 33, 63)


def text_of(report: Any) -> str:
    """The whole report, at most 100 columns wide but for long names of leaves."""
    parts = [_head(report), _leaves(report), _gain(report), _signal(report), _workers(report)]
    parts += [_cost(report.cost), _verdict(report.verdict)]
    return "\n\n".join(filter(None, parts))


def _head(report: Any) -> str:
    absent = f", {report.num_nonfinite} not finite" if report.num_nonfinite else ""
    return (
        f"{report.num_workers} worker(s), {report.num_batches} batches, mini-batch of"
        f" {report.examples_per_draw}: {report.num_draws:,} gradients{absent};"
        f" reference: {report.reference}"
    )


def _leaves(report: Any) -> str:
    header = (
        "leaf", "coords", "rho>1/2", "<1/2", "open", "no g", "rho", "rho/l1 norm",
        "noise/g", "skewed", "batch x", "zeros",
    )  # fmt: skip
    single = len(report.leaves) == 1
    rows = [header, *map(_row, report.leaves if single else (*report.leaves, report.total))]
    note = (
        "rho: the probability that a gradient's sign is right (median); how many coordinates have"
        f"\nit above or below 1/2 at {report.confidence:.0%} (Wilson), open, or no clear gradient."
        " rho/l1 norm: what\none worker's signs gain, of what noise-free signs would. batch x:"
        " Lemma 3's least\nmini-batch for the median coordinate, in mini-batches."
    )
    return f"{_table(rows)}\n{note}"


def _row(leaf: Any) -> tuple[str, ...]:
    counts = (
        leaf.num_coordinates, leaf.num_right, leaf.num_wrong, leaf.num_open,
        leaf.num_unresolved + leaf.num_dead,
    )  # fmt: skip
    share, error = leaf.rho_norm / (leaf.l1_norm or 1), leaf.rho_norm_error / (leaf.l1_norm or 1)
    return (
        leaf.name,
        *(f"{count:,}" for count in counts),
        _number(leaf.rho_quantiles[1], ".3f"),
        f"{share:.1%} +-{error:.1%}",
        _number(leaf.noise_to_signal, ".2g"),
        f"{leaf.asymmetric_share:.0%}",
        _number(leaf.batch_factor[0], ",.0f"),
        f"{leaf.zero_share:.1%}",
    )


def _gain(report: Any) -> str:
    total = report.total
    rows = [
        ("workers that vote", *(str(m) for m in _GAIN_AT)),
        (
            "predicted gain (rho_M-norm / l1)",
            *(f"{total.gain[m - 1] / total.l1_norm:.1%}" for m in _GAIN_AT),
        ),
    ]
    text = _table(rows)
    if report.num_workers > 1:
        text += (
            f"\nmeasured with {report.num_workers}: {total.vote_norm / total.l1_norm:.1%}"
            f" +-{total.vote_norm_error / total.l1_norm:.1%}"
        )
    return text


def _signal(report: Any) -> str:
    values = "   ".join(f"{name} {value:.2g}" for name, value in report.total.signal.items())
    return f"stochastic sign, mean signal |g_i| / R:   {values}"


def _workers(report: Any) -> str:
    total = report.total
    if math.isnan(total.between):
        return ""
    return (
        f"variance between the workers / of one draw: {total.disagreement:.2g};"
        f" norms of their mean gradients: within a factor of {report.norm_spread:.2g}"
    )


def _cost(cost: Any) -> str:
    header = ("step", "bits/coord", "local ms", "step ms", "speedup")
    rows: list[tuple[str, ...]] = [header]
    for method in cost.methods:
        times = [(method.local_seconds, 1e3), (method.step_seconds, 1e3), (method.speedup, 1.0)]
        cells = ("-" if value is None else f"{value * unit:.3g}" for value, unit in times)
        rows.append((method.name, f"{method.bits_per_coordinate:.2f}", *cells))
    where = (
        "no bandwidth given, so no times"
        if cost.bandwidth is None
        else f"at {cost.bandwidth / 1e6:,.4g} Mbit/s, gradient {cost.compute_seconds * 1e3:.3g} ms"
    )
    return (
        f"{cost.num_workers} workers, {cost.num_coordinates:,} coordinates, {where}\n{_table(rows)}"
    )


def _verdict(verdict: Any) -> str:
    lines = [f"VERDICT  {verdict.name}: {verdict.summary}"]
    if verdict.compress is not None:
        lines.append(f"         compress at this bandwidth? {'yes' if verdict.compress else 'no'}")
    lines += [f"  why    {reason}" for reason in verdict.reasons]
    lines += [f"  take   {advice}" for advice in verdict.advice]
    return "\n".join(lines)


def _table(rows: Any) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else "inf" if math.isinf(value) else format(value, form)
