"""What a step sends: bits per coordinate as a formula, and as read from the compiled program.

A claim about bits is worth what the compiler made of it: a `psum` of booleans travels as 32-bit
integers, and a bfloat16 one may travel as float32. So `wire_bits` compiles the function, reads
every collective out of the HLO text and adds up what one worker sends under the usual model. With B
bits of operands in a group of n workers (ring or pairwise; Thakur, Rabenseifner, Gropp,
Optimization of collective communication operations in MPICH, 2005):

    all-reduce 2 B (n - 1) / n     all-gather B (n - 1)     reduce-scatter, all-to-all B (n - 1) / n
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from signax.wire import _hlo


@dataclasses.dataclass(frozen=True)
class WireReport:
    """Every collective of a compiled function and the bits that one worker sends through it."""

    collectives: tuple[_hlo.Collective, ...]
    num_coordinates: int | None = None

    @property
    def bits(self) -> float:
        """Bits that one worker sends in one call."""
        return sum(c.bits for c in self.collectives)

    @property
    def bits_per_coordinate(self) -> float:
        """Bits that one worker sends for each coordinate that it holds."""
        if not self.num_coordinates:
            raise ValueError(
                "The number of coordinates is unknown: the first argument holds no floats. "
                "Pass it: wire_bits(fn, *args, num_coordinates=d)."
            )
        return self.bits / self.num_coordinates

    @property
    def num_collectives(self) -> int:
        """How many collectives one call runs, loops unrolled."""
        return sum(c.times for c in self.collectives)

    def of_branch(self, branch: int) -> "WireReport":
        """What is sent when every conditional takes this branch; of `lax.cond` 1 is the true one.

        With a dense warm-up (`warmup`, `one_bit_adam`) branch 1 is a dense step, 0 one after it.
        """
        kept = tuple(c for c in self.collectives if c.branch in (None, branch))
        return dataclasses.replace(self, collectives=kept)

    def __str__(self) -> str:
        if not self.collectives:
            return "no collectives: one worker, or workers simulated by vmap on one device"
        rows = [("collective", "operand", "times", "group", "bits sent", "scope")]
        for c in self.collectives:
            mark = "" if c.exact else " ?"
            sent = f"{c.bits:,.0f}{mark}"
            operand = f"{c.dtype}[{c.elements:,}]"
            rows.append((c.kind, operand, str(c.times), str(c.group_size), sent, _short(c.scope)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.append(f"{self.num_collectives} collectives, {self.bits:,.0f} bits sent per worker")
        if self.num_coordinates:
            per = self.bits_per_coordinate
            lines[-1] += f", {per:.4g} per coordinate (d = {self.num_coordinates:,})"
        if not all(c.exact for c in self.collectives):
            lines.append(
                "? in a loop of unknown length (counted once) or under a branch (all are counted)"
            )
        return "\n".join(lines)


def wire_bits(
    fn: Callable[..., Any], *args: Any, num_coordinates: int | None = None, **kwargs: Any
) -> WireReport:
    """Compiles `fn` and reports every collective in it, with the bits that one worker sends.

    Nothing runs: arguments may be arrays or `jax.ShapeDtypeStruct`. Workers simulated by `vmap`
    send nothing, so pass a function over a mesh (`jax.shard_map`, `make_train_step`).

    Args:
      fn: a function, jitted or not.
      *args: its arguments.
      num_coordinates: d, the coordinates to divide by. By default the floats that one device holds
        of the first argument, or of its `.params` if it has them (a `TrainState`). The leading axis
        of stacked per-worker gradients is sharded and so not counted.
      **kwargs: its keyword arguments.

    Returns:
      A `WireReport`; print it to see a table.

    Example:
      >>> mesh = signax.make_worker_mesh(2)
      >>> tx = signax.sign_sgd(0.1, axis_name="workers", ties="random")
      >>> step = signax.make_train_step(lambda x, b: jnp.mean((x[None] - b) ** 2), tx, mesh)
      >>> state = signax.init_train_state(jnp.zeros(80_000), tx, mesh)
      >>> report = signax.wire_bits(step, state, jnp.zeros((2, 80_000)))
      >>> print(round(report.bits_per_coordinate, 1))
      1.0
    """
    lowerable = fn if hasattr(fn, "lower") else jax.jit(fn)
    compiled = lowerable.lower(*args, **kwargs).compile()
    text = compiled.as_text()
    if not text:
        raise ValueError(
            f"The {jax.default_backend()} backend shows no HLO text to read bits from."
        )
    if num_coordinates is None:
        num_coordinates = _floats_per_device(compiled)
    return WireReport(tuple(_hlo.read_collectives(text)), num_coordinates)


def majority_bits(num_workers: int, ties: str = "zero") -> float:
    """Bits that `majority_vote` sends per coordinate and worker, padding aside."""
    planes = {"zero": 2, "random": 1}[ties]
    return 2 * planes * (num_workers - 1) / num_workers


def average_signs_bits(num_workers: int) -> float:
    """Bits that `average_signs` sends per coordinate and worker: one up, the count down."""
    return (1 + num_workers.bit_length()) * (num_workers - 1) / num_workers


def dense_bits(num_workers: int, bits: int = 32) -> float:
    """Bits that an all-reduce of `bits`-bit numbers sends per coordinate and worker."""
    return 2 * bits * (num_workers - 1) / num_workers


def _floats_per_device(compiled: Any) -> int | None:
    infos, shardings = compiled.args_info[0], compiled.input_shardings[0]
    if not infos:
        return None
    info, sharding = infos[0], shardings[0]
    if hasattr(info, "params"):
        info, sharding = info.params, sharding.params
    is_none = lambda x: x is None  # noqa: E731 - an unused argument has no sharding
    leaves = zip(
        jax.tree.leaves(info, is_leaf=is_none),
        jax.tree.leaves(sharding, is_leaf=is_none),
        strict=True,
    )
    total = 0
    for leaf, how in leaves:
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
            total += math.prod(how.shard_shape(leaf.shape) if how else leaf.shape)
    return total or None


def _short(scope: str) -> str:
    return "/".join(part for part in scope.split("/") if not part.startswith(("jit(", "shard_map")))
