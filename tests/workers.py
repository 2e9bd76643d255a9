"""M workers under each of JAX's mappings, and a fresh Python with a time limit.

Row w of every argument belongs to worker w, so one picture serves all mappings:

    arguments  [M, ...]  ->  fn on worker w sees [...]  ->  outputs  [M, ...]

The outputs of *all* workers come back, so a test can compare replicas.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

WORKERS = "workers"
MAPPINGS = ("vmap", "pmap", "shard_map")


class Mapped(NamedTuple):
    """Runs a function on M workers: `mapped(fn, *args, num_workers=None) -> outputs`.

    `fn` may use collectives over the axis `WORKERS`. Every leaf of `args` and of the outputs has a
    leading axis of M rows; M is read from `args`, and a function without any names `num_workers`.
    Under `shard_map` the default check (`check_vma=True`) is on, and an output typed as replicated
    is accepted like any other.
    """

    name: Literal["vmap", "pmap", "shard_map"]

    def __call__(self, fn: Callable, *args: Any, num_workers: int | None = None) -> Any:
        if num_workers is None:
            num_workers = len(jax.tree.leaves(args)[0])
        # pmap has no form without arguments, so every worker is given its index and ignores it.
        mapped = map_workers(self.name, lambda _, *row: fn(*row), num_workers)
        return mapped(jnp.arange(num_workers), *args)


def map_workers(name: str, fn: Callable, num_workers: int) -> Callable:
    """`fn` on one worker -> the jitted function on rows of M workers."""
    if name == "vmap":
        return jax.jit(jax.vmap(fn, axis_name=WORKERS, axis_size=num_workers))
    if name == "pmap":
        return jax.pmap(fn, axis_name=WORKERS, devices=jax.devices()[:num_workers])

    def row(*args: Any) -> Any:
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: _as_varying(x)[None], out)

    rows = PartitionSpec(WORKERS)
    mesh = worker_mesh(num_workers)
    return jax.jit(jax.shard_map(row, mesh=mesh, in_specs=rows, out_specs=rows))


def worker_mesh(num_workers: int) -> Mesh:
    """A mesh over the first M devices, with the axis `WORKERS`."""
    devices = jax.devices()[:num_workers]
    return jax.make_mesh((num_workers,), (WORKERS,), devices=devices, axis_types=(AxisType.Auto,))


def _as_varying(x: Any) -> jax.Array:
    varying = jax.typeof(x).manual_axis_type.varying
    return x if WORKERS in varying else jax.lax.pcast(x, WORKERS, to="varying")


def run_python(
    code: str, *, timeout: float = 120, devices: int | None = 8, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh Python with `devices` CPU devices; at the time limit, ends it whole.

    Without a number of devices (None) the code makes them itself, as a command does. `env` adds
    environment variables. A snippet that fails is an `AssertionError` that shows what it printed
    (unless `check=False`); one that hangs is a `subprocess.TimeoutExpired`, and the processes that
    it started are ended with it.
    """
    settings = {"JAX_PLATFORMS": "cpu"}
    if devices is not None:
        settings["JAX_NUM_CPU_DEVICES"] = str(devices)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings | env,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if check:
        assert process.returncode == 0, f"exit status {process.returncode}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
