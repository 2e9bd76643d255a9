"""The collectives of a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterator

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
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
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
    branch: int | None = None  # which branch of the conditional around it; of lax.cond 1 is true
    scope: str = ""  # the named scopes it was written in

    @property
    def group_size(self) -> int:
        """Workers in the largest group."""
        return max(len({*group}) for group in self.groups)


def read_collectives(hlo: str) -> Iterator[Collective]:
    """Reads the collectives out of the text of a compiled HLO module."""
    computations, entry = _computations(re.sub(r"/\*.*?\*/", "", hlo))
    shapes = {i[0]: i[1] for body in computations.values() for i in body}
    header = hlo.partition("\n")[0]
    sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
    everyone = tuple(range(math.prod(map(int, sizes))))

    def walk(name: str, times: int, exact: bool, branch: int | None) -> Iterator[Collective]:
        for _, _, opcode, operands, rest in computations.get(name, ()):
            kind = opcode.removesuffix("-start")
            if kind in _SENT:
                arrays = [
                    a for n in re.findall(r"%([\w.\-]+)", operands) for a in _arrays(shapes[n])
                ]
                found = _collective(kind, arrays, rest, everyone, times)
                yield dataclasses.replace(found, exact=exact, branch=branch)
            elif not opcode.endswith(("-done", "-update")):  # these name what -start has started
                trips = _TRIPS.search(rest)
                inside = times * int(trips[1]) if trips else times
                sure = (
                    exact and opcode != "conditional" and (opcode != "while" or trips is not None)
                )
                if opcode == "while" and (condition := _CONDITION.search(rest)):
                    asked = times * (int(trips[1]) + 1) if trips else times  # once more than run
                    yield from walk(condition[1], asked, sure, branch)
                for index, called in enumerate(_called(rest)):
                    under = index if opcode == "conditional" else branch
                    yield from walk(called, inside, sure, under)

    yield from walk(entry, 1, True, None)


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
) -> Collective:
    if kind == "ragged-all-to-all":
        arrays = arrays[:1]  # the others say where to put it
    groups = replica_groups(rest) or (everyone,)
    bits = sum(_dtype_bits(dtype) * elements for dtype, elements in arrays)
    if kind == "collective-permute" and all(len({*pair}) == 1 for pair in groups):
        bits = 0  # each keeps its own
    scope = re.search(r'op_name="([^"]*)"', rest)
    return Collective(
        kind=kind,
        dtype="+".join(dict.fromkeys(dtype for dtype, _ in arrays)),
        elements=sum(elements for _, elements in arrays),
        groups=groups,
        bits=times * _SENT[kind](bits, max(map(len, groups))),
        times=times,
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
    """The computations that an instruction runs; of a conditional, its branches in their order."""
    if match := re.search(r"\btrue_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)", rest):
        return [match[2], match[1]]
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
