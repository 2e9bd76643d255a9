r"""The stochastic sign: a random bit whose mean is the gradient.

$$ P\left[(\widetilde{\operatorname{sign}}\, g)_i = \pm 1\right]
   = \frac{1}{2} \pm \frac{1}{2} \frac{g_i}{R}, \qquad
   \widetilde{\operatorname{sign}}\, 0 = 0, \qquad
   E[R \cdot \widetilde{\operatorname{sign}}\, g] = g. $$

The paper's scale R is the l2 norm of a worker's whole gradient. Any R >= max |g_i| keeps the law; a
smaller R carries more signal per bit (`Scale`).

Integers are compared, not floats: a random int32 w is below round(g_i / R * 2^31) with the wanted
probability to within 2^-32, where `uniform() < p` in float32 draws no signal at all at g_i/R =
1e-8.

Source: Safaryan and Richtarik, "Stochastic Sign Descent Methods: New Algorithms and Better Theory",
ICML 2021, arXiv:1905.12938, Definition 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from signax import _workers
from signax.signs import _random, _sign

Norm = Literal["l2", "linf"]
Scope = Literal["global", "leaf"]

_TAG = 0x53544F43  # this link's place in the address of a random word
_LARGEST_BELOW_1 = 2.0**31 - 128  # the float32 before 2^31


@dataclasses.dataclass(frozen=True)
class Scale:
    """R of the stochastic sign: by which norm, over what, and whether the workers share it.

    The signal that one bit carries about a coordinate is g_i / R, so a smaller R teaches more:

    | norm, scope    | R                                  | typical g_i / R in d dimensions |
    | -------------- | ---------------------------------- | ------------------------------- |
    | l2, global     | the paper's: l2 norm of all leaves | 1 / sqrt(d)                     |
    | l2, leaf       | l2 norm of each leaf               | 1 / sqrt(leaf size)             |
    | linf, global   | largest coordinate of all leaves   | 0.1 to 0.3                      |
    | linf, leaf     | largest coordinate of each leaf    | 0.1 to 0.3 in every leaf        |

    With `shared=False` each worker uses the norm of its own gradient, as in the paper: the sum of
    signs then ignores how large the workers' gradients are, and with heterogeneous workers it is
    not an estimate of their mean. With `shared=True` R is the largest of the workers' norms (one
    `pmax` of 32 bits per scale and step), and (R/M) times the sum of signs is an unbiased estimate
    of the mean gradient, however different the workers are.

    Attributes:
      norm: "l2" or "linf".
      scope: "global", one R for the whole tree, or "leaf", one for each leaf.
      shared: Whether all workers use the largest of their norms.

    Raises:
      ValueError: For an unknown norm or scope.

    Example:
      >>> signax.Scale("linf", "leaf", shared=True)
      Scale(norm='linf', scope='leaf', shared=True)
    """

    norm: Norm = "l2"
    scope: Scope = "global"
    shared: bool = False

    def __post_init__(self):
        for name, choices in (("norm", get_args(Norm)), ("scope", get_args(Scope))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"Scale: unknown {name} {value!r}; choose one of {choices}.")


class _Norm(NamedTuple):
    """A norm as mantissa * unit, the unit a power of two: 1e-30 and 3e38 keep all their bits."""

    mantissa: jax.Array  # float32[]
    unit: jax.Array  # float32[]


class StochasticSignState(NamedTuple):
    """State of `scale_by_stochastic_sign`: equal on all workers."""

    count: jax.Array  # int32[], the step
    key: jax.Array  # uint32[2]


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
      a NaN or an infinity.

    Raises:
      TypeError: If `g` is not of a floating dtype.

    Example:
      >>> signs = signax.stochastic_sign(0, jnp.array([3.0, 0.0, -4.0]), scale=4.0)
      >>> print(signs[2])
      -1.0

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods, 2021, arXiv:1905.12938, Definition 3.
    """
    g = jnp.asarray(g)
    _sign.require_real(g, "stochastic_sign")
    norm = _norm([g], "l2") if scale is None else _normalized(jnp.asarray(scale, jnp.float32))
    is_finite = jnp.isfinite(norm.mantissa)
    if scale is not None:
        is_finite &= _sign.all_finite(g)
    return _draw(_random.key_words(key), g, norm, is_finite, norm.mantissa > 0)


