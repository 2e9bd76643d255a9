"""Every worker is the server for 1/M of the coordinates: the collectives that carry signs.

M workers hold packed words (8 coordinates in a byte). Four wires take them to one result:

  packed    scatter (all_to_all): worker j gets slice j of everyone's words,
            counts them, decides, and gathers (all_gather) the decisions.

              worker 0   [a0 a1 a2]      slice 0 of all    [a0 b0 c0] -> r0      [r0 r1 r2]
              worker 1   [b0 b1 b2]  ->  slice 1 of all    [a1 b1 c1] -> r1  ->  [r0 r1 r2]
              worker 2   [c0 c1 c2]      slice 2 of all    [a2 b2 c2] -> r2      [r0 r1 r2]

  radix     as packed, with several coordinates in one number where each has 3, 5, 6, ... values
            (`_radix`): five signs -1, 0, +1 in a byte, three counts of eight workers in ten bits.

  lanes     one integer psum: each coordinate's count has a lane of its own in a uint32,
            wide enough never to carry into its neighbour (the paper's "all-reduce compatible").

  float32   one float psum of the bits: the reference, and the cheapest under vmap.

All hand the same counts, as bit planes, to the same `decide`, so they agree bit for bit.
Whether a worker votes at all travels in the same messages; the number of voters comes back so.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from signax import _workers
from signax.wire import _bits, _contiguous, _radix, _slices

Wire = Literal["packed", "radix", "lanes", "float32"]

_SIGNS = 3  # -1, 0, +1: the radix in which a worker's two planes travel

# counts as bit planes, the number of voters, the offset of these words in the buffer -> planes
Decide = Callable[[Sequence[jax.Array], jax.Array, jax.Array | int], Sequence[jax.Array]]


class Received(NamedTuple):
    """What a server knows of its slice of S words, in which at most K leaves lie."""

    bits: jax.Array  # uint8[M, S]: row n came from worker n
    scales: jax.Array  # float32[M, K]: 0 for a worker who does not vote
    voters: jax.Array  # int32[]


class Coding(NamedTuple):
    """In which radix the values of coordinates travel; None is as the planes that they are."""

    votes: int | None
    decisions: int | None


Answer = Callable[[Received], tuple[jax.Array, Any]]

_override: contextvars.ContextVar[Wire | None] = contextvars.ContextVar("wire", default=None)


@contextlib.contextmanager
def traced_with_wire(wire: Wire) -> Iterator[None]:
    """Exchanges traced inside use `wire`, whatever their links ask for: the bits are the same."""
    token = _override.set(wire)
    try:
        yield
    finally:
        _override.reset(token)


def in_use(wire: Wire) -> Wire:
    """The wire that an exchange traced here uses if its link asks for `wire`."""
    return _override.get() or wire


def tally(
    planes: Sequence[jax.Array],
    is_voting: jax.Array,
    decide: Decide,
    axis_name: _workers.AxisName | None,
    wire: Wire,
    num_values: int,
) -> tuple[Sequence[jax.Array], jax.Array]:
    """Counts the set bits of all workers' planes per coordinate and applies `decide` to the counts.

    Args:
      planes: One or more uint8 arrays of W words each: this worker's bits.
      is_voting: bool scalar, whether this worker counts among the voters.
      decide: From the counts' bit planes, the number of voters and the words' offset to result
        planes.
      axis_name: The workers' axis or axes; None for one worker and no collective.
      wire: How the bits travel; it does not change the result.
      num_values: How many values the planes of `decide` can take.

    Returns:
      The result planes of W words and the number of voters (int32), both equal on all workers.
    """
    # Without the barrier XLA recomputes whatever produced the bits once per slice of the exchange.
    planes = jax.lax.optimization_barrier(tuple(planes))
    if axis_name is None:
        counts = _bits.count_planes(jnp.stack(planes))
        voters = is_voting.astype(jnp.int32)
        decided = decide(counts, voters, 0)
        # Copied, or they would be decided again, coins and all, for each coordinate of a word.
        return [_contiguous.concatenate([plane]) for plane in decided], voters
    if is_sliced(wire):
        coding = coding_of(wire, len(planes), num_values)
        return _sliced(planes, is_voting, decide, axis_name, coding)
    exchange = {"lanes": _lanes, "float32": _float32}
    return exchange[in_use(wire)](planes, is_voting, decide, axis_name)


def is_sliced(wire: Wire) -> bool:
    """Whether each worker counts a slice of its own, which it alone needs to be sent."""
    return in_use(wire) in ("packed", "radix")


def coding_of(wire: Wire, num_planes: int, num_values: int) -> Coding:
    """How the planes of a worker travel, two of which are sign + 1, and decisions' values."""
    if in_use(wire) != "radix":
        return Coding(None, None)
    return Coding(_SIGNS if num_planes == 2 else None, num_values)


