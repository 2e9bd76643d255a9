"""Which worker owns which examples."""

from collections.abc import Callable

import numpy as np

from signax.experiments.errors import UsageError, unknown_name


def split_examples(how: str, labels: np.ndarray, num_workers: int, seed: int) -> list[np.ndarray]:
    """Returns, for each worker, the indices of the examples that it owns.

    Args:
      how: `"iid"` deals shuffled examples out like cards; `"by_label"` gives worker n all
        examples of the labels n, n + M, n + 2M, ...
      labels: int [num_examples].
      num_workers: M.
      seed: of the shuffle.
    """
    if how not in _PARTITIONS:
        raise unknown_name("partition", how, _PARTITIONS)
    owned = _PARTITIONS[how](labels, num_workers, seed)
    idle = [worker for worker, examples in enumerate(owned) if not len(examples)]
    if idle:
        raise UsageError(
            f"config.partition={how!r} leaves worker {idle[0]} of {num_workers} without an "
            "example: lower config.num_workers."
        )
    return owned


def _iid(labels: np.ndarray, num_workers: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(labels))
    return [order[worker::num_workers] for worker in range(num_workers)]


def _by_label(labels: np.ndarray, num_workers: int, seed: int) -> list[np.ndarray]:
    del seed
    return [np.flatnonzero(labels % num_workers == worker) for worker in range(num_workers)]


_PARTITIONS: dict[str, Callable[[np.ndarray, int, int], list[np.ndarray]]] = {
    "iid": _iid,
    "by_label": _by_label,
}
