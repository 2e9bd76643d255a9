r"""The sign of a gradient: what a worker says when it says one bit per coordinate.

The paper's sign is ternary, $\operatorname{sign}(0) = 0$, and so is `jnp.sign`. The scaled sign
adds one number per leaf, the mean magnitude, and is then the nearest vector of the form $\pm c$:

$$ \operatorname{arg\,min}_{c, s \in \{-1, +1\}^d} \lVert g - c s \rVert_2
   \;=\; \left( \tfrac{1}{d} \lVert g \rVert_1, \; \operatorname{sign} g \right). $$

This file also holds what all signs share: which leaves have a sign at all, and whether a worker has
anything to say.

Sources: Safaryan and Richtarik, "Stochastic Sign Descent Methods", ICML 2021, arXiv:1905.12938,
(2); Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019, arXiv:1901.09847.
"""

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signax import _choices, _reductions, _workers
from signax._shards import _cut, _nesting, _whole
from signax.signs import _random

Scope = Literal["leaf", "global"]

_TAG = 0x5343414C  # this link's place in the address of a random word


class ScaledSignState(NamedTuple):
    """State of `scale_by_scaled_sign`: equal on all workers."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]


def scaled_sign(g: jax.Array) -> jax.Array:
    r"""The sign of each coordinate times the mean magnitude of all of them.

    $$ Q(g) = \frac{1}{d} \lVert g \rVert_1 \operatorname{sign} g $$

    Args:
      g: An array of any shape and floating dtype; the arithmetic is float32.

    Returns:
      An array like `g`. A zero coordinate stays zero (in `scale_by_scaled_sign` it is a coin), so
      all zeros and the empty array stay as they are. NaN everywhere if `g` holds a NaN or an
      infinity.

    Raises:
      TypeError: If `g` is not of a floating dtype of at least 16 bits.

    Example:
      >>> print(signax.scaled_sign(jnp.array([3.0, 0.0, -6.0])))
      [ 3.  0. -3.]

    References:
      Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML
      2019, arXiv:1901.09847, Algorithm 1.
    """
    g = jnp.asarray(g)
    require_real(g, "scaled_sign")
    scaled = jnp.sign(g) * _reductions.mean_magnitude([g]).astype(g.dtype)
    return jnp.where(all_finite(g), scaled, jnp.nan)


def scale_by_scaled_sign(
    key: jax.typing.ArrayLike = 0, *, axis_name: _workers.AxisName | None, scope: Scope = "leaf"
) -> optax.GradientTransformation:
    r"""Replaces each worker's update by +c or -c, c its mean magnitude: one bit per coordinate.

    $$ u_i = \pm c, \qquad c = \frac{1}{d} \lVert g \rVert_1 $$

    with the sign of g_i, and a fair coin where g_i is zero: a wire of one bit cannot say zero, and
    an error memory (`error_feedback`) must know what was said. It stands before
    `average_scaled_signs`. Every coin is addressed by (key, step, worker, leaf path, position).

    Args:
      key: An integer seed or a PRNG key for the coins, the same on all workers.
      axis_name: The workers' axis or a tuple of axes, whose index makes the workers' coins
        independent; None for one worker.
      scope: What c is a mean of: "leaf", each leaf's own coordinates, or "global", all of them.

    Returns:
      A transformation whose updates hold exactly +c and -c in the dtype and shape of the gradient,
      so c is rounded to that dtype. A leaf (with scope="global": a tree) that is all zero stays
      zero. A tree with a NaN or an infinity becomes NaN everywhere and abstains. An empty tree
      passes.

    Raises:
      ValueError: For an unknown scope, or an axis that is not bound at update.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.scale_by_scaled_sign(axis_name=None)
      >>> updates, state = tx.update(jnp.array([1.0, -3.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [ 2. -2.]

    References:
      Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML
      2019, arXiv:1901.09847, Algorithm 1.
    """
    _choices.require(scope, Scope, "scale_by_scaled_sign", "scope")

    @_nesting.on_shards
    def update(updates, state):
        signs, scales, state = signs_and_scales(updates, state, axis_name, scope)
        said = jax.tree.map(lambda s, c: s * c, signs, scales)
        return said, state

    return optax.GradientTransformation(functools.partial(init_state, key=key), update)


def init_state(params: Any, key: jax.typing.ArrayLike) -> ScaledSignState:
    del params
    return ScaledSignState(jnp.zeros((), jnp.int32), _random.key_words(key))


def signs_and_scales(
    updates: Any,
    state: ScaledSignState,
    axis_name: _workers.AxisName | None,
    scope: Scope,
    is_shared: bool = False,
) -> tuple[Any, Any, ScaledSignState]:
    """What this worker says: -1 or +1 for each coordinate (NaN if it abstains), and each leaf's c.

    With `is_shared` c is the mean over the workers whose updates are finite, equal on all workers.
    """
    _workers.require_bound(axis_name, "scale_by_scaled_sign")
    _workers.require_own(updates, _workers.tracked_axes(axis_name), "scale_by_scaled_sign")
    _whole.require_told(updates, axis_name, "scale_by_scaled_sign")
    require_real(updates, "scale_by_scaled_sign")
    updates = jax.tree.map(jnp.asarray, updates)
    leaves, treedef = jax.tree.flatten(updates)
    is_finite = all_finite(updates)
    shards = _whole.shards_of(updates)
    if shards is not None:
        means = _means_of_shards(leaves, shards, scope)
    else:
        groups = [leaves] if scope == "global" else [[leaf] for leaf in leaves]
        means = jnp.array([_reductions.mean_magnitude(group) for group in groups])
    if is_shared and axis_name is not None:
        means = _mean_over_finite(means, is_finite, axis_name)
    scales = [means[0 if scope == "global" else i].astype(g.dtype) for i, g in enumerate(leaves)]
    words = _random.link_words(state.key, _TAG, state.count, _workers.worker_index(axis_name))

    def sign(words, g, shard):
        places = _whole.positions(g, shard)
        coin = (_random.words_at(words, places) >> 31 == 1).reshape(g.shape)
        one = jnp.where(is_finite, 1.0, jnp.nan).astype(g.dtype)
        return jnp.where((g > 0) | ((g == 0) & coin), one, -one)

    own = jax.tree.leaves(_random.tree_words(words, updates))
    signs = map(sign, own, leaves, shards or [None] * len(leaves))
    return (
        treedef.unflatten(signs),
        treedef.unflatten(scales),
        state._replace(count=state.count + 1),
    )


def _mean_over_finite(values: jax.Array, is_finite: jax.Array, axis_name: Any) -> jax.Array:
    """The mean over the workers that are finite; a division by M keeps the sum within float32."""
    share = jnp.where(is_finite, values, 0.0) / _workers.num_workers(axis_name)
    total = jnp.append(share, is_finite.astype(jnp.float32))
    total = jax.lax.psum(_workers.as_varying(total, axis_name), axis_name)
    return total[:-1] * (_workers.num_workers(axis_name) / jnp.maximum(total[-1], 1.0))


def _means_of_shards(
    leaves: Sequence[jax.Array], shards: Sequence[_whole.Shard], scope: Scope
) -> jax.Array:
    """The mean of |g| over the whole leaves of which these are shards: float32[L], or [1]."""
    wide = [jnp.abs(leaf.astype(jnp.float32)) for leaf in leaves]
    largest = _whole.largest(jnp.array([jnp.max(x, initial=0.0) for x in wide]))
    units = _reductions.power_of_two(
        jnp.max(largest, keepdims=True) if scope == "global" else largest
    )
    unit_of = [units[0 if scope == "global" else i] for i in range(len(leaves))]
    sums = jnp.array([jnp.sum(x * (1.0 / unit)) for x, unit in zip(wide, unit_of, strict=True)])
    total = _whole.totals(sums, shards)
    sizes = [math.prod(_whole.whole_shape(*pair)) for pair in zip(leaves, shards, strict=True)]
    if scope == "global":
        return jnp.sum(total, keepdims=True) / max(sum(sizes), 1) * units
    return total / jnp.array([float(max(size, 1)) for size in sizes]) * units


def require_real(updates: Any, link: str) -> None:
    """Raises a `TypeError` naming the first leaf that is not of a real floating dtype."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        dtype = jax.dtypes.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
        where = f"signax.{link}: the update at {jax.tree_util.keystr(path) or '(the whole tree)'}"
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {dtype}. A vote needs the sign of a real number, so only"
                " floating-point leaves can take part. Leave integer and complex leaves out of"
                " the differentiated parameters (jax.grad's argnums, nnx.Param, optax.partition),"
                " or cast them to a float."
            )
        if jnp.finfo(dtype).bits < 16:
            raise TypeError(
                f"{where} has dtype {dtype}. An update keeps the dtype of the gradient, and in 8"
                " bits a step of a usual learning rate rounds to zero or to twice its size, so"
                " training would stop or run away without an error. Cast the gradient to bfloat16"
                " or float32 before the optimizer."
            )


def all_finite(*trees: Any) -> jax.Array:
    """Whether no leaf of the trees holds a NaN or an infinity: a bool scalar, True if empty.

    Where leaves are cut over fast axes it is a fact about the whole worker.
    """
    # A gradient and the momentum that it changes are read once: one pass for leaves of one shape at
    # the same place of their trees.
    groups = collections.defaultdict(list)
    for tree in trees:
        for place, leaf in enumerate(jax.tree.leaves(tree)):
            groups[place, jnp.shape(leaf)].append(jnp.asarray(leaf))
    if not groups:
        return jnp.ones((), bool)
    found, rest = zip(*map(_bad, groups.values()), strict=True)
    is_bad = any_of([*found, jnp.max(jnp.concatenate(rest), initial=0)])
    return _whole.all_of(~is_bad)[0]


def any_of(flags: Sequence[jax.Array]) -> jax.Array:
    """Whether one of these scalars is not zero: a fact about all leaves, found once.

    By a sort, which XLA does not fuse: it would fuse a reduction over all leaves into each leaf's
    own work, and with 200 leaves compile and evaluate it 200 times.
    """
    return jax.lax.sort(jnp.stack(flags))[-1].astype(bool)


def _bad(same: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Where arrays of one shape hold a NaN or an infinity, in one pass over all of them: not zero.

    uint8[] for the coordinates that make rows of 512, and one uint8 for each of the rest. XLA would
    write the flags of `jnp.all(jnp.isfinite(x))` out before it reduces them.
    """
    if any(map(_cut.is_left_to_the_compiler, same)):  # to cut it into rows would gather it
        is_bad = ~jnp.stack([jnp.all(jnp.isfinite(x)) for x in same])
        return jnp.max(is_bad.astype(jnp.uint8)), jnp.zeros(0, jnp.uint8)
    is_bad = functools.reduce(jnp.logical_or, [~jnp.isfinite(x.reshape(-1)) for x in same])
    is_bad, whole = is_bad.astype(jnp.uint8), is_bad.size - is_bad.size % 512
    if not whole:
        return jnp.zeros((), jnp.uint8), is_bad
    rows = jnp.sum(is_bad[:whole].reshape(-1, 64, 8), axis=-1, dtype=jnp.uint8)
    return jnp.max(rows, initial=0), is_bad[whole:]
