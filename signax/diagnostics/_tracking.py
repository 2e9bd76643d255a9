r"""A link around the network link that watches the vote, for four scalars per step.

With s_n the sign of what worker n says and v the sign of what comes back, the sum over workers

$$ \frac{1}{M d} \sum_{n=1}^{M} \langle s_n, v \rangle
   = \frac{1}{d} \sum_{i=1}^{d} \frac{|\sum_n s_{n,i}|}{M} $$

is the mean margin of the vote: no count of votes has to come back from the servers, one number for
each worker is enough.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from signax import _choices, _workers, theory
from signax.signs import _sign


class TrackVotesState(NamedTuple):
    """State of `track_votes`; running means, float32[]. NaN until somebody has voted."""

    inner_state: Any
    count: jax.Array  # int32[], steps at which somebody voted
    margin: jax.Array  # |votes for - votes against| / votes, mean over coordinates, in [0, 1]
    tie_share: jax.Array  # coordinates on which the vote came out as 0
    agreement: jax.Array  # mean over voters of the share of their signs that won
    own_agreement: jax.Array  # this worker's: differs between the workers
    abstained_share: jax.Array  # workers who had nothing to say


def track_votes(
    vote: optax.GradientTransformation,
    *,
    axis_name: _workers.AxisName | None,
    decay: jax.typing.ArrayLike = 0.99,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps a network link and keeps running means of how the votes went, for logging.

    $$ \bar z_k = \bar z_{k-1} + w_k (z_k - \bar z_{k-1}), \qquad
       w_k = \max\left(1 - \beta, \frac{1}{k}\right) $$

    Write it where the link stands in the chain::

        optax.chain(
            optax.ema(0.9),
            signax.diagnostics.track_votes(signax.majority_vote(axis), axis_name=axis),
            optax.scale_by_learning_rate(1e-3),
        )

    and read `optax.tree.get(opt_state, "margin")` in any loop. The updates are those of `vote`, bit
    for bit. It costs one `psum` of four float32 scalars and one pass over the updates on each
    worker.

    A worker agrees with a majority that it is part of, so fair coins do not agree half of the time:
    compare with `agreement_by_chance(M)`.

    Args:
      vote: The network link: `signax.majority_vote` or `average_signs` (or `average_gradients`, the
        signs of whose mean are then looked at).
      axis_name: The axis of `vote`; None is one worker, who always agrees.
      decay: beta, in [0, 1): about the last 1 / (1 - beta) steps count; 0 is the last step alone.
        Until then all steps count alike.

    Returns:
      A transformation with state `TrackVotesState`, whose `own_agreement` is each worker's own (as
      a momentum is) and whose other leaves are equal on all workers. A worker's zeros and
      coordinates on which the vote is 0 count neither as agreement nor against it. With
      `ties="random"` a coin decides a tie before anyone sees it: `tie_share` is then 0. A worker
      that abstains (NaN, infinity, all zero) keeps its `own_agreement`; a step at which all abstain
      only changes `abstained_share`. An empty tree passes and changes nothing.

    Raises:
      ValueError: For a decay outside [0, 1); at update, if an axis is not bound.
      TypeError: If `decay` is no number.

    Example:
      >>> tx = signax.diagnostics.track_votes(signax.majority_vote("workers"), axis_name="workers")
      >>> votes = jnp.array([[1.0, -2.0], [3.0, -1.0], [-4.0, -6.0]])
      >>> watch = lambda g: tx.update(g, tx.init(g))[1]
      >>> state = jax.vmap(watch, axis_name="workers")(votes)
      >>> print(round(float(state.margin[0]), 3), state.own_agreement)
      0.667 [1.  1.  0.5]
    """
    _choices.require_number(decay, "diagnostics.track_votes", "decay")
    if not isinstance(decay, Tracer) and not 0 <= decay < 1:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"signax.diagnostics.track_votes: decay must be in [0, 1), got {decay}; 0 is the last"
            " step alone, 0.99 about the last hundred."
        )
    vote = optax.with_extra_args_support(vote)

    def init(params):
        unknown = [jnp.full((), jnp.nan, jnp.float32) for _ in range(5)]
        return TrackVotesState(vote.init(params), jnp.zeros((), jnp.int32), *unknown)

    def update(updates, state, params=None, **extra_args):
        _workers.require_bound(axis_name, "diagnostics.track_votes")
        decided, inner_state = vote.update(updates, state.inner_state, params, **extra_args)
        state = state._replace(inner_state=inner_state)
        if not any(jnp.size(u) for u in jax.tree.leaves(updates)):
            return decided, state
        with jax.named_scope("signax.track_votes"):
            return decided, _watch(state, updates, decided, axis_name, decay)

    return optax.GradientTransformationExtraArgs(init, update)


