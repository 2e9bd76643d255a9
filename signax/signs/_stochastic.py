r"""The stochastic sign: a random bit whose mean is the gradient.

$$ P\left[(\widetilde{\operatorname{sign}}\, g)_i = \pm 1\right]
   = \frac{1}{2} \pm \frac{1}{2} \frac{g_i}{R}, \qquad
   \widetilde{\operatorname{sign}}\, 0 = 0, \qquad
   E[R \cdot \widetilde{\operatorname{sign}}\, g] = g. $$

The paper's scale R is the l2 norm of a worker's whole gradient. Any R >= max |g_i| keeps the law; a
smaller R carries more signal per bit (`Scale`, in `_scales.py`).

Integers are compared, not floats: a random int32 w is below round(g_i / R * 2^31) with the wanted
probability to within 2^-32, where `uniform() < p` in float32 draws no signal at all at g_i/R =
1e-8.

Source: Safaryan and Richtarik, "Stochastic Sign Descent Methods: New Algorithms and Better Theory",
ICML 2021, arXiv:1905.12938, Definition 3.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from signax import _choices, _workers
from signax._shards import _nesting, _whole
from signax.signs import _norms, _random, _scales, _sign

_TAG = 0x53544F43  # this link's place in the address of a random word
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_BELOW_1 = 2.0**31 - 128  # the float32 before 2^31


class StochasticSignState(NamedTuple):
    """State of `scale_by_stochastic_sign`: equal on all workers but for their own maxima."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]
    largest: Any = None  # float32[number of scales]: the running maxima; None if none are kept


def stochastic_sign(
    key: jax.typing.ArrayLike, g: jax.Array, scale: jax.typing.ArrayLike | None = None
) -> jax.Array:
    r"""Draws a random sign for each coordinate, +1 the likelier the larger the coordinate.

    $$ P[s_i = +1] = \frac{1}{2} + \frac{g_i}{2R}, \qquad P[s_i = -1] = 1 - P[s_i = +1] $$

    Args:
      key: An integer seed or a PRNG key.
      g: An array of any shape and floating dtype; the arithmetic is float32.
      scale: R, a positive number in the units of `g`; None is the l2 norm of `g`. Where |g_i| > R
        the probability is clipped to 0 or 1.

    Returns:
      An array of -1 and +1 with the shape and dtype of `g`. A zero coordinate of a non-zero vector
      is a fair coin. All zeros if `scale` is 0 (so also if `g` is zero or empty), NaN if `g` holds
      a NaN or an infinity, or a traced `scale` is negative or not finite.

    Raises:
      ValueError: If `scale` is negative or not finite in float32.
      TypeError: If `scale` is no number, or `g` not of a floating dtype of at least 16 bits.

    Example:
      >>> signs = signax.stochastic_sign(0, jnp.array([3.0, 0.0, -4.0]), scale=4.0)
      >>> print(signs[2])
      -1.0

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods, 2021, arXiv:1905.12938, Definition 3.
    """
    g = jnp.asarray(g)
    _sign.require_real(g, "stochastic_sign")
    if scale is not None:
        _choices.require_number(scale, "stochastic_sign", "scale")
        if not isinstance(scale, Tracer) and not 0 <= np.asarray(scale) <= _LARGEST:
            raise ValueError(
                "signax.stochastic_sign: scale must be finite in float32 and not negative, got"
                f" {scale}. It is R, in the units of g; where it is 0 the signs are 0."
            )
    norm = (
        _norms.norm_of([g], "l2")
        if scale is None
        else _norms.normalized(jnp.asarray(scale, jnp.float32))
    )
    is_finite = _scales.is_usable(norm)
    if scale is not None:
        is_finite &= _sign.all_finite(g)
    return _draw(_random.key_words(key), g, _factors(norm), None, is_finite, norm.mantissa > 0)


