"""The devices that play the workers."""

import contextlib

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from signax.experiments.errors import UsageError

AXIS_NAME = "workers"
_DEFAULT_NUM_WORKERS = 8


def make_mesh(num_workers: int | None) -> Mesh:
    """Returns a mesh of M accelerators if there are that many, else of M CPU devices.

    CPU devices are made on the spot, which only works before JAX is first used.

    Args:
      num_workers: M. None: all accelerators if there are two or more, else eight CPU devices.
    """
    if num_workers is not None and num_workers < 1:
        raise UsageError(f"config.num_workers={num_workers}: there must be at least one worker.")
    # At least the default: the next run of this process may want more than this one.
    _ask_for_cpu_devices(max(num_workers or 0, _DEFAULT_NUM_WORKERS))
    accelerators = [device for device in jax.devices() if device.platform != "cpu"]
    if num_workers is None:
        num_workers = len(accelerators) if len(accelerators) > 1 else _DEFAULT_NUM_WORKERS
    for devices in (accelerators, jax.devices("cpu")):
        if len(devices) >= num_workers:
            chosen = np.array(devices[:num_workers])
            return Mesh(chosen, (AXIS_NAME,), axis_types=(AxisType.Auto,))
    raise UsageError(
        f"{num_workers} workers need {num_workers} devices, and JAX has started with "
        f"{len(jax.devices('cpu'))} CPU devices: lower config.num_workers, or before JAX is used "
        f"call jax.config.update('jax_num_cpu_devices', {num_workers})."
    )


def _ask_for_cpu_devices(count: int) -> None:
    # Where JAX is running already (a notebook, a test) it keeps the devices it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
