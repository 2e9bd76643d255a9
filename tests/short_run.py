"""A run of `signax train` that takes seconds, and what it wrote."""

import json
from pathlib import Path

from signax.experiments import default_config
from signax.experiments.default_config import Config

SHORT = ("--config.num_steps=25", "--config.eval_every=10", "--config.hidden_size=8")
OVERRIDES = "eval_every=10,hidden_size=8,num_steps=25"


def short_config(**changes: object) -> Config:
    config = default_config.get_config()
    config.num_steps, config.eval_every, config.hidden_size = 25, 10, 8
    config.update(changes)
    return config


def rows_of(workdir: Path | str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