def _watch(state, updates, decided, axis_name, decay) -> TrackVotesState:
    counts = [
        _compare(u, v) for u, v in zip(*map(jax.tree.leaves, (updates, decided)), strict=True)
    ]
    size = float(sum(u.size for u in jax.tree.leaves(updates)))
    agree, against, nonzero = jnp.sum(jnp.stack(counts), axis=0) / size
    # Apart from the others: it is the same on all workers, and typed so.
    zeros = sum(jnp.sum(v == 0, dtype=jnp.int32) for v in jax.tree.leaves(decided)) / size
    is_voting = _sign.all_finite(updates) & (nonzero > 0)
    decisions = agree + against
    own = jnp.where(decisions > 0, agree / jnp.where(decisions > 0, decisions, 1.0), 0.0)
    mine = jnp.array([agree - against, own, 1.0, decisions > 0]) * is_voting
    mine = jnp.where(is_voting, mine, 0.0)  # NaN * 0 is NaN
    everyone = mine if axis_name is None else jax.lax.psum(mine, axis_name)
    margin, agreement, voters, deciding = everyone
    num_workers = _workers.num_workers(axis_name)
    count = state.count + (voters > 0)
    keep = jnp.maximum(jnp.float32(1.0 - decay), 1.0 / jnp.maximum(count, 1))

    def mean(old, new, has_new):
        known = jnp.where(jnp.isnan(old), new, old + keep * (new - old))
        return jnp.where(has_new, known, old)

    return state._replace(
        count=count,
        margin=mean(state.margin, margin / jnp.maximum(voters, 1.0), voters > 0),
        tie_share=mean(state.tie_share, zeros, voters > 0),
        agreement=mean(state.agreement, agreement / jnp.maximum(deciding, 1.0), deciding > 0),
        own_agreement=mean(state.own_agreement, own, is_voting & (decisions > 0)),
        abstained_share=mean(state.abstained_share, 1.0 - voters / num_workers, True),
    )


def _compare(said: jax.Array, decided: jax.Array) -> jax.Array:
    """How many coordinates agree, disagree, and were not 0 here: float32[3]."""
    said, decided = jnp.sign(said), jnp.sign(decided)
    flags = (said * decided > 0, said * decided < 0, said != 0)
    return jnp.stack([jnp.sum(f, dtype=jnp.int32) for f in flags]).astype(jnp.float32)


def agreement_by_chance(num_workers: jax.typing.ArrayLike) -> jax.Array:
    r"""How often a worker agrees with the majority of M if all of them toss fair coins.

    $$ \frac12 + \frac12 \cdot E \left[ \frac{|S_M|}{M} \, \Big| \, S_M \ne 0 \right],
       \qquad S_M = \sum_{n=1}^{M} \pm 1 $$

    What `track_votes` reports as `agreement` means something only as far as it lies above this:
    a worker is part of the majority it agrees with. With `ties="random"` tied coordinates count
    too, and what chance gives is 1/2 + E|S_M| / (2 M), a little less for even M.

    Args:
      num_workers: M, at least 1, a number or an array.

    Returns:
      A value in (1/2, 1], in the shape of M: 1 for one worker, about 1/2 + 0.4 / sqrt(M) for many.

    Example:
      >>> chance = signax.diagnostics.agreement_by_chance(jnp.array([1, 3, 8, 99]))
      >>> print(np.round(np.asarray(chance, float), 3))
      [1.    0.75  0.688 0.54 ]
    """
    num_workers = jnp.asarray(num_workers)
    half = (num_workers + 1) // 2
    # E|S_M| is 2l P(2l coins tie), for M = 2l - 1 and for M = 2l.
    share = theory.majority_probabilities(0.5, 2 * half).tie * (2 * half) / num_workers
    tie = theory.majority_probabilities(0.5, num_workers).tie
    return 0.5 + 0.5 * share / (1.0 - tie)
