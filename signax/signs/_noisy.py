r"""The noisy sign: a worker adds noise to its gradient before it takes the sign.

$$ s_i = \operatorname{sign}(g_i + b \, \xi_i), \qquad
   P[s_i = +1] = F(g_i / b), \qquad E[s_i] = 2 F(g_i / b) - 1 \approx 2 F'(0) \, g_i / b $$

for a symmetric noise with distribution function F. Where the noise is large against the gradient a
sign is, on average, proportional to it, so a vote that would find the workers' median finds their
mean. Only the sign's law matters: it is drawn from F with one integer test, and a signal of 1e-8
of the noise, which a float32 sum would round away, is still there.

Source: Chen, Chen, Sun, Wu and Hong, "Distributed Training with Heterogeneous Data: Bridging
Median- and Mean-Based Algorithms", NeurIPS 2020, arXiv:1906.01736.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from signax import _choices, _rows, _workers
from signax._shards import _cut, _nesting, _whole
from signax.signs import _random, _sign, _stochastic

Noise = Literal["normal", "uniform"]

_TAG = 0x4E4F4953  # this link's place in the address of a random word


class NoisySignState(NamedTuple):
    """State of `scale_by_noisy_sign`: equal on all workers."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]


def noisy_sign(
    key: jax.typing.ArrayLike,
    g: jax.Array,
    noise_scale: jax.typing.ArrayLike,
    noise: Noise = "normal",
) -> jax.Array:
    r"""The sign of each coordinate plus noise.

    $$ s_i = \operatorname{sign}(g_i + b \, \xi_i) $$

    Args:
      key: An integer seed or a PRNG key.
      g: An array of any shape and floating dtype; the arithmetic is float32.
      noise_scale: b, in the units of `g`: the standard deviation of the normal noise, or half the
        width of the uniform one. 0 is no noise.
      noise: "normal", or "uniform" on [-b, b]: the stochastic sign with the fixed scale b.

    Returns:
      An array of -1 and +1 with the shape and dtype of `g`. A zero coordinate is a fair coin; with
      b = 0 it is zero. NaN everywhere if `g` holds a NaN or an infinity. An empty array stays so.

    Raises:
      ValueError: For an unknown noise or a negative b.
      TypeError: If `g` is not of a floating dtype of at least 16 bits.

    Example:
      >>> print(signax.noisy_sign(0, jnp.array([30.0, -40.0]), 1.0))
      [ 1. -1.]

    References:
      Chen et al., Distributed Training with Heterogeneous Data, 2020, arXiv:1906.01736.
    """
    _require(noise_scale, noise, "noisy_sign")
    g = jnp.asarray(g)
    _sign.require_real(g, "noisy_sign")
    return _draw(_random.key_words(key), g, noise_scale, noise, _sign.all_finite(g))


def scale_by_noisy_sign(
    key: jax.typing.ArrayLike,
    noise_scale: jax.typing.ArrayLike,
    *,
    axis_name: _workers.AxisName | None,
    noise: Noise = "normal",
) -> optax.GradientTransformation:
    r"""Replaces each worker's gradient by the sign of gradient plus noise, before a vote.

    $$ s_i = \operatorname{sign}(g_i + b \, \xi_i) $$

    Every random word is addressed by (key, step, worker, leaf path, position), so all mappings draw
    the same bits and any step can be replayed.

    Args:
      key: An integer seed or a PRNG key, the same on all workers.
      noise_scale: b, in the units of the gradient: `noisy_sign`.
      axis_name: The workers' axis or a tuple of axes, whose index makes the workers' noise
        independent; None for one worker.
      noise: "normal" or "uniform".

    Returns:
      A transformation whose updates hold -1 and +1 in the dtype and shape of the gradient. A zero
      coordinate, also of a tree that is all zero, is a fair coin: the noise is all there is. A tree
      with a NaN or an infinity becomes NaN everywhere and abstains. An empty tree passes.

    Raises:
      ValueError: For an unknown noise or a negative b; at update, for an axis that is not bound.
      TypeError: If a leaf is not of a floating dtype of at least 16 bits.

    Example:
      >>> tx = signax.scale_by_noisy_sign(0, 1.0, axis_name=None)
      >>> updates, state = tx.update(jnp.array([30.0, -40.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [ 1. -1.]

    References:
      Chen et al., Distributed Training with Heterogeneous Data, 2020, arXiv:1906.01736.
    """
    _require(noise_scale, noise, "scale_by_noisy_sign")

    def init(params):
        del params
        return NoisySignState(jnp.zeros((), jnp.int32), _random.key_words(key))

    @_nesting.on_shards_with(noise_scale)
    def update(updates, state, noise_scale):
        _workers.require_bound(axis_name, "scale_by_noisy_sign")
        _workers.require_own(updates, _workers.tracked_axes(axis_name), "scale_by_noisy_sign")
        _whole.require_told(updates, axis_name, "scale_by_noisy_sign")
        _sign.require_real(updates, "scale_by_noisy_sign")
        updates = jax.tree.map(jnp.asarray, updates)
        is_finite = _sign.all_finite(updates)
        words = _random.link_words(state.key, _TAG, state.count, _workers.worker_index(axis_name))
        leaves, treedef = jax.tree.flatten(updates)
        shards = _whole.shards_of(updates) or [None] * len(leaves)
        own = jax.tree.leaves(_random.tree_words(words, updates))
        signs = [
            _draw(words, g, noise_scale, noise, is_finite, shard)
            for words, g, shard in zip(own, leaves, shards, strict=True)
        ]
        return treedef.unflatten(signs), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _draw(
    words: jax.Array,
    g: jax.Array,
    noise_scale: jax.typing.ArrayLike,
    noise: Noise,
    is_finite: jax.Array,
    shard: _whole.Shard | None = None,
) -> jax.Array:
    """A sign with mean 2 F(g / b) - 1: erf(g / (b sqrt 2)) for normal noise, g / b for uniform."""
    b = jnp.asarray(noise_scale, jnp.float32)
    pieces = [[g.reshape(-1)], [_whole.positions(g, shard)]]
    if not _cut.is_left_to_the_compiler(g):  # to cut it would gather it
        pieces = [_rows.cut(whole) for (whole,) in pieces]
    signs = [_sign_of(words, *piece, b, noise, is_finite) for piece in zip(*pieces, strict=True)]
    return jnp.concatenate(signs).reshape(g.shape)


def _sign_of(
    words: jax.Array,
    g: jax.Array,
    places: jax.Array,
    b: jax.Array,
    noise: Noise,
    is_finite: jax.Array,
) -> jax.Array:
    wide = g.astype(jnp.float32)
    ratio = wide / jnp.where(b > 0, b, 1.0)  # without noise not taken, but no NaN either
    mean = jax.lax.erf(ratio * (0.5**0.5)) if noise == "normal" else ratio
    drawn = _stochastic.sign_of_mean(words, mean * 2.0**31, places)
    sign = jnp.where(b > 0, drawn, jnp.sign(wide))
    return jnp.where(is_finite, sign, jnp.nan).astype(g.dtype)


def _require(noise_scale: jax.typing.ArrayLike, noise: Noise, function: str) -> None:
    _choices.require(noise, Noise, function, "noise")
    _choices.require_number(noise_scale, function, "noise_scale")
    if not isinstance(noise_scale, Tracer) and not np.asarray(noise_scale) >= 0:
        raise ValueError(
            f"signax.{function}: noise_scale must not be negative, got {noise_scale}. It is the"
            " standard deviation of the normal noise (half the width of the uniform one), in the"
            " units of the gradient; 0 is no noise."
        )
