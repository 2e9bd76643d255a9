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
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from signax import _workers
from signax.wire import _hlo, _radix


@dataclasses.dataclass(frozen=True)
class WireReport:
    """Every collective of a compiled function and the bits that one worker sends through it."""

    collectives: tuple[_hlo.Collective, ...]
    num_coordinates: int | None = None
    sender: str = "worker"  # whose bits these are: a worker's (one device's), or a group's of them
    whole: int | None = None  # the coordinates of whole arrays, where one device holds a part

    @property
    def bits(self) -> float:
        """Bits that one worker sends in one call."""
        return sum(c.bits for c in self.collectives)

    @property
    def bits_per_coordinate(self) -> float:
        """Bits that one worker sends for each coordinate that it holds."""
        if not self.num_coordinates:
            raise ValueError(
                "signax.wire_bits: the number of coordinates is unknown: the first argument holds"
                " no floats. Pass it: wire_bits(fn, *args, num_coordinates=d)."
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

    def across(self, axis_name: _workers.AxisName, mesh: Mesh | AbstractMesh) -> "WireReport":
        """What crosses from one place along a mesh axis to another, such as from host to host.

        Args:
          axis_name: The axis whose links count, or a tuple of axes: `"hosts"`.
          mesh: The mesh that the function was compiled for.

        Returns:
          A report of the collectives in whose groups devices at different places along the axis
          meet. The bits are those that all devices at one place send together (the link of one
          host), and `bits_per_coordinate` divides them by the coordinates of the whole arrays. A
          collective over the other axes too is counted whole: which of its rings cross is the
          network's choice.

        Raises:
          ValueError: If the mesh has no such axis.

        Example:
          >>> hosts = jax.make_mesh((2, 4), ("hosts", "devices"), (jax.sharding.AxisType.Auto,) * 2)
          >>> mean = jax.shard_map(
          ...   lambda x: jax.lax.pmean(jax.lax.pmean(x, "devices"), "hosts"), mesh=hosts,
          ...   in_specs=jax.P(("hosts", "devices")), out_specs=jax.P())
          >>> print(signax.wire_bits(mean, jnp.zeros(8)).across("hosts", hosts).num_collectives)
          1
        """
        axes = _workers.axes_of(axis_name)
        if missing := [axis for axis in axes if axis not in mesh.axis_names]:
            raise ValueError(
                f"signax.WireReport.across: the mesh {dict(mesh.shape)} has no axis {missing[0]!r}."
            )
        sizes = tuple(mesh.shape[axis] for axis in mesh.axis_names)
        index = np.unravel_index(np.arange(math.prod(sizes)), sizes)
        place = np.stack([index[mesh.axis_names.index(axis)] for axis in axes], axis=1)
        num_senders = math.prod(sizes) // math.prod(mesh.shape[axis] for axis in axes)

        def crosses(c: _hlo.Collective) -> bool:
            return any(len(np.unique(place[list(group)], axis=0)) > 1 for group in c.groups)

        kept = [
            dataclasses.replace(c, bits=c.bits * num_senders)
            for c in self.collectives
            if crosses(c)
        ]
        where = f"place along {axis_name!r}"
        return WireReport(tuple(kept), self.whole or self.num_coordinates, where, self.whole)

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
        lines.append(
            f"{self.num_collectives} collectives, {self.bits:,.0f} bits sent per {self.sender}"
        )
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

    Raises:
      ValueError: If the backend shows no HLO text. Its `bits_per_coordinate` raises one where the
        first argument holds no floats and `num_coordinates` is None.

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
            f"signax.wire_bits: the {jax.default_backend()} backend shows no HLO text to read bits"
            " from."
        )
    here, whole = num_coordinates, num_coordinates
    if num_coordinates is None:
        here, whole = _num_floats(compiled)
    return WireReport(tuple(_hlo.read_collectives(text)), here, whole=whole)


def majority_bits(num_workers: int, ties: str = "zero", wire: str = "packed") -> float:
    """Bits that `majority_vote` sends per coordinate and worker, padding aside."""
    num_values = {"zero": 3, "random": 2}[ties]
    return 2 * _bits_per_value(num_values, wire) * (num_workers - 1) / num_workers


def average_signs_bits(num_workers: int, wire: str = "packed") -> float:
    """Bits that `average_signs` sends per coordinate and worker: one up, the count down."""
    return (1 + _bits_per_value(num_workers + 1, wire)) * (num_workers - 1) / num_workers


def dense_bits(num_workers: int, bits: int = 32) -> float:
    """Bits that an all-reduce of `bits`-bit numbers sends per coordinate and worker."""
    return 2 * bits * (num_workers - 1) / num_workers


def _bits_per_value(num_values: int, wire: str) -> float:
    as_planes, in_radix = (num_values - 1).bit_length(), _radix.bits_per_value(num_values)
    return {"packed": as_planes, "radix": in_radix}[wire]


def _num_floats(compiled: Any) -> tuple[int | None, int | None]:
    """The floats of the first argument: those that one device holds, and all of them."""
    infos, shardings = compiled.args_info[0], compiled.input_shardings[0]
    if not infos:
        return None, None
    info, sharding = infos[0], shardings[0]
    if hasattr(info, "params"):
        info, sharding = info.params, sharding.params
    is_none = lambda x: x is None  # noqa: E731 - an unused argument has no sharding
    leaves = zip(
        jax.tree.leaves(info, is_leaf=is_none),
        jax.tree.leaves(sharding, is_leaf=is_none),
        strict=True,
    )
    here = whole = 0
    for leaf, how in leaves:
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
            here += math.prod(how.shard_shape(leaf.shape) if how else leaf.shape)
            whole += math.prod(leaf.shape)
    return here or None, whole or None


def _short(scope: str) -> str:
    return "/".join(part for part in scope.split("/") if not part.startswith(("jit(", "shard_map")))
