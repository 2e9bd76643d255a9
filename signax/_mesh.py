"""The mesh of the workers: made from devices, or without any for simulated workers."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from signax import _choices, _workers

AnyMesh = Mesh | AbstractMesh | int  # a number is that of simulated workers


def make_worker_mesh(
    num_workers: int | None = None,
    axis_name: str = "workers",
    *,
    inside: Mapping[str, int] | None = None,
) -> Mesh:
    """Makes a mesh of workers, each of one device or of several.

    Args:
      num_workers: M; None is all that the devices suffice for. Fewer takes the first devices.
      axis_name: The name of the workers' axis.
      inside: The axes inside a worker and their sizes, such as `{"devices": 4}` for hosts of four
        devices over which the parameters are cut. None: a worker is one device.

    Returns:
      A `jax.sharding.Mesh` with the workers' axis first. The devices of a worker are neighbours in
      `jax.devices()`, so those of one process.

    Raises:
      ValueError: If there are fewer devices than needed, or a size is not an integer of at least 1.

    Example:
      >>> mesh = signax.make_worker_mesh(2)
      >>> mesh.shape["workers"]
      2
      >>> signax.make_worker_mesh(2, "hosts", inside={"devices": 4}).axis_names
      ('hosts', 'devices')
    """
    devices = jax.devices()
    inside = {axis: _size(n, f"inside[{axis!r}]") for axis, n in (inside or {}).items()}
    each = math.prod(inside.values())
    num_workers = len(devices) // each if num_workers is None else _size(num_workers, "num_workers")
    needed = num_workers * each
    if not 1 <= needed <= len(devices):
        of_devices = f" of {each} devices each" if inside else ""
        raise ValueError(
            f"signax.make_worker_mesh: {num_workers} workers{of_devices} need as many devices, and"
            f" JAX sees {len(devices)} ({devices[0].platform}). For CPU workers write"
            f' jax.config.update("jax_num_cpu_devices", {max(needed, each)}) before JAX is first'
            " used; for more workers than devices use signax.simulate_train_step."
        )
    names = (axis_name, *inside)
    types = (AxisType.Auto,) * len(names)
    return jax.make_mesh((num_workers, *inside.values()), names, types, devices=devices[:needed])


def _size(value: Any, argument: str) -> int:
    what = "It is how many the mesh has along this axis."
    return _choices.require_positive_integer(value, "make_worker_mesh", argument, what)


def as_mesh(mesh: AnyMesh, axis_name: str = "workers") -> Mesh | AbstractMesh:
    """The mesh itself, or one without devices for M simulated workers."""
    if isinstance(mesh, (Mesh, AbstractMesh)):
        return mesh
    if isinstance(mesh, bool) or not isinstance(mesh, (int, np.integer)) or mesh < 1:
        raise ValueError(
            "signax: the workers are a jax.sharding.Mesh (signax.make_worker_mesh) or, simulated,"
            f" their number, at least 1: got {mesh!r}."
        )
    return AbstractMesh((int(mesh),), (axis_name,), axis_types=(AxisType.Auto,))


def require_devices(mesh: Any) -> None:
    """Raises a `TypeError` for a number of workers where only a mesh will do."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"signax.make_train_step: mesh must be a jax.sharding.Mesh (signax.make_worker_mesh),"
            f" got {mesh!r}. For simulated workers on one device write"
            " signax.simulate_train_step(loss_fn, tx, num_workers)."
        )


def require_axes(axis_names: Any, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The workers' axes as a tuple: all of the mesh for None."""
    axes = mesh.axis_names if axis_names is None else _workers.axes_of(axis_names)
    unknown = [axis for axis in axes if axis not in mesh.axis_names]
    if unknown or not axes:
        raise ValueError(
            f"signax: axis_names={axis_names!r}: the mesh has the axes {mesh.axis_names}"
            + (f" and no {unknown}." if axes else ", and at least one must be the workers'.")
        )
    return tuple(map(str, axes))
