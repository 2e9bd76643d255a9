r"""The network as a link of the chain: M workers' updates go in, one update for all comes out.

What stands before such a link runs on each worker alone; what stands after it runs everywhere
alike. A vote looks only at signs. Two of them, for the M workers who vote:

$$ \text{majority:} \quad \operatorname{sign} \sum_{n=1}^{M} \operatorname{sign} u_n, \qquad
   \text{average:} \quad \frac{1}{M} \sum_{n=1}^{M} \operatorname{sign} u_n. $$

A worker whose update holds a NaN or an infinity, or is zero everywhere, has nothing to say: it
abstains, and M counts the others. Inside, everything is an integer, so all workers hold bit for bit
the same result in whatever order the network adds.

Sources: Bernstein et al., "signSGD with Majority Vote", 2019, arXiv:1810.05291; Safaryan and
Richtarik, 2021, arXiv:1905.12938, Algorithms 2 and 3.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _coins, _network, _rules, _workers
from signax._shards import _nesting, _whole
from signax.wire import _ballot, _dealing, _owners, _server


def majority_vote(
    axis_name: _workers.AxisName | None,
    *,
    ties: _rules.Ties = "zero",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    out_specs: Any = None,
) -> optax.GradientTransformation:
    r"""Every coordinate moves the way that most workers want it to.

    $$ u = \operatorname{sign} \left[ \sum_{n=1}^{M} \operatorname{sign} u_n \right] $$

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker, who is the majority.
      ties: What a zero is worth. "zero", the paper's: a worker's zero coordinate is no vote and a
        tie gives zero; 2 bits per coordinate each way. "random", the one-bit wire: both are fair
        coins, unbiased; 1 bit per coordinate each way, but a coordinate that is zero on every
        worker (an unused embedding row) random-walks by the learning rate.
      key: An integer seed or a PRNG key for the coins, the same on all workers.
      wire: How the signs travel: "packed" (all_to_all and all_gather of packed words), "radix"
        (the same, with five coordinates in a byte where they are -1, 0 or +1, so 1.6 bits in place
        of 2), "lanes" (one integer all-reduce) or "float32" (one float all-reduce). All give the
        same bits.
      on_nonfinite: What a NaN or an infinity in a worker's update does. "abstain": that worker does
        not vote at this step. "propagate": the update is NaN on all workers, as after `lax.pmean`.
        "error": a host callback raises a `FloatingPointError` that says how many workers it was,
        and a jitted step fails with it as a `jax.errors.JaxRuntimeError` where its result is next
        waited for (for finding the cause, not for long runs). With the last two a tree
        that is zero everywhere is a vote like any other.
      out_specs: Where the result is needed, as in `jax.shard_map`: None, by every worker, or a tree
        (or a prefix of one) of `PartitionSpec`. A leaf with `P("workers")`, cut along that
        dimension, comes back as this worker's piece alone, because the worker keeps only this piece
        of the parameter (ZeRO, FSDP over the voting axis): nothing is sent down for it. `P()`
        leaves come back whole. Without effect for one worker.

    Returns:
      A transformation that takes any updates, raw or signs, of floating dtype, and returns -1, 0 or
      +1 in their shapes and dtypes, the same on all workers. A worker whose tree holds a NaN or an
      infinity, or is zero everywhere, abstains; if all do, the update is zero. Where XLA flushes
      subnormal numbers, as on CPU, they are zeros. An empty tree passes.

    Raises:
      ValueError: For unknown `ties`, `wire` or `on_nonfinite`; at update, if an axis is not bound,
        if the gradients were already summed over the workers, or if `out_specs` asks for unequal
        pieces.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.majority_vote("workers")
      >>> state = tx.init(jnp.zeros(3))
      >>> votes = jnp.array([[1.0, -2.0, 0.0], [3.0, -1.0, 5.0], [-4.0, 9.0, -6.0]])
      >>> vote = lambda g: tx.update(g, state)[0]
      >>> print(jax.vmap(vote, axis_name="workers", out_axes=None)(votes))
      [ 1. -1.  0.]

    References:
      Bernstein et al., signSGD with Majority Vote is Communication Efficient and Fault Tolerant,
      2019, arXiv:1810.05291; Safaryan and Richtarik, 2021, arXiv:1905.12938, Algorithm 2.
    """
    return _vote(
        "majority_vote", _rules.MAJORITY, axis_name, ties, key, wire, on_nonfinite, out_specs
    )


def average_signs(
    axis_name: _workers.AxisName | None,
    *,
    ties: _rules.Ties = "random",
    key: jax.typing.ArrayLike = 0,
    wire: _server.Wire = "packed",
    on_nonfinite: _network.OnNonfinite = "abstain",
    out_specs: Any = None,
) -> optax.GradientTransformation:
    r"""Every coordinate moves by the mean of the workers' signs: the main step of SSDM.

    $$ u = \frac{1}{M} \sum_{n=1}^{M} \operatorname{sign} u_n $$

    The sum is counted in integers and divided once, by the number of workers who vote.

    Args:
      axis_name: The workers' axis or a tuple of axes; None is one worker.
      ties: What a worker's zero coordinate is worth: "random", a fair coin (1 bit up,
        ceil(log2(M+1)) down), or "zero" (2 bits up, ceil(log2(2M+1)) down). The signs of
        `scale_by_stochastic_sign` are never zero, so for SSDM both give the same result.
      key: An integer seed or a PRNG key for the coins, the same on all workers.
      wire: "packed", "radix" (three counts of eight workers in ten bits in place of twelve, and
        what `ties="zero"` sends up as for `majority_vote`; nothing is saved where M + 1 is a power
        of two or little below it), "lanes" or "float32".
      on_nonfinite: "abstain", "propagate" or "error", as for `majority_vote`.
      out_specs: Where the result is needed, as for `majority_vote`.

    Returns:
      A transformation that takes any updates, raw or signs, of floating dtype, and returns values
      in [-1, 1] in their shapes and dtypes, the same on all workers. Abstention, empty trees and
      errors are those of `majority_vote`.

    Raises:
      ValueError: For unknown `ties`, `wire` or `on_nonfinite`; at update, if an axis is not bound,
        if the gradients were already summed over the workers, or if `out_specs` asks for unequal
        pieces.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.
      FloatingPointError: At update with on_nonfinite="error", for a NaN or an infinity.

    Example:
      >>> tx = signax.average_signs("workers")
      >>> state = tx.init(jnp.zeros(2))
      >>> votes = jnp.array([[1.0, -2.0], [3.0, -1.0], [4.0, 9.0], [7.0, 8.0]])
      >>> vote = lambda g: tx.update(g, state)[0]
      >>> print(jax.vmap(vote, axis_name="workers", out_axes=None)(votes))
      [1. 0.]

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938, Algorithm 3, lines 9 and 11.
    """
    return _vote(
        "average_signs", _rules.AVERAGE, axis_name, ties, key, wire, on_nonfinite, out_specs
    )


def _vote(
    name: str,
    rules: dict[_rules.Ties, _rules.Rule],
    axis_name: _workers.AxisName | None,
    ties: _rules.Ties,
    key: jax.typing.ArrayLike,
    wire: _server.Wire,
    on_nonfinite: _network.OnNonfinite,
    out_specs: Any,
) -> optax.GradientTransformation:
    """Pack the signs, count them on the servers, decide there, unpack the result."""
    _choices.require(ties, _rules.Ties, name, "ties")
    _choices.require(wire, _server.Wire, name, "wire")
    _choices.require(on_nonfinite, _network.OnNonfinite, name, "on_nonfinite")
    rule = rules[ties]

    @_nesting.on_shards
    def update(updates, state):
        _network.check_updates(updates, axis_name, name)
        _whole.require_told(updates, axis_name, name)
        if not any(jnp.size(u) for u in jax.tree.leaves(updates)):
            return _network.nothing_to_say(updates, state)
        with jax.named_scope(f"signax.{name}"):
            owners = _owners.pieces_of(updates, out_specs, axis_name, name)
            # An owner's words stay in the order of the leaves: copies are then sent as often as
            # there are any.
            shards = None if owners else _whole.shards_of(updates)
            dealing = _dealing.Dealing(jax.tree.leaves(updates), shards)
            own_coins, tie_coins = _coins.make(state, updates, axis_name, dealing)
            ballot = _ballot.pack(updates)
            is_finite, is_zero = _whole.all_of(ballot.is_finite, ballot.is_zero)
            is_voting = is_finite & (~is_zero | (on_nonfinite != "abstain"))
            planes = dealing.deal(_cast(ballot, is_voting, ties, own_coins))
            signs, voters = _decided(
                rule, planes, is_voting, updates, tie_coins, owners, dealing, axis_name, wire
            )
            num_absent = _workers.num_workers(axis_name) - voters
            signs = _network.handle_nonfinite(signs, num_absent, on_nonfinite, name)
            return signs, _network.next_state(state, voters, axis_name)

    return optax.GradientTransformation(functools.partial(_network.init_state, key=key), update)


def _decided(rule, planes, is_voting, updates, tie_coins, owners, dealing, axis_name, wire):
    """The planes counted and decided on: the result as a tree, and the number of voters."""
    num_workers = _workers.num_workers(axis_name)
    num_values = rule.num_values(num_workers)
    decode = functools.partial(rule.decode, num_workers=num_workers)

    def decide(counts, voters, coins):
        return rule.decide(counts, len(planes) * num_workers, voters, coins)

    if owners and _server.is_sliced(wire):
        coding = _server.coding_of(wire, len(planes), num_values)
        signs, voters = _owners.tally(
            planes, is_voting, updates, owners, tie_coins, decide, decode, axis_name, coding
        )
        return _whole.as_copies(signs, _whole.shards_of(updates)), _whole.largest(voters)

    def decide_slice(counts, voters, offset):
        return decide(counts, voters, functools.partial(tie_coins, counts[0].size, offset))

    results, voters = _server.tally(planes, is_voting, decide_slice, axis_name, wire, num_values)
    voters = _whole.largest(voters)
    signs = _ballot.unpack_leaves(
        dealing.collect(results, voters), updates, functools.partial(decode, voters=voters)
    )
    return _owners.own_parts(signs, owners, axis_name), voters


def _cast(
    ballot: _ballot.Ballot,
    is_voting: jax.Array,
    ties: _rules.Ties,
    coins: Callable[[int], jax.Array],
) -> _rules.Planes:
    """The planes that this worker sends: their set bits are what the servers count."""
    voting = jnp.where(is_voting, jnp.uint8(255), jnp.uint8(0))
    positive, negative = ballot.positive & voting, ballot.negative & voting
    if ties == "random":
        zero = voting & ~(positive | negative)
        return [positive | (zero & coins(zero.size))]
    # Two bits per coordinate whose sum is sign + 1, so that counting them sums the signs; a worker
    # who abstains says zero. The first is set only where the second is.
    return [positive, ~negative]
