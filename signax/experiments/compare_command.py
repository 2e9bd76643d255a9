"""`signax compare DIR ...`: one row for each config, with the mean over its seeds."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from signax.experiments.errors import UsageError

_HEADER = (
    "| run | seeds | ties | train accuracy [%] | test accuracy [%] | bits | MB sent | seconds |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
)


def main(argv: Sequence[str]) -> int:
    """Prints the table of the finished runs in `argv`."""
    if not argv or {"-h", "--help", "-help"} & {*argv}:
        print(
            "usage: signax compare DIR ...\n\n"
            "Table of finished runs (work directories of `signax train`). Runs that differ only\n"
            "in their seed are one row: mean and sample standard deviation. Bits: sent by one\n"
            "worker, per coordinate and step."
        )
        return 0
    print(comparison([(Path(folder), _read(Path(folder))) for folder in argv]))
    return 0


def comparison(runs: Iterable[tuple[Path, dict[str, Any]]]) -> str:
    """Returns a Markdown table of (work directory, result) pairs."""
    groups = defaultdict(list)
    for path, result in runs:
        groups[re.sub(r",seed=\d+", "", path.name)].append(result)
    return "\n".join([_HEADER, *(_row(name, results) for name, results in groups.items())])


def _row(name: str, results: list[dict[str, Any]]) -> str:
    first = results[0]
    cells = [
        name,
        str(len(results)),
        first["ties"] or "-",
        _mean_and_spread([100 * result["train_accuracy"] for result in results]),
        _mean_and_spread([100 * result["test_accuracy"] for result in results]),
        f"{first['bits_per_coordinate']:.2f}",
        f"{first['megabytes_sent']:.2f}",
        f"{fmean(result['seconds'] for result in results):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean_and_spread(values: list[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _read(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / "result.json").read_text())
    except OSError as error:
        raise UsageError(
            f"{folder} holds no result.json: it is no run of `signax train`."
        ) from error
    if not result["is_finished"]:
        raise UsageError(f"the run in {folder} is not finished: continue it with --resume.")
    return result
