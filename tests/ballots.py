"""What workers vote with, every vote there is, and the results that the reference allows."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reference
import signax
from workers import WORKERS, map_workers

WIRES = ("packed", "radix", "lanes", "float32")
SIMULATED = ("float32",)  # the wire of simulate_train_step, under vmap: all others must equal it
SHAPES = {"kernel": (3, 3), "bias": (5,), "scalar": ()}
SIZE = 15  # coordinates in SHAPES: no multiple of 8

Rows = np.ndarray  # [M, SIZE]: the workers' updates, flat


def to_tree(rows: Rows) -> dict[str, jax.Array]:
    """Flat rows as trees of SHAPES; optax and JAX order a dict by its keys, and so do we."""
    tree, start = {}, 0
    for name in sorted(SHAPES):
        stop = start + math.prod(SHAPES[name])
        tree[name] = jnp.asarray(rows[:, start:stop]).reshape(-1, *SHAPES[name])
        start = stop
    return tree


def to_rows(tree: dict[str, jax.Array]) -> Rows:
    return np.concatenate([np.reshape(tree[k], (len(tree[k]), -1)) for k in sorted(tree)], axis=1)


def all_votes(axis_name: Any, wires: tuple[str, ...] = WIRES, **kwargs: Any) -> dict[str, Any]:
    links = {"majority": signax.majority_vote, "average": signax.average_signs}
    return {
        f"{name}/{ties}/{wire}": link(axis_name, ties=ties, wire=wire, **kwargs)
        for name, link in links.items()
        for ties in ("zero", "random")
        for wire in wires
    }


def run_votes(axis_name: Any, wires: tuple[str, ...], updates: Any, step: jax.Array) -> Any:
    """Every link's (update, num_abstained) on this worker."""
    out = {}
    for name, tx in all_votes(axis_name, wires).items():
        state = tx.init(updates)._replace(count=step)
        update, new = tx.update(updates, state)
        out[name] = (update, new.num_abstained)
    return out


@functools.cache
def on_workers(mapping: str, num_workers: int, wires: tuple[str, ...] = WIRES):
    return map_workers(mapping, functools.partial(run_votes, WORKERS, wires), num_workers)


def vote(mapping: str, rows: Rows, step: int = 0, wires: tuple[str, ...] = WIRES) -> dict[str, Any]:
    """{"majority/zero/packed": (rows [M, d], num_abstained [M]), ...}"""
    num_workers = len(rows)
    steps = jnp.full(num_workers, step, jnp.int32)
    out = on_workers(mapping, num_workers, wires)(to_tree(rows), steps)
    return {name: (to_rows(tree), np.asarray(n)) for name, (tree, n) in out.items()}


def ballots(num_workers: int, faults: dict[int, float] | None = None, seed: int = 0) -> Rows:
    """Rows of values whose signs are +, - and 0 with many ties; faults fill a whole or part row."""
    rng = np.random.default_rng(seed)
    values = np.array([-3e38, -2.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e38], np.float32)
    rows = rng.choice(values, (num_workers, SIZE))
    rows[:, 0] = 1.0  # nobody is all zero by chance
    rows[:, 1] = np.where(np.arange(num_workers) % 2, -1.0, 1.0)  # a tie at even M
    rows[:, 2] = 0.0
    for worker, value in (faults or {}).items():
        if value == 0:
            rows[worker] = 0.0
        else:
            rows[worker, 3 + worker] = value
    return rows


def fault_patterns(num_workers: int) -> dict[str, dict[int, float]]:
    patterns = {
        "nobody": {},
        "nan": {0: np.nan},
        "last inf": {num_workers - 1: -np.inf},
        "zero": {num_workers // 2: 0.0},
        "everyone": dict.fromkeys(range(num_workers), np.nan),
        "everyone zero": dict.fromkeys(range(num_workers), 0.0),
    }
    if num_workers >= 5:
        patterns["three kinds"] = {0: np.inf, 2: 0.0, 4: np.nan}
    return patterns


def has_something_to_say(rows: Rows) -> np.ndarray:
    return reference.is_voter(rows) & (rows != 0).any(axis=1)


def coins_within_bounds(voters: Rows, out: dict[str, Any]) -> dict[str, np.ndarray]:
    """The simulated result with coins, after a look that they decide zeros and ties and no more."""
    majority, mean = (out[f"{link}/random/float32"][0][0] for link in ("majority", "average"))
    if len(voters) == 0:
        assert not majority.any()
        assert not mean.any()
    else:
        assert set(np.unique(majority)) <= {-1.0, 1.0}
        num_zeros, total = (voters == 0).sum(axis=0), reference.sum_of_signs(voters)
        is_sure = np.abs(total) > num_zeros
        np.testing.assert_array_equal(majority[is_sure], np.sign(total)[is_sure])
        # Each zero moves the sum of signs by one, up or down.
        moved = np.round(mean * len(voters)) - total
        assert (np.abs(moved) <= num_zeros).all()
        assert not ((moved - num_zeros) % 2).any()
    return {"majority/random": majority, "average/random": mean}
