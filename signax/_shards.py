"""Which part of each leaf is here? Parameters cut over fast axes inside a host, votes across hosts.

Beside the workers' axes, which vote, a mesh may have *fast* axes over which the leaves are cut
(FSDP, tensor parallelism). Two workers, "hosts", of four "devices" each, and a leaf P("devices"):

    host 0   [w0 | w1 | w2 | w3]        device d of a host packs its own quarter and exchanges it
    host 1   [w0 | w1 | w2 | w3]        with device d of the other hosts; no quarter is gathered

`sharded` tells the links of a chain how the leaves are cut. A link then runs where the shards are:
in a `jax.shard_map` over all axes as it is; where the fast axes are left to the compiler, it opens
a `jax.shard_map` over them for itself (`on_shards`). Inside, what belongs to the whole worker is
agreed over the fast axes: whether it abstains, its norms, where in its leaf a coordinate stands.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from signax import _workers


class Cut(NamedTuple):
    """How the leaves of the parameters are cut."""

    specs: Mapping[str, PartitionSpec]  # by the path of the leaf; a path that is missing is whole
    axes: tuple[str, ...]  # the fast axes, in the order of the mesh


class Shard(NamedTuple):
    """How one leaf is cut."""

    axes_of_dims: tuple[tuple[str, ...], ...]  # for each dimension, from the slowest axis
    copies: tuple[str, ...]  # the fast axes over which the leaf is not cut: one copy on each

    @property
    def is_whole(self) -> bool:
        return not any(self.axes_of_dims)


Shards = Sequence[Shard] | None  # one for each leaf; None: every leaf is here as a whole

_current: contextvars.ContextVar[Cut | None] = contextvars.ContextVar("cut", default=None)


def sharded(
    tx: optax.GradientTransformation, param_specs: Any
) -> optax.GradientTransformationExtraArgs:
    """Tells a chain how the parameters are cut over the fast axes inside each worker.

    With workers that are hosts of several devices, each device packs and exchanges only its own
    shard with its peers on the other hosts, and the result is that of as many workers whose
    parameters are not cut: votes bit for bit, stochastic signs too where the scale R is the same.
    `make_train_step` does this by itself; the wrapper is for your own `jax.shard_map`, over all
    axes of the mesh or over the workers' axes only (`axis_names={"hosts"}`), where the compiler
    cuts the rest.

    Args:
      tx: Any chain. Its network links name the workers' axes only.
      param_specs: A tree like the parameters, of `PartitionSpec` or `NamedSharding`; None is
        `PartitionSpec()`, a leaf that every device of a worker holds as a whole.

    Returns:
      The transformation, with the same state. Where none of the axes in `param_specs` is bound or
      left to the compiler, as under `jax.vmap` over simulated workers, it is `tx` itself. Memory
      of a leaf is cut as the leaf is. A NaN in one shard makes the whole worker abstain. Empty
      trees pass.

    Raises:
      TypeError: If `param_specs` holds anything else.
      ValueError: At update, if a link cannot work on shards: scales of blocks of coordinates
        (`Scale(scope=N)`), and `signax.baselines`.

    Example:
      >>> tx = signax.sharded(signax.sign_sgd(0.5, axis_name="hosts"), {"w": jax.P("devices")})
      >>> mesh = signax.make_worker_mesh(1, "hosts", inside={"devices": 2})
      >>> step = lambda g: tx.update(g, tx.init(g))[0]
      >>> specs = {"w": jax.P("devices")}
      >>> gradients = {"w": jnp.array([3.0, -4.0])}
      >>> on_device = lambda g: step(signax.as_varying(g, "hosts"))
      >>> mapped = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=specs)
      >>> print(jax.jit(mapped)(gradients)["w"])
      [-0.5  0.5]
    """
    tx = optax.with_extra_args_support(tx)
    specs = specs_by_path(param_specs)
    cut = Cut(specs, tuple(dict.fromkeys(a for spec in specs.values() for a in axes_in(spec))))

    def init(params):
        with cut_as(cut):
            return tx.init(params)

    def update(updates, state, params=None, **extra_args):
        with cut_as(cut):
            return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def specs_by_path(param_specs: Any) -> dict[str, PartitionSpec]:
    """The specs in a tree of `PartitionSpec`, `NamedSharding` or None, by the paths of leaves."""
    is_leaf = lambda x: x is None or isinstance(x, PartitionSpec)  # noqa: E731
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_specs, is_leaf=is_leaf):
        spec = PartitionSpec() if leaf is None else getattr(leaf, "spec", leaf)
        name = jax.tree_util.keystr(path)
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"param_specs at {name or '(the whole tree)'} is {leaf!r}. It must say how the"
                ' leaf is cut over the mesh: a jax.sharding.PartitionSpec such as P("devices"), a'
                " NamedSharding, or None for a leaf that is not cut."
            )
        found[name] = spec
    return found


@contextlib.contextmanager
def cut_as(cut: Cut | None) -> Iterator[None]:
    """What is traced inside takes the leaves to be cut so."""
    token = _current.set(cut)
    try:
        yield
    finally:
        _current.reset(token)


def axes_in(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that a spec names."""
    return tuple(str(axis) for entry in spec for axis in _workers.axes_of(entry))


