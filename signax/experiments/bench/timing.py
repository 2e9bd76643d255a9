"""Contestants measured in turns, so that what disturbs one disturbs all of them.

A round runs every contestant once, in an order that rotates from round to round. A ratio is taken
within each round and the *ratios'* median and spread are reported: on a shared machine the times of
one contestant vary far more than its times against its neighbour's.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Call = Callable[[], Any]
Agree = Callable[[int], int]
Times = dict[str, list[float]]  # seconds of each round

_SHORTEST = 0.004  # seconds: a shorter call is repeated within its turn


class Spread(NamedTuple):
    """Median, 10 % and 90 % of the rounds."""

    median: float
    low: float
    high: float


class Group(NamedTuple):
    """Contestants that do the same, and the two that the others are held against."""

    title: str
    num_coordinates: int
    calls: Mapping[str, Call]
    floor: str | None = None  # the least that memory allows, or no communication
    textbook: str | None = None  # how it is usually written
    notes: Mapping[str, Mapping[str, Any]] = {}  # what else is known of a contestant


def measure(
    group: Group,
    rounds: int,
    seconds: float,
    *,
    agree: Agree = int,
    repeat: bool = True,
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> Times:
    """The seconds of each call in each round.

    Args:
      group: The contestants.
      rounds: How many rounds to run at most, and 3 at least.
      seconds: After about so long no new round begins.
      agree: Makes a number equal in all processes, which must take part in the same calls.
      repeat: Whether a short call may be repeated within its turn; not where calls communicate.
      on_round: Called after each round with its number and how many there will be.
    """
    for call in group.calls.values():
        _timed(call, 1)  # compiles
    first = {name: _timed(call, 1) for name, call in group.calls.items()}
    repeats = {
        name: min(20, math.ceil(_SHORTEST / t)) if repeat else 1 for name, t in first.items()
    }
    one_round = sum(t * repeats[name] for name, t in first.items())
    rounds = agree(max(3, min(rounds, int(seconds / max(one_round, 1e-9)))))
    names, times = list(group.calls), {name: [] for name in group.calls}
    for i in range(rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(_timed(group.calls[name], repeats[name]))
        on_round(i + 1, rounds)
    return times


def spread(values: Any) -> Spread:
    """Median and 10 to 90 % of some numbers."""
    return Spread(*(float(q) for q in np.quantile(np.asarray(values), (0.5, 0.1, 0.9))))


def ratio(times: Times, over: str, under: str) -> Spread:
    """Time of `over` divided by the time of `under`, within each round."""
    return spread(np.array(times[over]) / np.array(times[under]))


def _timed(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats
