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
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Groups = tuple[tuple[int, ...], ...]

_SENT = {  # bits that one worker of n sends for an operand of b bits
    "all-reduce": lambda b, n: 2 * b * (n - 1) / n,
    "all-gather": lambda b, n: b * (n - 1),
    "reduce-scatter": lambda b, n: b * (n - 1) / n,
    "all-to-all": lambda b, n: b * (n - 1) / n,
    "ragged-all-to-all": lambda b, n: b * (n - 1) / n,  # at most: the sizes are run-time values
    "collective-permute": lambda b, n: b,
    "collective-broadcast": lambda b, n: b,
}
_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(?:, (.*)|$)"
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\{|\{)$")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the compiled program."""

    kind: str  # "all-reduce", "all-gather", ...
    dtype: str  # of the operands, as HLO writes it: "f32", "u8"
    elements: int  # of the operands, on one worker, each time it runs
    groups: Groups  # device positions that talk to each other; (source, target) for a permute
    bits: float  # sent by one worker, all times together
    times: int = 1  # known trip count of the loops around it
    exact: bool = True  # False in a loop of unknown length (counted once) or under a branch
    scope: str = ""  # the named scopes it was written in

    @property
    def group_size(self) -> int:
        """Workers in the largest group."""
        return max(map(len, self.groups))


@dataclasses.dataclass(frozen=True)
class WireReport:
    """Every collective of a compiled function and the bits that one worker sends through it."""

    collectives: tuple[Collective, ...]
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
                "? in a loop of unknown length (counted once) or under a branch (all counted)"
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
    return WireReport(tuple(read_collectives(text)), num_coordinates)


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


def read_collectives(hlo: str) -> Iterator[Collective]:
    """Reads the collectives out of the text of a compiled HLO module."""
    computations, entry = _computations(re.sub(r"/\*.*?\*/", "", hlo))
    shapes = {i[0]: i[1] for body in computations.values() for i in body}
    header = hlo.partition("\n")[0]
    sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
    everyone = tuple(range(math.prod(map(int, sizes))))

    def walk(name: str, times: int, exact: bool) -> Iterator[Collective]:
        for _, _, opcode, operands, rest in computations.get(name, ()):
            kind = opcode.removesuffix("-start")
            if kind in _SENT:
                arrays = [
                    a for n in re.findall(r"%([\w.\-]+)", operands) for a in _arrays(shapes[n])
                ]
                yield _collective(kind, arrays, rest, everyone, times, exact)
            elif not opcode.endswith(("-done", "-update")):  # these name what -start has started
                trips = _TRIPS.search(rest)
                inside = times * int(trips[1]) if trips else times
                sure = (
                    exact and opcode != "conditional" and (opcode != "while" or trips is not None)
                )
                for called in _called(rest):
                    yield from walk(called, inside, sure)

    yield from walk(entry, 1, True)


def _computations(hlo: str) -> tuple[dict[str, list[tuple[str, ...]]], str]:
    """Instructions (name, shape, opcode, operands, rest) of each computation; the entry's name."""
    computations, body, entry = {}, [], ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            body = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            body.append(tuple(part or "" for part in match.groups()))
    return computations, entry


def _collective(
    kind: str,
    arrays: list[tuple[str, int]],
    rest: str,
    everyone: tuple[int, ...],
    times: int,
    exact: bool,
) -> Collective:
    if kind == "ragged-all-to-all":
        arrays = arrays[:1]  # the others say where to put it
    groups = replica_groups(rest) or (everyone,)
    bits = sum(_dtype_bits(dtype) * elements for dtype, elements in arrays)
    scope = re.search(r'op_name="([^"]*)"', rest)
    return Collective(
        kind=kind,
        dtype="+".join(dict.fromkeys(dtype for dtype, _ in arrays)),
        elements=sum(elements for _, elements in arrays),
        groups=groups,
        bits=times * _SENT[kind](bits, max(map(len, groups))),
        times=times,
        exact=exact,
        scope=scope[1] if scope else "",
    )


def replica_groups(rest: str) -> Groups:
    """The groups of a collective in any of the forms that XLA writes; () means all devices.

    `{{0,1},{2,3}}`; `[2,4]<=[4,2]T(1,0)`, an iota reshaped, transposed and cut into rows; or
    `mesh['hosts'=2,'devices'=4], device_ids=([4,2]T(1,0)) {'hosts'}` with parts of axes as
    `'a':(1)2`, the 2 after the first 1 when the axis is factored from its slowest part.
    """
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest):
        return tuple(tuple(_ints(group)) for group in re.findall(r"\{([\d,]*)\}", match[1]))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _rows(_iota(match[2]).reshape(_ints(match[1])))
    if match := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", rest
    ):
        return _mesh_groups(*match.groups())
    return ()


def _mesh_groups(mesh: str, device_ids: str | None, axes: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", mesh)}
    position = np.arange(math.prod(sizes.values()))
    index = dict(zip(sizes, np.unravel_index(position, tuple(sizes.values())), strict=True))
    strides = dict(zip(sizes, np.cumprod([1, *list(sizes.values())[:0:-1]])[::-1], strict=True))
    rank, group = np.zeros_like(position), position.copy()
    for name, outer, size in re.findall(r"'(.*?)'(?::\((\d+)\)(\d+))?", axes):
        outer, size = int(outer or 1), int(size or sizes[name])
        inner = sizes[name] // (outer * size)
        digit = index[name] // inner % size
        rank = rank * size + digit  # place within the group
        group -= digit * inner * strides[name]  # what is left names the group
    order = np.lexsort((rank, group))
    return _rows(_iota(device_ids, position.size)[order].reshape(-1, rank.max() + 1))


def _iota(text: str | None, size: int = 0) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers 0, 1, ... reshaped and transposed; `0,2,1,3`: just these."""
    if not text:
        return np.arange(size)
    match = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        return np.array(_ints(text))
    shape = _ints(match[1])
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_ints(match[2])) if match[2] else numbers).ravel()


def _rows(table: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in table.tolist())


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _called(rest: str) -> list[str]:
    names = _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        names += re.findall(r"[\w.\-]+", branches)
    return names


def _arrays(shape: str) -> list[tuple[str, int]]:
    """(dtype, elements) of an array shape, or of each array of a tuple shape."""
    return [
        (dtype, math.prod(_ints(dims.replace("<=", "")))) for dtype, dims in _ARRAY.findall(shape)
    ]


def _dtype_bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # pred is a byte


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
