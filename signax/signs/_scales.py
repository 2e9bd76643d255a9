r"""How large is R, the scale of a stochastic sign: by which norm, over what, shared with whom.

Sources: Safaryan and Richtarik, "Stochastic Sign Descent Methods", ICML 2021, arXiv:1905.12938,
Definition 3 (l2, global); Yu et al., "StoSignSGD", 2026, arXiv:2604.15416 (the running maximum).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from signax import _choices, _workers
from signax._shards import _whole
from signax.signs import _norms, _sign


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
    | linf, 256      | largest of each 256 coordinates    | 0.3 in every block              |

    With `shared=False` each worker uses the norm of its own gradient, as in the paper: the sum of
    signs then ignores how large the workers' gradients are, and with heterogeneous workers it is
    not an estimate of their mean. With `shared=True` R is the largest of the workers' norms (one
    `pmax` of 32 bits per scale and step), and (R/M) times the sum of signs is an unbiased estimate
    of the mean gradient, however different the workers are.

    Attributes:
      norm: "l2" or "linf".
      scope: "global", one R for the whole tree; "leaf", one for each leaf; or a number N, one for
        each block of N coordinates of a leaf, in C order (the last block may be shorter).
      shared: Whether all workers use the largest of their norms.
      running: Whether R is the largest norm so far (StoSignSGD, Yu et al. 2026, arXiv:2604.15416):
        it never falls, so the step size follows the gradient down; scope=1, the maximum of each
        coordinate, is the paper's. The maximum is the worker's own, or with `shared` the largest
        of all workers.
      share_every: k, for a running maximum that is not `shared`: at the steps 0, k, 2k, ... every
        worker takes over the largest maximum of all (one `pmax`); in between it may only raise its
        own. At most those whose gradients grew since then differ from the others, and 1/k of the
        steps wait for a collective. None: the maxima are never shared.

    Raises:
      ValueError: For an unknown norm or scope, blocks of less than one coordinate, or a
        `share_every` that is no integer of at least 1 or has no own running maximum to share.

    Example:
      >>> signax.Scale("linf", "leaf", running=True, share_every=10)
      Scale(norm='linf', scope='leaf', shared=False, running=True, share_every=10)
    """

    norm: _norms.Norm = "l2"
    scope: _sign.Scope | int = "global"
    shared: bool = False
    running: bool = False
    share_every: int | None = None

    def __post_init__(self):
        _choices.require(self.norm, _norms.Norm, "Scale", "norm")
        block = _choices.as_integer(self.scope)
        if block is not None and block >= 1:
            object.__setattr__(self, "scope", block)  # of Python: it decides on shapes
        elif self.scope not in (words := get_args(_sign.Scope)):
            raise ValueError(
                f"signax.Scale: unknown scope {self.scope!r}; choose one of {words}, or a number of"
                " coordinates that share one R."
            )
        if self.share_every is not None:
            self._check_share_every()

    def _check_share_every(self):
        every = _choices.require_positive_integer(
            self.share_every,
            "Scale",
            "share_every",
            "It is the number of steps from one pmax of the running maxima to the next; None is"
            " never.",
        )
        object.__setattr__(self, "share_every", every)
        if not self.running or self.shared:
            raise ValueError(
                "signax.Scale: share_every says how often workers share their own running maxima,"
                f" so it needs running=True and shared=False, got running={self.running} and"
                f" shared={self.shared}. With shared=True R is shared at every step."
            )


class Scales(NamedTuple):
    """The R of one worker's gradient."""

    # all in one, [1] or [leaves]; or in blocks one for each leaf, [blocks]
    norms: list[_norms.Norms]
    is_finite: jax.Array  # bool[]: whether the gradient is, and a fixed scale can be an R
    largest: jax.Array | None  # float32[number of scales]: the largest so far, if it is kept


def find(
    leaves: Sequence[jax.Array],
    scale: Scale | float,
    largest: jax.Array | None,
    axis_name: _workers.AxisName | None,
    step: jax.Array,
    shards: _whole.Shards = None,
) -> Scales:
    """R for all leaves (`per_leaf`), and whether this worker's gradient is finite."""
    if not isinstance(scale, Scale):
        fixed = _norms.normalized(jnp.asarray(scale, jnp.float32)[None])
        is_finite = _sign.all_finite(leaves) & is_usable(fixed)[0]
        return Scales([fixed], is_finite, None)
    groups = [leaves] if scale.scope == "global" else [[leaf] for leaf in leaves]
    if shards is not None:
        norms = [_norms_of_shards(leaves, shards, scale)]
    elif isinstance(scale.scope, int):
        norms = [_block_norms(leaf, scale.norm, scale.scope) for leaf in leaves]
    else:
        norms = [_norms.norms_of(groups, scale.norm)]
    is_finite = ~_sign.any_of([jnp.any(~jnp.isfinite(norm.mantissa)) for norm in norms])
    if scale.running or (scale.shared and axis_name is not None):
        own = _largest_so_far(norms, is_finite, largest)
        found = _shared(own, scale, axis_name, step)
        norms = _as_norms(found, norms)
        largest = found if scale.running else None
    return Scales(norms, is_finite, largest)


