"""The devices that play the workers."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from signax.experiments import cluster
from signax.experiments.errors import UsageError

AXIS_NAME = "workers"
INSIDE = "devices"  # of one worker
_DEFAULT_NUM_WORKERS = 8


def make_mesh(num_workers: int | None, devices_per_worker: int = 1) -> Mesh:
    """Returns a mesh of M accelerators if there are that many, else of M CPU devices.

    Of N processes each has M/N of the workers, on its first devices, in the order of the processes.
    CPU devices are made on the spot, which only works before JAX is first used.

    Args:
      num_workers: M. None: all accelerators if there are two or more, else eight CPU devices; of
        processes that a launcher started, one CPU device each.
      devices_per_worker: above 1 each worker has so many devices, on a second axis of the mesh,
        over which its parameters are cut.
    """
    if num_workers is not None and num_workers < 1:
        raise UsageError(f"config.num_workers={num_workers}: there must be at least one worker.")
    make_cpu_devices(num_workers, devices_per_worker)
    num_processes = jax.process_count()
    accelerators = [device for device in jax.devices() if device.platform != "cpu"]
    if num_workers is None:
        is_on_its_own = num_processes == 1 and not cluster.is_launched()
        alone = _DEFAULT_NUM_WORKERS if is_on_its_own else num_processes
        all_devices = len(accelerators) if len(accelerators) > 1 else alone
        num_workers = max(1, all_devices // devices_per_worker)
    _require_divisible(num_workers, num_processes)
    num_devices = num_workers * devices_per_worker
    shape, names = (num_workers,), (AXIS_NAME,)
    if devices_per_worker > 1:
        shape, names = (num_workers, devices_per_worker), (AXIS_NAME, INSIDE)
    for devices in (accelerators, jax.devices("cpu")):
        chosen = _of_each_process(devices, num_devices // num_processes)
        if len(chosen) == num_devices:
            types = (AxisType.Auto,) * len(shape)
            return Mesh(np.array(chosen).reshape(shape), names, axis_types=types)
    raise _too_few_devices(num_workers, devices_per_worker, num_processes)


def make_cpu_devices(num_workers: int | None, devices_per_worker: int = 1) -> None:
    """Makes this process's share of the CPU devices; before JAX is first used, else nothing."""
    num_workers = num_workers and num_workers * devices_per_worker
    num_processes = cluster.num_processes()
    if num_processes == 1:
        # At least the default: the next run of this process may want more than this one.
        count = max(num_workers or 0, _DEFAULT_NUM_WORKERS)
    else:
        count = max(1, (num_workers or 1) // (num_processes or num_workers or 1))
    # Where JAX is running already (a notebook, a test) it keeps the devices it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def _require_divisible(num_workers: int, num_processes: int) -> None:
    if num_workers % num_processes:
        near = max(1, round(num_workers / num_processes)) * num_processes
        raise UsageError(
            f"config.num_workers={num_workers} cannot be shared out evenly by {num_processes} "
            f"processes: {near} can."
        )


def _of_each_process(devices: list[Any], num: int) -> list[Any]:
    """The first `num` devices of each process, the processes in order."""
    chosen: list[Any] = []
    for process in sorted({device.process_index for device in devices}):
        chosen += [device for device in devices if device.process_index == process][:num]
    return chosen


def _too_few_devices(num_workers: int, devices_per_worker: int, num_processes: int) -> UsageError:
    num_devices = num_workers * devices_per_worker
    each = f" of {devices_per_worker} devices" if devices_per_worker > 1 else ""
    lower = "lower config.num_workers" + (" or config.devices_per_worker" if each else "")
    if num_processes > 1:
        return UsageError(
            f"{num_workers} workers{each} in {num_processes} processes need"
            f" {num_devices // num_processes} devices of each, and one has fewer: {lower}."
        )
    return UsageError(
        f"{num_workers} workers{each} need {num_devices} devices, and JAX has started with"
        f" {len(jax.devices('cpu'))} CPU devices: {lower}, or before JAX is used call"
        f" jax.config.update('jax_num_cpu_devices', {num_devices})."
    )
