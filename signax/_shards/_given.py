"""How the parameters are cut inside each worker, as it was said or as they lie, and checked."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from signax import _workers
from signax._shards import _cut


def cut_of(
    params: Any, mesh: Mesh | AbstractMesh, axes: tuple[str, ...], param_specs: Any = None
) -> _cut.Cut | None:
    """How the parameters are cut over the axes of the mesh that are not the workers'."""
    others = tuple(axis for axis in mesh.axis_names if axis not in axes)
    if not others:
        return None
    if explicit := [axis for axis in others if axis in mesh.explicit_axes]:
        raise ValueError(
            f"signax: the mesh axes {explicit} inside a worker are Explicit, where every line of"
            " the loss must say how its arrays are cut; the step leaves that to the compiler. Make"
            " the mesh with AxisType.Auto, as signax.make_worker_mesh(..., inside=...) does, and"
            " place the parameters with NamedSharding as before."
        )
    if param_specs is None:
        param_specs = jax.tree.map(_spec_as_it_lies, params)
    specs = _cut.specs_by_path(param_specs)
    for path, spec in specs.items():
        if unknown := [axis for axis in _cut.axes_in(spec) if axis not in others]:
            raise ValueError(
                f"signax: the parameter at {path or '(the whole tree)'} is cut as {spec}, over"
                f" {unknown}. The axes inside a worker are {others}; each worker along {axes} needs"
                " the whole parameter, in pieces on its own devices. Place it with"
                " jax.device_put(x, NamedSharding(mesh, spec)) for a spec of these axes, or pass"
                " param_specs=..."
            )
    _require_equal_pieces(params, specs, mesh)
    return _cut.Cut(specs, others)


def _require_equal_pieces(params: Any, specs: Any, mesh: Mesh | AbstractMesh) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        for size, entry in zip(jnp.shape(leaf), specs.get(name, ()), strict=False):
            parts = math.prod(mesh.shape[axis] for axis in _workers.axes_of(entry))
            if size % parts:
                raise ValueError(
                    f"signax: the parameter at {name or '(the whole tree)'} has shape"
                    f" {jnp.shape(leaf)} and is cut as {specs[name]}: {size} coordinates do not"
                    f" make {parts} equal pieces. Cut another of its dimensions, pad it, or leave"
                    " it whole with PartitionSpec()."
                )


def _spec_as_it_lies(x: Any) -> PartitionSpec:
    sharding = getattr(x, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
