"""`signax compare DIR ...`: one row for each config, with the mean over its seeds."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from signax.experiments.errors import UsageError
from signax.experiments.metric import ACCURACY, METRICS, Metric
from signax.experiments.workdir import what_was_run

_HEADER = (
    "| run | seeds | ties | train {0} | test {0} | bits | MB sent | seconds |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
)


def main(argv: Sequence[str]) -> int:
    """Prints the table of the finished runs in `argv`."""
    if not argv or {"-h", "--help", "-help"} & {*argv}:
        print(
            "usage: signax compare DIR ...\n\n"
            "Table of finished runs (work directories of `signax train`). Runs of one name that\n"
            "differ only in their seed are one row: mean and sample standard deviation. Bits:\n"
            "sent by one worker, per coordinate and step."
        )
        return 0
    print(comparison([(Path(folder), _read(Path(folder))) for folder in argv]))
    return 0


def comparison(runs: Iterable[tuple[Path, dict[str, Any]]]) -> str:
    """Returns a Markdown table of (work directory, result) pairs."""
    runs = list(runs)
    metrics = {result.get("metric", ACCURACY.name): path for path, result in runs}
    if len(metrics) > 1:
        kinds = " and ".join(f"{METRICS[name].words} ({path})" for name, path in metrics.items())
        raise UsageError(f"one table cannot hold both {kinds}: compare runs of one kind of data.")
    groups = defaultdict(dict)
    for path, result in runs:
        path = path.resolve()  # "." has no name of its own
        run = what_was_run(path)
        seed = run.pop("config.seed", None)
        group = groups[re.sub(r",seed=\d+", "", path.name), json.dumps(run, sort_keys=True)]
        if seed in group:
            raise UsageError(
                f"{group[seed][0]} and {path} are the same run, with the same seed: leave one out."
            )
        group[seed] = path, result
    (metric,) = (METRICS[name] for name in metrics)
    num_groups = Counter(name for name, _ in groups)
    rows = []
    for (name, _), group in groups.items():
        paths, results = zip(*group.values(), strict=True)
        folder = f"{paths[0].parent.name}/" if num_groups[name] > 1 else ""
        rows.append(_row(folder + name, results, metric))
    return "\n".join([_HEADER.format(metric.label), *rows])


def _row(name: str, results: Sequence[dict[str, Any]], metric: Metric) -> str:
    first = results[0]
    cells = [
        name,
        str(len(results)),
        first["ties"] or "-",
        *(
            _mean_and_spread([result[f"{part}_{metric.name}"] for result in results], metric)
            for part in ("train", "test")
        ),
        f"{first['bits_per_coordinate']:.2f}",
        f"{first['megabytes_sent']:.2f}",
        f"{fmean(result['seconds'] for result in results):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean_and_spread(values: list[float], metric: Metric) -> str:
    spread = f" ± {metric.number(stdev(values))}" if len(values) > 1 else ""
    return metric.number(fmean(values)) + spread


def _read(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / "result.json").read_text())
    except OSError as error:
        raise UsageError(
            f"{folder} holds no result.json: it is no run of `signax train`, or one that has not"
            " come to an end."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{folder / 'result.json'} is not JSON: remove it, and go on with --resume to have it"
            " written again."
        ) from error
    if not result["is_finished"]:
        raise UsageError(f"the run in {folder} is not finished: continue it with --resume.")
    return result