def scale_by_stochastic_sign(
    key: jax.typing.ArrayLike,
    *,
    axis_name: _workers.AxisName | None,
    scale: _scales.Scale | float = _scales.Scale(),
    rescale: bool = False,
) -> optax.GradientTransformation:
    r"""Replaces each worker's gradient by its stochastic sign: one bit per coordinate to send.

    $$ P[s_i = +1] = \frac{1}{2} + \frac{g_i}{2R}, \qquad
       u = s \quad \text{or, with } \texttt{rescale}, \quad u = R s, \; E[u] = g $$

    A link that stands before the network (`average_signs`). Every random word is addressed by (key,
    step, worker, leaf path, position), so all mappings draw the same bits and any step can be
    replayed. Two such links on the same leaves need different keys.

    Args:
      key: An integer seed or a PRNG key, the same on all workers.
      axis_name: The workers' axis or a tuple of axes, whose index makes the workers' draws
        independent; None for one worker.
      scale: How R is found (`Scale`), or a fixed positive number: sto-sign (Jin et al. 2020).
      rescale: Whether the signs are multiplied by R, in the dtype of the leaf: an unbiased estimate
        of the gradient, for `average_scaled_signs`; not for blocks, of which a leaf has several.
        An R above 65,504 is infinite in float16.

    Returns:
      A transformation whose updates hold -1 and +1 (with `rescale`: -R and +R, and 0 in a leaf
      whose R is 0) in the dtype and shape of the gradient. A zero coordinate, also of a leaf that
      is all zero, is a fair coin. Where every R is 0, as for a tree that is all zero with a scale
      of its own, the result is zero; with a NaN or an infinity in the tree it is NaN everywhere.
      Both abstain in the vote, and so does every worker under a fixed scale that is traced and
      negative or not finite. An all-zero tree under a shared or fixed R > 0 gives fair coins, as
      its mean of zero asks.

    Raises:
      ValueError: If the scale is not positive and finite, or one for each block with `rescale`; at
        update, if an axis is not bound or the gradients were already summed over the workers.
      TypeError: If `scale` is neither a `Scale` nor a number; at update, if a leaf is not of a
        floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.scale_by_stochastic_sign(0, axis_name=None)
      >>> updates, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init({"w": jnp.zeros(2)}))
      >>> print(updates["w"][1])
      1.0

      A number for a scale is sto-sign, with its b: P(+1) = 1/2 + g/(2b), cut to [0, 1].

      >>> sto_sign = signax.scale_by_stochastic_sign(0, axis_name=None, scale=2.0)
      >>> print(sto_sign.update(jnp.array([2.0, -9.0]), sto_sign.init(jnp.zeros(2)))[0])
      [ 1. -1.]

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods, 2021, arXiv:1905.12938, Definition 3.

      Jin et al., Stochastic-Sign SGD for Federated Learning, 2020, arXiv:2002.10940.
    """
    require_scale(scale, "scale_by_stochastic_sign", rescale)

    @_nesting.on_shards_with(scale)
    def update(updates, state, scale):
        signs, scales, state = signs_and_scales(updates, state, axis_name, scale)
        if rescale:
            signs = jax.tree.map(lambda s, r: s * r.astype(s.dtype), signs, scales)
        return signs, state

    return optax.GradientTransformation(functools.partial(init_state, key=key, scale=scale), update)


def require_scale(scale: _scales.Scale | float, function: str, rescale: bool = False) -> None:
    """Raises for a concrete fixed scale that is not positive, and for blocks with `rescale`."""
    if isinstance(scale, _scales.Scale):
        if rescale and (block := _scales.block_of(scale)) is not None:
            raise ValueError(
                f"signax.{function}: rescale=True sends one scale for each leaf, and"
                f" Scale(scope={block}) has one for each block of {block} coordinates. Use"
                ' scope="leaf", or scope="global".'
            )
        return
    if isinstance(scale, str) or scale is None:
        raise TypeError(
            f"signax.{function}: scale must be a signax.Scale or a number, got {scale!r}. Write"
            f" scale=signax.Scale({'' if scale is None else repr(scale)})."
        )
    _choices.require_number(scale, function, "scale")
    if not isinstance(scale, Tracer) and not 0 < scale <= _LARGEST:
        raise ValueError(
            f"signax.{function}: scale must be positive, and finite in float32, got {scale}. It is"
            " R, in the units of the gradient: a sign's mean is g / R, of which an infinite one"
            " leaves nothing."
        )


def init_state(
    params: Any, key: jax.typing.ArrayLike, scale: _scales.Scale | float
) -> StochasticSignState:
    largest = None
    if isinstance(scale, _scales.Scale) and scale.running:
        largest = jnp.zeros(_scales.num_scales(jax.tree.leaves(params), scale), jnp.float32)
    return StochasticSignState(jnp.zeros((), jnp.int32), _random.key_words(key), largest)