def fast_axes() -> tuple[str, ...]:
    """The fast axes over which what is traced here sees one shard only; () if it sees all."""
    cut = _current.get()
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in cut.axes if axis in manual) if cut else ()


def is_left_to_the_compiler(x: jax.Array) -> bool:
    """Whether `x` is whole in this program, and may be in pieces on the devices."""
    if _workers.is_explicitly_sharded(x):
        return True
    return _current.get() is not None and bool(jax.sharding.get_abstract_mesh().auto_axes)


def on_shards(update: Callable) -> Callable:
    """`update(updates, state, params=None)` of a link, made to run where the shards are."""

    @functools.wraps(update)
    def on_leaves(updates, state, params=None):
        del params
        mesh = jax.sharding.get_abstract_mesh()
        left = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
        cut = _cut_here(updates, left)
        if not mesh.manual_axes or cut is None:
            _require_known(mesh, left)
            return _workers.in_auto_mode(update)(updates, state)
        specs = specs_of(cut, updates)
        state_specs = specs_like(cut, updates, state)
        is_tracked = bool(_workers.tracked_axes(mesh.manual_axes))

        def on_shard(updates, state):
            with cut_as(cut):
                return update(updates, state)

        return jax.shard_map(
            on_shard,
            in_specs=(specs, state_specs),
            out_specs=(specs, state_specs),
            axis_names={*left},
            check_vma=is_tracked,
        )(updates, state)

    return on_leaves


def _cut_here(updates: Any, left: tuple[str, ...]) -> Cut | None:
    """How `updates` are cut over the axes that no mapping around binds, if that is known."""
    cut, paths_and_leaves = _current.get(), jax.tree_util.tree_leaves_with_path(updates)
    if any(_workers.is_explicitly_sharded(x) for _, x in paths_and_leaves):
        specs = {jax.tree_util.keystr(p): jax.typeof(x).sharding.spec for p, x in paths_and_leaves}
        return Cut(specs, left)
    return Cut(cut.specs, left) if cut and left else None


