"""The table at the end of a run."""

from signax.experiments.metric import METRICS
from signax.experiments.train import Result


def report(result: Result) -> str:
    """Returns the table that `signax train` prints."""
    num_workers, metric = result.num_workers, METRICS[result.metric]
    rows = [
        ("optimizer", f"{result.optimizer}, {_ties(result)}"),
        ("learning rate", f"{result.learning_rate:g}"),
        ("workers", f"{num_workers} on {result.platform}, {result.partition} data"),
        (f"train {metric.words}", metric.shown(result.train_score)),
        (f"test {metric.words}", metric.shown(result.test_score)),
        ("steps", f"{result.step:,}"),
        ("seconds", f"{result.seconds:.1f}"),
        ("parameters", f"{result.num_coordinates:,}"),
        (
            "bits per coordinate",
            f"{result.bits_per_coordinate:.2f}  sent by one worker in one step, read from the "
            f"compiled step ({_ties(result)})",
        ),
        (
            "  of dense SGD",
            f"{result.dense_bits_per_coordinate:.2f}  a float32 all-reduce: "
            f"2 * 32 * (M - 1) / M with M = {num_workers}{_ratio(result)}",
        ),
        ("megabytes sent", f"{result.megabytes_sent:.2f}  by one worker in {result.step:,} steps"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _ties(result: Result) -> str:
    if result.ties:
        return f'ties="{result.ties}"'
    return "ties as the function says" if ":" in result.optimizer else "no vote, so no ties"


def _ratio(result: Result) -> str:
    if not result.bits_per_coordinate:
        return ""
    return f"; {result.dense_bits_per_coordinate / result.bits_per_coordinate:.1f} times as much"