def signs_and_scales(
    updates: Any,
    state: StochasticSignState,
    axis_name: _workers.AxisName | None,
    scale: _scales.Scale | float,
) -> tuple[Any, Any, StochasticSignState]:
    """What this worker says (NaN if it abstains), and R: one for each leaf or each coordinate."""
    _workers.require_bound(axis_name, "scale_by_stochastic_sign")
    _workers.require_own(updates, _workers.tracked_axes(axis_name), "scale_by_stochastic_sign")
    _whole.require_told(updates, axis_name, "scale_by_stochastic_sign")
    _sign.require_real(updates, "scale_by_stochastic_sign")
    leaves, treedef = jax.tree.flatten(updates)
    if not leaves:
        return updates, updates, state._replace(count=state.count + 1)
    leaves = list(map(jnp.asarray, leaves))
    shards = _whole.shards_of(updates)
    block = _scales.block_of(scale)
    norms, is_finite, largest = _scales.find(
        leaves, scale, state.largest, axis_name, state.count, shards
    )
    has_scale = _sign.any_of([jnp.any(norm.mantissa != 0) for norm in norms])
    per_leaf = functools.partial(_scales.per_leaf, scale=scale, num_leaves=len(leaves))
    factors = list(zip(*map(per_leaf, zip(*map(_factors, norms), strict=True)), strict=True))
    words = _random.link_words(state.key, _TAG, state.count, _workers.worker_index(axis_name))
    leaf_words = jax.tree.leaves(_random.tree_words(words, updates))
    shards = shards or [None] * len(leaves)
    signs = [
        _draw(leaf_words[i], leaf, factors[i], block, is_finite, has_scale, shards[i])
        for i, leaf in enumerate(leaves)
    ]
    values = per_leaf(list(map(_norms.value, norms)))
    scales = [_in_shape(r, block, g) for r, g in zip(values, leaves, strict=True)]
    # The count is only an address: it may wrap after 2^32 steps.
    state = state._replace(count=state.count + 1, largest=largest)
    return treedef.unflatten(signs), treedef.unflatten(scales), state


def _in_shape(r: jax.Array, block: int | None, g: jax.Array) -> jax.Array:
    """R of a leaf, or in blocks that of each coordinate."""
    return r if block is None else _scales.at_coordinates(r, block, g.size).reshape(g.shape)


def _factors(norm: _norms.Norms) -> tuple[jax.Array, jax.Array]:
    """What makes 2^31 g / R of g, one after the other: their product may leave float32."""
    mantissa = jnp.where(norm.mantissa > 0, norm.mantissa, 1.0)  # a leaf of zeros: fair coins
    return 1.0 / norm.unit, 2.0**31 / mantissa


def _draw(
    words: jax.Array,
    g: jax.Array,
    factors: Sequence[jax.Array],
    block: int | None,
    is_finite: jax.Array,
    has_scale: jax.Array,
    shard: _whole.Shard | None = None,
) -> jax.Array:
    """One sign per coordinate, whose mean is g / R."""
    places = _whole.positions(g, shard)
    return _drawn_at(places, words, g, tuple(factors), block, is_finite, has_scale)


@functools.partial(jax.jit, static_argnames="block")  # traced once for all leaves of a shape
def _drawn_at(places, words, g, factors, block, is_finite, has_scale):
    x = g.reshape(-1).astype(jnp.float32)
    for factor in factors:
        x = x * _scales.at_coordinates(factor, block, g.size)
    sign = sign_of_mean(words, x, places).reshape(g.shape)
    sign = jnp.where(is_finite, jnp.where(has_scale, sign, 0.0), jnp.nan)
    return sign.astype(g.dtype)


def sign_of_mean(words: jax.Array, x: jax.Array, places: jax.Array) -> jax.Array:
    """Draws -1 or +1 with mean x / 2^31 by an integer test, P(w < t) = 1/2 + t / 2^32; float32."""
    random = jax.lax.bitcast_convert_type(_random.words_at(words, places), jnp.int32)
    threshold = jnp.round(jnp.clip(x, -(2.0**31), _LARGEST_BELOW_1)).astype(jnp.int32)
    is_positive = (random < threshold) | (x >= 2.0**31)  # 2^31 itself is no int32
    return jnp.where(is_positive, 1.0, -1.0)