def specs_of(cut: Cut, params: Any) -> Any:
    """How each leaf of a tree like the parameters is cut."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _spec_at(cut, path), params)


def _require_known(mesh: Any, left: tuple[str, ...]) -> None:
    """Refuses to pack leaves of which only the compiler knows where their pieces are."""
    if mesh.manual_axes and any(mesh.shape[axis] > 1 for axis in left):
        raise ValueError(
            f"the mesh axes {left} are left to the compiler, and this chain does not know how the"
            " parameters are cut over them: every device would gather the whole model and send all"
            " of it. Write tx = signax.sharded(tx, param_specs) with the PartitionSpec of each"
            " parameter, P() for one that is not cut, or use signax.make_train_step(...,"
            " axis_names=...), which does."
        )


def specs_like(cut: Cut, params: Any, state: Any) -> Any:
    """How a state is cut: what is like a parameter as that is, the servers' memory by device.

    A leaf of the state is like a parameter if its path ends in the parameter's and their shapes are
    the same, as those of momenta and residuals.
    """
    shapes = {jax.tree_util.keystr(p): jnp.shape(x) for p, x in _leaves_with_path(params)}

    def spec_of(path, leaf):
        name = jax.tree_util.keystr(path)
        if name.endswith(".server_residual"):
            return PartitionSpec(cut.axes)
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return PartitionSpec()
        like = [p for p in shapes if name.endswith(p) and shapes[p] == jnp.shape(leaf)]
        return cut.specs.get(max(like, key=len), PartitionSpec()) if like else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec_of, state)


def shards_of(tree: Any) -> Shards:
    """How the leaves of a tree are cut where only one shard of each is here; else None."""
    axes, cut = fast_axes(), _current.get()
    if not axes or cut is None:
        return None
    return [_shard(_spec_at(cut, path), jnp.ndim(x), axes) for path, x in _leaves_with_path(tree)]


def _shard(spec: PartitionSpec, ndim: int, axes: tuple[str, ...]) -> Shard:
    dims = [tuple(str(a) for a in _workers.axes_of(entry) if a in axes) for entry in spec]
    named = {axis for dim in dims for axis in dim}
    dims += [()] * (ndim - len(dims))
    return Shard(tuple(dims), tuple(axis for axis in axes if axis not in named))


def local_sizes(tree: Any) -> tuple[list[int], int]:
    """The coordinates of each leaf that one device holds; on how many devices `tree` lies."""
    mesh, cut = jax.sharding.get_abstract_mesh(), _current.get()
    sizes = [jnp.size(x) for x in jax.tree.leaves(tree)]
    left = [axis for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if cut is None or not left:
        return sizes, 1
    parts = [
        math.prod(mesh.shape[axis] for axis in axes_in(_spec_at(cut, path)))
        for path, _ in _leaves_with_path(tree)
    ]
    here = [size // part for size, part in zip(sizes, parts, strict=True)]
    return here, math.prod(mesh.shape[axis] for axis in left)


def whole_shape(leaf: jax.Array, shard: Shard) -> tuple[int, ...]:
    """The shape of the leaf of which `leaf` is one shard."""
    return tuple(
        size * _workers.num_workers(axes)
        for size, axes in zip(leaf.shape, shard.axes_of_dims, strict=True)
    )


def positions(leaf: jax.Array, shard: Shard | None) -> jax.Array:
    """Where in its whole leaf each coordinate stands, in C order: uint32[leaf.size]."""
    if shard is None or shard.is_whole:
        return jax.lax.iota(jnp.uint32, leaf.size)
    whole, position = whole_shape(leaf, shard), jnp.zeros((), jnp.uint32)
    for dim, axes in enumerate(shard.axes_of_dims):
        index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
        first = _workers.worker_index(axes).astype(jnp.uint32) * jnp.uint32(leaf.shape[dim])
        position += (index + first) * jnp.uint32(math.prod(whole[dim + 1 :]) % 2**32)
    return position.reshape(-1)


def all_of(*flags: jax.Array) -> tuple[jax.Array, ...]:
    """Whether each flag is set on all shards of this worker: one reduction of a few bytes."""
    axes = fast_axes()
    if not axes:
        return flags
    flags_here = jnp.stack(flags).astype(jnp.int32)
    agreed = jax.lax.pmin(_workers.as_varying(flags_here, axes), axes) > 0
    return tuple(agreed[i] for i in range(len(flags)))


def largest(values: jax.Array) -> jax.Array:
    """Each value's maximum over the shards of this worker; what is the same, typed as the same."""
    axes = fast_axes()
    return jax.lax.pmax(_workers.as_varying(values, axes), axes) if axes else values


def totals(values: jax.Array, shards: Sequence[Shard]) -> jax.Array:
    """Sums over the shards of each leaf, float32[L]; of a leaf with copies, over one of them."""
    is_first = [_workers.worker_index(shard.copies) == 0 for shard in shards]
    counted = jnp.where(jnp.array(is_first), values, 0.0)
    axes = fast_axes()
    return jax.lax.psum(_workers.as_varying(counted, axes), axes)


def as_copies(tree: Any, shards: Shards) -> Any:
    """Types the leaves that have copies inside a worker as equal on all of them, which they are."""
    if shards is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)

    def same(x, shard):
        axes = tuple(axis for axis in shard.copies if axis in _workers.varying_axes(x))
        return jax.lax.pmax(x, axes) if axes else x

    return treedef.unflatten([same(x, shard) for x, shard in zip(leaves, shards, strict=True)])


def require_whole(updates: Any, function: str, instead: str) -> None:
    """Raises a `ValueError` where a leaf is cut: this link works on whole leaves only."""
    for (path, _), shard in zip(_leaves_with_path(updates), shards_of(updates) or (), strict=False):
        if not shard.is_whole:
            raise ValueError(
                f"signax.{function}: the leaf {jax.tree_util.keystr(path) or '(the whole tree)'} is"
                f" cut over {axes_in(PartitionSpec(*shard.axes_of_dims))} inside each worker, and"
                f" this works on whole leaves only. {instead}"
            )


def _spec_at(cut: Cut, path: Any) -> PartitionSpec:
    return cut.specs.get(jax.tree_util.keystr(path), PartitionSpec())


def _leaves_with_path(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
