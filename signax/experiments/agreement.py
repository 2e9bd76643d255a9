"""Processes that start together must have been asked for the same thing.

They take the same steps only because each of them derives the steps from its own command line. Two
that differ, in a seed as in a version, would train apart without an error or wait for each other.
So before the first step they compare a hash of all that must be equal.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import signax
from signax.experiments import cluster
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError

_FREE_FIELDS = ("config.mnist_dir",)  # where each host keeps its data


def require_same_run(
    config: Config,
    workdir: Path,
    resume: bool,
    overwrite: bool,
    change_num_workers: str | None,
    check_sync_every: int,
) -> None:
    """Raises a `UsageError` unless all processes are asked for the same run by the same versions.

    The arguments are those of `signax.experiments.train.train`.
    """
    if jax.process_count() == 1:
        return
    wanted = {
        **flat(config.to_dict(), "config."),
        "--workdir": str(workdir),
        "--resume": resume,
        "--overwrite": overwrite,
        "--change_num_workers": change_num_workers,
        "--check_sync_every": check_sync_every,
        "the version of signax": signax.__version__,
        "the version of jax": jax.__version__,
        "the version of Python": ".".join(platform.python_version_tuple()[:2]),
    }
    require_same({name: value for name, value in wanted.items() if name not in _FREE_FIELDS})


def require_same(wanted: dict[str, Any]) -> None:
    """Raises, in every process, a `UsageError` that names who differs from process 0 and where."""
    text = json.dumps(wanted, sort_keys=True, default=str).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    digests = cluster.gather(digest)
    if (digests == digests[0]).all():
        return
    first, *others = (json.loads(other) for other in cluster.gather_bytes(text))
    differing = [
        f"process {process} has {_differences(first, other)}"
        for process, other in enumerate(others, 1)
        if other != first
    ]
    raise UsageError(
        "the processes were not started alike and would not train together. Against process 0, "
        f"{'; '.join(differing)}. Start all of them with the same flags and versions."
    )


def _differences(first: dict[str, Any], other: dict[str, Any]) -> str:
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    return ", ".join(f"{name}={other.get(name)!r} (not {first.get(name)!r})" for name in names)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config as one level, groups written with dots."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, Mapping)
        fields |= flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return fields