def _sliced(planes, is_voting, decide, axis_name, coding):
    num_workers, size = _workers.num_workers(axis_name), planes[0].size
    slice_size = -(-size // num_workers)
    rows = [_rows(plane, num_workers, slice_size) for plane in planes]
    counts, voters = counts_of_slice(rows, is_voting, axis_name, coding)
    offset = _workers.worker_index(axis_name) * slice_size
    results, voters = gather_slices(decide(counts, voters, offset), voters, axis_name, coding)
    return [plane[:size] for plane in results], voters


def counts_of_slice(
    rows: Sequence[jax.Array],
    is_voting: jax.Array,
    axis_name: _workers.AxisName,
    coding: Coding,
) -> tuple[Sequence[jax.Array], jax.Array]:
    """Sends row j of P planes, uint8[M, S] each, to server j; the counts there, and the voters."""
    num_workers, size = rows[0].shape
    sent = _encode_signs(rows) if coding.votes else rows
    header = jnp.full((num_workers, 1), is_voting, jnp.uint8)
    received = _scatter(_contiguous.side_by_side([*sent, header]), axis_name)  # [M, words + 1]
    voters = jnp.sum(received[:, -1], dtype=jnp.int32)
    rows = jnp.split(received[:, :-1], len(sent), axis=1)
    if coding.votes:
        rows = _decode_signs(rows, size)
    return _bits.count_planes(jnp.concatenate(rows)), voters


def gather_slices(
    decided: Sequence[jax.Array],
    voters: jax.Array,
    axis_name: _workers.AxisName,
    coding: Coding,
) -> tuple[list[jax.Array], jax.Array]:
    """The decisions of all servers, planes uint8[S] -> uint8[M*S], and the number of voters."""
    sent = _radix.encode(decided, coding.decisions) if coding.decisions else decided
    header = to_bytes(voters)
    gathered = gather(_contiguous.concatenate([*sent, header]), axis_name)  # [M, words + header]
    results = jnp.split(gathered[:, : -header.size], len(sent), axis=1)
    voters = from_bytes(gathered[0, -header.size :], jnp.int32)[0]
    if coding.decisions:
        results = _radix.decode(results, coding.decisions, decided[0].size)
    return [_contiguous.flat(rows) for rows in results], voters


def _encode_signs(rows):
    """Of two planes whose bits add up to sign + 1, the second is set wherever the first is."""
    positive, not_negative = rows
    return _radix.encode([not_negative & ~positive, positive], _SIGNS)


def _decode_signs(numbers, size):
    ones, twos = _radix.decode(numbers, _SIGNS, size)
    return [twos, ones | twos]


def serve(
    bits: jax.Array,
    scales: jax.Array,
    is_voting: jax.Array,
    slices: _slices.Slices,
    answer: Answer,
    axis_name: _workers.AxisName | None,
) -> tuple[jax.Array, Any]:
    """Each worker answers for one slice of the words, knowing everyone's bits and scales there.

    What only the servers need rides along: to worker j go the bits of slice j, the scales of the
    leaves that lie in it, and whether this worker votes.

    Args:
      bits: uint8[W], this worker's bits.
      scales: float32[L], one for each leaf.
      is_voting: bool scalar.
      slices: How the words are cut.
      answer: From what this server has received to its answer, uint8[B], and anything else, which
        stays here.
      axis_name: The workers' axis or axes; None for one worker and no collective.

    Returns:
      The answers of all servers, uint8[M, B], equal on all workers; and what `answer` kept.
    """
    num_workers = len(slices.leaf)
    bits, scales = jax.lax.optimization_barrier((bits, scales))
    header = to_bytes(jnp.where(is_voting, scales, 0.0)[slices.leaf.reshape(-1)])
    rows = [
        _rows(bits, num_workers, slices.num_words),
        header.reshape(num_workers, -1),
        jnp.full((num_workers, 1), is_voting, jnp.uint8),
    ]
    received = _contiguous.side_by_side(rows)  # [M, S + 4 K + 1]
    if axis_name is not None:
        received = _scatter(received, axis_name)
    words, header, votes = jnp.split(received, [slices.num_words, received.shape[1] - 1], axis=1)
    scales = from_bytes(header, jnp.float32)
    reply, kept = answer(Received(words, scales, jnp.sum(votes, dtype=jnp.int32)))
    return reply[None] if axis_name is None else gather(reply, axis_name), kept


def _lanes(planes, is_voting, decide, axis_name):
    num_workers, num_planes = _workers.num_workers(axis_name), len(planes)
    lane_bits = (num_planes * num_workers).bit_length()
    num_lanes = 32 // lane_bits
    size = 8 * planes[0].size
    counts = _set_bits(planes, jnp.uint32)
    counts = jnp.pad(counts, (0, -size % num_lanes)).reshape(num_lanes, -1)
    shifts = lane_bits * jnp.arange(num_lanes, dtype=jnp.uint32)
    words = jnp.sum(counts << shifts[:, None], axis=0, dtype=jnp.uint32)
    words, voters = _sum_with_voters(words, is_voting, axis_name)
    counts = (words[None] >> shifts[:, None]).reshape(-1)[:size]  # above its lane: the neighbours'
    return decide(_planes(counts, num_planes * num_workers), voters, 0), voters


def _float32(planes, is_voting, decide, axis_name):
    counts = _set_bits(planes, jnp.float32)
    counts, voters = _sum_with_voters(counts, is_voting, axis_name)
    most = len(planes) * _workers.num_workers(axis_name)
    return decide(_planes(counts.astype(jnp.uint32), most), voters, 0), voters


def _scatter(rows: jax.Array, axis_name: _workers.AxisName) -> jax.Array:
    """Sends row j to worker j; row n of the result came from worker n."""
    return jax.lax.all_to_all(rows, _workers.axes_of(axis_name), 0, 0)


def gather(words: jax.Array, axis_name: _workers.AxisName) -> jax.Array:
    """Row n of the result is worker n's words; typed as replicated where types are tracked."""
    if _workers.tracked_axes(axis_name):
        # The compiler then proves that replicas cannot drift. jax 0.10 has no such rule under vmap.
        return jax.lax.all_gather(words, axis_name, to="invarying").reshape(-1, words.size)
    rows = words  # nested vmaps map one axis at a time
    for axis in reversed(_workers.axes_of(axis_name)):
        rows = jax.lax.all_gather(rows, axis)
    return rows.reshape(-1, words.size)


def _sum_with_voters(
    counts: jax.Array, is_voting: jax.Array, axis_name: _workers.AxisName
) -> tuple[jax.Array, jax.Array]:
    """One psum for the counts and, as one more element, the number of voters."""
    total = jax.lax.psum(jnp.append(counts, is_voting.astype(counts.dtype)), axis_name)
    return total[:-1], total[-1].astype(jnp.int32)


def _set_bits(planes: Sequence[jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """How many of the planes' bits are set, for each coordinate."""
    return _bits.unpack_planes(planes, [1] * len(planes), 8 * planes[0].size, dtype)


def _rows(plane: jax.Array, num_workers: int, slice_size: int) -> jax.Array:
    padding = num_workers * slice_size - plane.size
    return jnp.pad(plane, (0, padding)).reshape(num_workers, slice_size)


def _planes(counts: jax.Array, most: int) -> list[jax.Array]:
    """The planes of counts up to `most`; what stands in higher bits is not read."""
    return [_bits.pack_bits((counts >> i) & 1) for i in range(most.bit_length())]


def to_bytes(array: jax.Array) -> jax.Array:
    """The bytes of an array, as one uint8 vector."""
    return jax.lax.bitcast_convert_type(array, jnp.uint8).reshape(-1)


def from_bytes(words: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The inverse of `to_bytes`, row by row: uint8[..., B] -> dtype[..., B / itemsize].

    The words may be wider than bytes, up to the dtype itself.
    """
    width = jnp.dtype(dtype).itemsize // words.dtype.itemsize
    if width > 1:
        words = words.reshape(*words.shape[:-1], words.shape[-1] // width, width)
    return jax.lax.bitcast_convert_type(words, dtype)
