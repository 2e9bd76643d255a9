"""Will sign methods work on my problem? The examination from batches to a report."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from signax.diagnostics import _cost, _draws, _findings, _measure, _verdict
from signax.diagnostics._report import Report


def examine(
    loss_fn: Callable,
    params: Any,
    batches: Iterable,
    *,
    num_workers: int = 1,
    reference: Any = None,
    num_batches: int = 64,
    has_aux: bool = False,
    planned_workers: int | None = None,
    bandwidth: float | None = None,
    compute_seconds: float | None = None,
    confidence: float = 0.99,
) -> Report:
    r"""Says whether the signs of mini-batch gradients point downhill on your problem, here.

    At one point, without training, it draws the gradient of each worker's part of each batch and
    asks how often each sign is right, why not, what a vote of M workers makes of it, and whether
    sending signs is worth it:

    $$ \rho_i = \operatorname{Prob}(\operatorname{sign} \hat g_i = \operatorname{sign} a_i), \qquad
       \lVert a \rVert_\rho = \sum_i (2 \rho_i - 1) |a_i|, \qquad a = \frac1M \sum_n \nabla f_n. $$

    **No draw judges itself.** Agreement with a mean that a draw is part of finds rho > 1/2 in pure
    noise. So the first half of the batches makes the reference a and the second half is measured
    against it, unless you give the exact gradient (`reference`). A coordinate whose reference is
    within 3 standard errors of zero counts as unresolved. Intervals for rho are Wilson's; those of
    norms are normal intervals over the batches, given the reference.

    Success probabilities change during training: examine the start, and again later.

    Args:
      loss_fn: A worker's own loss, `loss_fn(params, batch)`, as for `make_train_step`.
      params: The point: any tree of floating arrays.
      batches: A stream of batches as for `make_train_step`: leaves have a leading axis that
        `num_workers` divides, and worker n gets the n-th part. Draw them independently, with
        replacement: the batches of one epoch lean on each other.
      num_workers: M. Parts of one batch that are drawn alike are workers with the same data.
      reference: The exact gradient, if you have it: a tree like `params` (the same for all
        workers), or with a leading axis of M (each worker's own).
      num_batches: How many batches to read at most; at least 8.
      has_aux: Whether `loss_fn` returns `(loss, aux)`.
      planned_workers: The M for which bits and times are told; None is `num_workers`, or 8 if that
        is 1.
      bandwidth: Bits per second of each worker's link, both ways at once; None tells no times.
      compute_seconds: One worker's time for a gradient where you will train; None measures it here.
      confidence: Of the intervals, each for itself: of many coordinates with rho = 1/2 a share of
        (1 - confidence) / 2 seems to have rho > 1/2.

    Returns:
      A frozen `Report`: `print(report)` to read it, `report.to_dict()` for JSON,
      `report.coordinates.rho` and others as trees. A draw with a NaN or an infinity is left out and
      counted. Zeros count as half a success. Memory is O(M d), whatever the number of batches.

    Raises:
      ValueError: For a tree without coordinates, no planned worker or bandwidth, fewer than 8
        batches, a batch that M cannot divide, a reference of other shapes, a worker without any
        finite gradient, a gradient that is zero everywhere.
      TypeError: If a leaf of `params` is not of a floating dtype.

    Example:
      >>> def loss_fn(x, noise):
      ...   return jnp.sum(x**2) / 2 + x @ jnp.mean(noise, axis=0)
      >>> noise = jax.random.normal(jax.random.key(0), (40, 8, 3))  # 40 batches, 8 workers
      >>> x = jnp.array([1.0, -2.0, 3.0])
      >>> report = signax.diagnostics.examine(loss_fn, x, noise, num_workers=8)
      >>> print(report.verdict.name, report.total.num_right)
      sign_friendly 3

    References:
      Safaryan and Richtarik, 2021, arXiv:1905.12938: Assumption 1, Definitions 1 and 2, Lemmas 1
      and 3. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    _require_sizes(num_workers, num_batches, confidence)
    _require_plan(planned_workers, bandwidth)
    tree = _draws.tree_of(params)
    draw = _draws.make_draw(loss_fn, num_workers, has_aux)
    num_batches = _draws.num_to_read(batches, num_batches)
    stream = _draws.read(batches, num_batches, num_workers)
    measured = _measure.measure(draw, params, stream, tree, num_workers, reference, num_batches)
    found = _findings.Findings(measured, tree, confidence)
    leaves = tuple(found.leaf(i) for i in range(len(tree.names)))
    total = found.leaf(len(tree.names))

    planned = planned_workers or (num_workers if num_workers > 1 else 8)
    gradient = jax.jit(jax.grad(loss_fn, has_aux=has_aux))
    part = _draws.first_part(measured.last_batch, num_workers)
    cost = _cost.cost_of(
        params, planned, bandwidth, lambda: gradient(params, part), compute_seconds
    )
    return Report(
        num_workers=num_workers,
        num_batches=int(measured.sums.steps),
        num_draws=found.num_draws,
        num_nonfinite=measured.num_nonfinite,
        examples_per_draw=jnp.shape(jax.tree.leaves(part)[0])[0],
        reference=measured.described,
        confidence=confidence,
        norm_spread=found.norm_spread,
        total=total,
        leaves=leaves,
        cost=cost,
        verdict=_verdict.verdict_of(total, leaves, cost, num_workers, found.norm_spread),
        coordinates=found.coordinates(),
    )


def _require_plan(planned_workers: int | None, bandwidth: float | None) -> None:
    if planned_workers is not None and planned_workers < 1:
        raise ValueError(
            f"signax.diagnostics.examine: planned_workers={planned_workers}; there must be at least"
            " 1. None plans for num_workers."
        )
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(
            f"signax.diagnostics.examine: bandwidth={bandwidth}, of a worker's link in bits per"
            " second, must be above 0, such as 1e9."
        )


def _require_sizes(num_workers: int, num_batches: int, confidence: float) -> None:
    if num_workers < 1:
        raise ValueError(
            f"signax.diagnostics.examine: num_workers={num_workers}; there must be at least 1."
        )
    if num_batches < _draws.LEAST_BATCHES:
        raise ValueError(
            f"signax.diagnostics.examine: num_batches={num_batches}; with fewer than"
            f" {_draws.LEAST_BATCHES} a probability cannot be told from a half."
        )
    if not 0 < confidence < 1:
        raise ValueError(
            f"signax.diagnostics.examine: confidence={confidence} must lie between 0 and 1, such as"
            " 0.99."
        )