def per_leaf(values: Sequence[jax.Array], scale: Scale | float, num_leaves: int) -> list[jax.Array]:
    """What belongs to the norms of `find`, for each leaf: a scalar, or in blocks a vector."""
    if block_of(scale) is not None:
        return list(values)
    (value,) = values
    is_own = isinstance(scale, Scale) and scale.scope == "leaf"
    return [value[i if is_own else 0] for i in range(num_leaves)]


def block_of(scale: Scale | float) -> int | None:
    """How many coordinates in a row share one R; None where all of a leaf do."""
    if isinstance(scale, Scale) and isinstance(scale.scope, int):
        return scale.scope
    return None


def at_coordinates(x: jax.Array, block: int | None, size: int) -> jax.Array:
    """What belongs to each R of a leaf, at each coordinate: float32[size], or [] for one R."""
    if block is None:
        return x
    return jnp.broadcast_to(x[:, None], (x.size, block)).reshape(-1)[:size]


def num_scales(leaves: Sequence[jax.Array], scale: Scale) -> int:
    """How many scales there are: one, one per leaf, or one per block."""
    if isinstance(scale.scope, int):
        return sum(-(-jnp.size(leaf) // scale.scope) for leaf in leaves)
    return 1 if scale.scope == "global" else len(leaves)


def is_usable(norm: _norms.Norms) -> jax.Array:
    """Whether a number can be an R, as a traced one need not: 0 or positive, and finite."""
    return jnp.isfinite(norm.mantissa) & (norm.mantissa >= 0)


def _largest_so_far(
    norms: Sequence[_norms.Norms], is_finite: jax.Array, largest: jax.Array | None
) -> jax.Array:
    """This worker's norms, float32[number of scales]; one that abstains has nothing to add."""
    own = jnp.concatenate([_norms.value(norm) for norm in norms])
    own = jnp.where(is_finite, own, 0.0)
    return own if largest is None else jnp.maximum(own, largest)


def _shared(
    own: jax.Array, scale: Scale, axis_name: _workers.AxisName | None, step: jax.Array
) -> jax.Array:
    """The largest norms of all workers where they are shared at this step: at most one pmax."""
    if axis_name is None:
        return own
    own = _workers.as_varying(own, axis_name)
    if scale.shared:
        return jax.lax.pmax(own, axis_name)
    if scale.share_every is None:
        return own
    # The step is the same on all workers, so all of them meet in the pmax or none does.
    return jax.lax.cond(
        step % scale.share_every == 0,
        lambda own: _workers.as_varying(jax.lax.pmax(own, axis_name), axis_name),
        lambda own: own,
        own,
    )


def _as_norms(found: jax.Array, norms: Sequence[_norms.Norms]) -> list[_norms.Norms]:
    """One vector of norms cut as the norms were."""
    starts = np.cumsum([norm.unit.size for norm in norms])[:-1]
    return list(map(_norms.normalized, jnp.split(found, starts)))


def _block_norms(leaf: jax.Array, norm: _norms.Norm, block: int) -> _norms.Norms:
    """One norm for each block of coordinates, float32[ceil(d / block)]."""
    g, whole = leaf.reshape(-1), leaf.size - leaf.size % block
    if block == 1:  # a coordinate is its own norm, for which XLA would reduce over nothing
        return _norms.normalized(jnp.abs(g.astype(jnp.float32)))
    rows = [g[:whole].reshape(-1, block)]
    if whole < g.size:  # apart, for a whole leaf that is padded XLA writes out
        rows.append(jnp.pad(g[whole:], (0, -g.size % block)).reshape(1, block))
    norms = [jax.vmap(lambda row: _norms.norm_of([row], norm))(some) for some in rows]
    return _norms.Norms(*map(jnp.concatenate, zip(*norms, strict=True)))


def _norms_of_shards(
    leaves: Sequence[jax.Array], shards: Sequence[_whole.Shard], scale: Scale
) -> _norms.Norms:
    """The norms of the whole leaves of which these are shards: two reductions of L floats."""
    if isinstance(scale.scope, int):
        raise ValueError(
            f"signax.Scale(scope={scale.scope}): blocks of {scale.scope} coordinates of a leaf do"
            " not follow the shards that the leaf is cut into over the fast axes of the mesh, so"
            ' one block\'s R would lie on two devices. Write scope="leaf" (with norm="linf", it'
            ' carries nearly as much) or scope="global".'
        )
    here = _norms.norms_of([[leaf] for leaf in leaves], scale.norm)
    largest = _whole.largest(_norms.value(here))
    if scale.scope == "global":
        largest = jnp.max(largest, keepdims=True)
    norms = _norms.normalized(largest)
    if scale.norm == "linf":
        (is_finite,) = _whole.all_of(jnp.all(jnp.isfinite(here.mantissa)))
        return _norms.Norms(jnp.where(is_finite, norms.mantissa, jnp.nan), norms.unit)
    squares = _whole.totals((here.mantissa * (here.unit / norms.unit)) ** 2, shards)
    if scale.scope == "global":
        squares = jnp.sum(squares, keepdims=True)
    return _norms.Norms(jnp.sqrt(squares), norms.unit)
