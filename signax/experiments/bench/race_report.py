"""Time and megabytes to the target: one row for each run at each bandwidth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from signax.experiments.bench.report import aligned
from signax.experiments.bench.timing import spread
from signax.experiments.metric import METRICS

Outcome = dict[str, Any]


class Row(NamedTuple):
    """One run at one bandwidth. Times and megabytes are None where the target was not reached."""

    network: str
    run: str
    metric: str
    steps: int | None  # to the target, or None
    seconds: float | None  # on the clock
    megabytes: float | None  # sent by one worker
    speedup: float | None  # the first run's seconds by these
    best: float
    is_measured: bool  # trained here; False: steps to the target times the median step
    has_same_bits: bool | None  # of the steps timed here, against those of the training
    step_seconds: tuple[float, float, float]  # median, 10 and 90 %; of one batch
    bits_per_coordinate: float  # of one batch


def rows_of(outcomes: Sequence[Outcome], target: float) -> list[Row]:
    """Rows in the order of the outcomes; the first outcome of each run is the trained one."""
    trained: dict[str, Outcome] = {}
    rows: list[Row] = []
    for outcome in outcomes:
        original = trained.setdefault(outcome["run"], outcome)
        rows.append(_row(outcome, original, target))
    first = {row.network: row.seconds for row in reversed(rows) if row.run == outcomes[0]["run"]}
    return [row._replace(speedup=_over(first.get(row.network), row.seconds)) for row in rows]


def _over(first: float | None, seconds: float | None) -> float | None:
    return first / seconds if first and seconds else None


def _row(outcome: Outcome, original: Outcome, target: float) -> Row:
    is_measured = outcome["is_trained"]
    source = outcome if is_measured else original
    metric, points = METRICS[source["metric"]], source["points"]
    scores = [point["score"] for point in points]
    k = outcome["local_steps"]
    median, low, high = spread(outcome["seconds"])
    at = next((p for p in points if metric.reaches(p["score"] / metric.scale, target)), None)
    seconds = None
    if at:
        seconds = at["seconds"] if is_measured else at["step"] / k * median
    shared = min(len(outcome["losses"]), len(original["losses"]))
    same = outcome["losses"][:shared] == original["losses"][:shared]
    return Row(
        network=outcome["network"],
        run=outcome["run"],
        metric=metric.name,
        steps=at and at["step"],
        seconds=seconds,
        megabytes=at and at["megabytes"],
        speedup=None,
        best=(max if metric.more_is_better else min)(scores, default=float("nan")),
        is_measured=is_measured,
        has_same_bits=None if outcome is original else same,
        step_seconds=(median / k, low / k, high / k),
        bits_per_coordinate=outcome["bits_per_coordinate"],
    )


def tables(rows: Sequence[Row], target: float) -> str:
    """One table for each bandwidth."""
    metric = METRICS[rows[0].metric]
    shown = f"test {metric.words} {target:g}{metric.unit}"
    head = ["", "seconds", f"{rows[0].run or 'run'} / this", "MB sent", "steps",
            "s / step [10-90 %]", "bits", "best", ""]  # fmt: skip
    parts = []
    for network in dict.fromkeys(row.network for row in rows):
        lines = [head, *(_cells(row) for row in rows if row.network == network)]
        parts.append(f"\n{network}: until {shown}\n{aligned(lines)}")
    return "\n".join([*parts, "", _LEGEND])


_LEGEND = (
    "seconds: steps alone, neither compilation nor evaluation. MB sent: by one worker. bits: per\n"
    "coordinate and step. best: of all evaluations. x: steps to the target times the median step\n"
    "here; = the losses of the steps timed here are the same bits as in training, ! they are not."
)


def _cells(row: Row) -> list[str]:
    median, low, high = row.step_seconds
    sign = {None: "", True: "=", False: "!"}[row.has_same_bits]
    return [
        row.run or "run",
        _number(row.seconds, ".1f", "not reached"),
        _number(row.speedup, ".2f"),
        _number(row.megabytes, ".1f"),
        _number(row.steps, "d"),
        f"{median:.3g} [{low:.3g}-{high:.3g}]",
        f"{row.bits_per_coordinate:.3g}",
        f"{row.best:.{METRICS[row.metric].decimals}f}",
        f"{'' if row.is_measured else 'x'}{sign}",
    ]


def _number(value: float | None, form: str, otherwise: str = "-") -> str:
    return otherwise if value is None else format(value, form)