def scale_by_stochastic_sign(
    key: jax.typing.ArrayLike,
    *,
    axis_name: _workers.AxisName | None,
    scale: Scale | float = Scale(),
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
        of the gradient, for `average_scaled_signs`.

    Returns:
      A transformation whose updates hold -1 and +1 (with `rescale`: -R and +R, and 0 in a leaf
      whose R is 0) in the dtype and shape of the gradient. A zero
      coordinate, also of a leaf that is all zero, is a fair coin. A tree that is all zero gives
      zeros and one with a NaN or infinity gives NaN everywhere: both abstain in the vote.

    Raises:
      ValueError: If the scale is not positive, or an axis is not bound at update.
      TypeError: If a leaf is not of a floating dtype.

    Example:
      >>> tx = signax.scale_by_stochastic_sign(0, axis_name=None)
      >>> updates, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init({"w": jnp.zeros(2)}))
      >>> print(updates["w"][1])
      1.0

    References:
      Safaryan and Richtarik, Stochastic Sign Descent Methods, 2021, arXiv:1905.12938, Definition 3.

      Jin et al., Stochastic-Sign SGD for Federated Learning, 2020, arXiv:2002.10940.
    """
    if not isinstance(scale, Scale) and not isinstance(scale, Tracer) and not scale > 0:
        raise ValueError(f"scale_by_stochastic_sign: scale must be positive, got {scale}.")

    def init(params):
        del params
        return StochasticSignState(jnp.zeros((), jnp.int32), _random.key_words(key))

    def update(updates, state, params=None):
        del params
        _workers.require_bound(axis_name, "scale_by_stochastic_sign")
        _sign.require_real(updates, "scale_by_stochastic_sign")
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
        if not paths_and_leaves:
            return updates, state._replace(count=state.count + 1)
        paths = [jax.tree_util.keystr(path) for path, _ in paths_and_leaves]
        leaves = [jnp.asarray(leaf) for _, leaf in paths_and_leaves]
        norms, is_finite = _scales(leaves, scale, axis_name)
        is_zero = jnp.all(jnp.array([norm.mantissa == 0 for norm in norms]))
        words = _random.link_words(state.key, _TAG, state.count, _workers.worker_index(axis_name))
        leaf_words = _random.leaf_words(words, paths)
        signs = [
            _draw(leaf_words[i], leaf, norms[i], is_finite, ~is_zero)
            for i, leaf in enumerate(leaves)
        ]
        if rescale:
            signs = [s * _value(norm).astype(s.dtype) for s, norm in zip(signs, norms, strict=True)]
        # The count is only an address: it may wrap after 2^32 steps.
        return treedef.unflatten(signs), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _scales(
    leaves: Sequence[jax.Array], scale: Scale | float, axis_name: _workers.AxisName | None
) -> tuple[list[_Norm], jax.Array]:
    """R for each leaf, and whether this worker's gradient is finite."""
    if not isinstance(scale, Scale):
        return [_normalized(jnp.asarray(scale, jnp.float32))] * len(leaves), _sign.all_finite(
            leaves
        )
    groups = [leaves] if scale.scope == "global" else [[leaf] for leaf in leaves]
    norms = [_norm(group, scale.norm) for group in groups]
    if scale.norm == "l2":
        is_finite = jnp.all(jnp.isfinite(jnp.array([norm.mantissa for norm in norms])))
    else:
        is_finite = _sign.all_finite(leaves)  # XLA's maximum loses a NaN in a long array
    if scale.shared and axis_name is not None:
        norms = _shared(norms, is_finite, axis_name)
    return norms * (len(leaves) if scale.scope == "global" else 1), is_finite


def _shared(
    norms: Sequence[_Norm], is_finite: jax.Array, axis_name: _workers.AxisName
) -> list[_Norm]:
    """The largest norm of all workers whose gradient is finite: one pmax for all scales."""
    own = jnp.where(is_finite, jnp.array([_value(norm) for norm in norms]), 0.0)
    return [_normalized(r) for r in jax.lax.pmax(own, axis_name)]


def _norm(leaves: Sequence[jax.Array], norm: Norm) -> _Norm:
    if norm == "linf":
        return _normalized(_largest(leaves))
    squares = _sum_of_squares(leaves, 1.0)
    # Within this range no square that matters has left the range of float32.
    is_safe = (squares > 1e-24) & (squares < 1e36)
    return jax.lax.cond(
        is_safe,
        lambda leaves: _Norm(jnp.sqrt(squares), jnp.ones_like(squares)),
        _scaled_l2_norm,
        leaves,
    )


def _scaled_l2_norm(leaves: Sequence[jax.Array]) -> _Norm:
    unit = _normalized(_largest(leaves)).unit
    return _Norm(jnp.sqrt(_sum_of_squares(leaves, 1.0 / unit)), unit)


def _sum_of_squares(leaves: Sequence[jax.Array], factor: jax.typing.ArrayLike) -> jax.Array:
    return sum(
        (jnp.sum((leaf.astype(jnp.float32) * factor) ** 2) for leaf in leaves),
        start=jnp.zeros((), jnp.float32),
    )


def _largest(leaves: Sequence[jax.Array]) -> jax.Array:
    largest = [jnp.max(jnp.abs(leaf.astype(jnp.float32)), initial=0.0) for leaf in leaves]
    return jnp.max(jnp.array(largest))


def _value(norm: _Norm) -> jax.Array:
    return jnp.minimum(norm.mantissa * norm.unit, jnp.finfo(jnp.float32).max)


def _normalized(r: jax.Array) -> _Norm:
    """A float as mantissa * unit with 1 <= mantissa < 4 and a unit whose inverse is a float32."""
    unit = _sign.power_of_two(r)
    return _Norm(r / unit, unit)


def _draw(
    words: jax.Array, g: jax.Array, norm: _Norm, is_finite: jax.Array, has_scale: jax.Array
) -> jax.Array:
    """One sign per coordinate, whose mean is g / R."""
    mantissa = jnp.where(norm.mantissa > 0, norm.mantissa, 1.0)  # a leaf of zeros: fair coins
    x = g.reshape(-1).astype(jnp.float32) * (1.0 / norm.unit) * (2.0**31 / mantissa)
    sign = sign_of_mean(words, x).reshape(g.shape)
    sign = jnp.where(is_finite, jnp.where(has_scale, sign, 0.0), jnp.nan)
    return sign.astype(g.dtype)


def sign_of_mean(words: jax.Array, x: jax.Array) -> jax.Array:
    """Draws -1 or +1 with mean x / 2^31 by an integer test, P(w < t) = 1/2 + t / 2^32; float32."""
    random = jax.lax.bitcast_convert_type(_random.random_words(words, x.size), jnp.int32)
    threshold = jnp.round(jnp.clip(x, -(2.0**31), _LARGEST_BELOW_1)).astype(jnp.int32)
    is_positive = (random < threshold) | (x >= 2.0**31)  # 2^31 itself is no int32
    return jnp.where(is_positive, 1.0, -1.0)
