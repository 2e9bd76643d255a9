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
import math
from collections.abc import Iterator, Mapping
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
      >>> mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(specs,), out_specs=specs)
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
                f"signax: param_specs at {name or '(the whole tree)'} is {leaf!r}. It must say how"
                ' the leaf is cut over the mesh: a jax.sharding.PartitionSpec such as P("devices"),'
                " a NamedSharding, or None for a leaf that is not cut."
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


def specs_of(cut: Cut, params: Any) -> Any:
    """How each leaf of a tree like the parameters is cut."""
    return jax.tree_util.tree_map_with_path(lambda path, _: spec_at(cut, path), params)


def specs_like(cut: Cut, params: Any, state: Any) -> Any:
    """How a state is cut: what is like a parameter as that is, the servers' memory by device.

    A leaf of the state is like a parameter if its path ends in the parameter's and their shapes are
    the same, as those of momenta and residuals.
    """
    shapes = {
        jax.tree_util.keystr(p): jnp.shape(x)
        for p, x in jax.tree_util.tree_leaves_with_path(params)
    }

    def spec_of(path, leaf):
        ends = [jax.tree_util.keystr(path[i:]) for i in range(len(path) + 1)]
        if ".server_residual" in ends:
            return PartitionSpec(cut.axes)
        is_memory = jnp.issubdtype(leaf.dtype, jnp.inexact)
        like = [end for end in ends if is_memory and shapes.get(end) == jnp.shape(leaf)]
        return cut.specs.get(like[0], PartitionSpec()) if like else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec_of, state)


def current() -> Cut | None:
    """How the leaves of what is traced here are cut, if a chain was told."""
    return _current.get()


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


def local_sizes(tree: Any) -> tuple[list[int], int]:
    """The coordinates of each leaf that one device holds; on how many devices `tree` lies."""
    mesh, cut = jax.sharding.get_abstract_mesh(), _current.get()
    sizes = [jnp.size(x) for x in jax.tree.leaves(tree)]
    left = [axis for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if cut is None or not left:
        return sizes, 1
    parts = [
        math.prod(mesh.shape[axis] for axis in axes_in(spec_at(cut, path)))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    here = [size // part for size, part in zip(sizes, parts, strict=True)]
    return here, math.prod(mesh.shape[axis] for axis in left)


def spec_at(cut: Cut, path: Any) -> PartitionSpec:
    return cut.specs.get(jax.tree_util.keystr(path), PartitionSpec())
