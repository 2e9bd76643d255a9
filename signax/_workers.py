"""Who are the workers? Axis names, worker indices, and the types that say what differs.

Everything in signax is written against an axis name that some mapping binds: `jax.shard_map`,
`jax.vmap(axis_name=...)` or `jax.pmap`. Inside `jax.shard_map` (with its default `check_vma=True`)
JAX also *types* each value by the axes over which it differs: a worker's gradient varies over
`"workers"`, a parameter does not. The other mappings track nothing. This file is the only one that
reads those types.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

AxisName = Hashable | tuple[Hashable, ...]


def axes_of(axis_name: AxisName | None) -> tuple[Hashable, ...]:
    """The axis names as a tuple: `()` for one worker without a network."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def num_workers(axis_name: AxisName | None) -> int:
    """M: the product of the sizes of the bound axes, 1 for `axis_name=None`."""
    size = 1
    for axis in axes_of(axis_name):
        size *= jax.lax.axis_size(axis)
    return size


def worker_index(axis_name: AxisName | None) -> jax.Array:
    """This worker's number, 0 to M-1, row-major over a tuple of axes."""
    axes = axes_of(axis_name)
    return jax.lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32)


def require_bound(axis_name: AxisName | None, link: str) -> None:
    """Raises a `ValueError` unless every axis of `axis_name` is bound where `link` runs."""
    if isinstance(axis_name, (list, set)):
        raise TypeError(
            f"signax.{link}: axis_name must be a name or a tuple of names, got {axis_name!r}. Write"
            f" axis_name={tuple(axis_name)!r}."
        )
    for axis in axes_of(axis_name):
        try:
            jax.lax.axis_size(axis)
        except NameError as error:
            raise ValueError(
                f"signax.{link}: no axis named {axis!r} is bound here. The link exchanges signs"
                " between the workers along that axis, so `update` must run inside the mapping"
                f" that binds it: jax.shard_map over a mesh with an axis {axis!r}, jax.vmap(...,"
                f" axis_name={axis!r}) or signax.make_train_step. Check the spelling, or write"
                " axis_name=None for one worker without a network."
            ) from error


def varying_axes(x: Any) -> frozenset[Hashable]:
    """The axes over which `x` is typed as differing (empty wherever JAX tracks no types)."""
    return jax.typeof(x).manual_axis_type.varying


def tracked_axes(axis_name: AxisName | None) -> frozenset[Hashable]:
    """Those of the bound axes whose variation JAX tracks here: a worker index must vary."""
    return frozenset(a for a in axes_of(axis_name) if a in varying_axes(jax.lax.axis_index(a)))


def is_explicitly_sharded(x: Any) -> bool:
    """Whether JAX types `x` as cut over a mesh axis in Explicit mode."""
    return bool(jax.typeof(x).sharding.mesh.explicit_axes)


def in_auto_mode(update: Callable) -> Callable:
    """`update(updates, state, params=None)` where leaves may be sharded over Explicit mesh axes.

    A leaf is flattened to be packed, and in Explicit mode JAX asks for the sharding of every such
    step. So the compiler chooses it, and what leaves is laid out as what came in.
    """

    @functools.wraps(update)
    def on_leaves(updates, state, params=None):
        del params
        meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(updates)]
        explicit = [mesh for mesh in meshes if mesh.explicit_axes]
        if not explicit:
            return update(updates, state)
        shardings = jax.tree.map(
            lambda x: NamedSharding(explicit[0], jax.typeof(x).sharding.spec), (updates, state)
        )
        return jax.sharding.auto_axes(update, out_sharding=shardings)(updates, state)  # pyright: ignore[reportCallIssue]

    return on_leaves


def as_varying(params: Any, axis_name: AxisName) -> Any:
    r"""Marks `params` as differing between workers, so that gradients at them stay local.

    Inside `jax.shard_map`, the gradient at *replicated* parameters is summed over the axis before
    you see it: every worker then holds the same gradient and casts the same vote, silently.
    Differentiate at `as_varying(params, axis_name)` and each worker gets the gradient of its own
    loss:

    $$ g_n = \nabla f_n(x), \qquad \text{not} \qquad \sum_n \nabla f_n(x). $$

    The values do not change. Under `jax.vmap`, `jax.pmap` and `shard_map(check_vma=False)`, where
    nothing is tracked and gradients are local anyway, this is the identity.

    Args:
      params: A tree of arrays, of any shapes and dtypes. An empty tree passes.
      axis_name: The workers' axis, or a tuple of axes.

    Returns:
      The same tree, typed as varying over the axis.

    Raises:
      ValueError: If an axis is not bound here.

    Example:
      >>> import jax, jax.numpy as jnp, signax
      >>> def local_gradient(x, target):
      ...   loss = lambda x: jnp.sum((x - target) ** 2) / 2
      ...   return jax.grad(loss)(signax.as_varying(x, "workers"))
      >>> gradient = jax.vmap(local_gradient, in_axes=(None, 0), axis_name="workers")
      >>> print(gradient(jnp.zeros(()), jnp.array([1.0, -3.0])))
      [-1.  3.]

    References:
      JAX documentation, "Manual parallelism with shard_map", section on varying types.
    """
    require_bound(axis_name, "as_varying")
    tracked = tracked_axes(axis_name)

    def mark(x):
        missing = tuple(a for a in axes_of(axis_name) if a in tracked - varying_axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, params)


class NotVaryingError(ValueError):
    """A link was given what JAX types as the same on every worker."""


def require_varying(updates: Any, axis_name: AxisName | None, link: str) -> None:
    """Raises a `NotVaryingError` if a leaf of `updates` is typed as equal on all workers."""
    tracked = tracked_axes(axis_name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        if jnp.size(leaf) and tracked - varying_axes(leaf):
            name = jax.tree_util.keystr(path) or "(the whole tree)"
            raise NotVaryingError(
                f"signax.{link} over the axis {axis_name!r} was given an update that is the same on"
                f" every worker (leaf {name}), so every worker would cast the same vote."
                f" {_cure(repr(axis_name))} (A leaf that is constant on purpose, such as the zeros"
                " of a frozen parameter, does not belong in the vote: see signax.freeze.)"
            )


def require_own(updates: Any, axes: frozenset[Hashable], link: str) -> None:
    """Raises a `NotVaryingError` if `updates` varies over none of these axes in any leaf.

    For what stands before the network and makes its output vary, by a memory or by coins: behind
    it nobody sees any more that the workers were given the same gradient.
    """
    leaves = jax.tree.leaves(updates)
    if axes and leaves and not any(axes & varying_axes(leaf) for leaf in leaves):
        axis = ", ".join(sorted(map(repr, axes)))
        raise NotVaryingError(
            f"signax.{link} was given an update that is the same on every worker of the axis"
            f" {axis}, though each worker has a memory or coins of its own here: the method would"
            f" no longer be the one that was asked for, and no error would say so. {_cure(axis)}"
        )


def _cure(axis: str) -> str:
    return (
        "Inside jax.shard_map, jax.grad at replicated parameters returns the gradient already"
        f" summed over the axis. Differentiate at signax.as_varying(params, {axis}), or use"
        f" signax.local_value_and_grad(loss_fn, {axis}) in place of jax.value_and_grad, and do not"
        " psum or pmean the gradient yourself."
    )


def axes_of_memory(state: Any) -> frozenset[Hashable]:
    """The axes over which any leaf of a state is typed as differing."""
    return frozenset().union(*map(varying_axes, jax.tree.leaves(state)))
