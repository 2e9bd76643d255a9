"""Is this process one of several? Under the user's launcher, or under ours (`processes`).

Ours sets three variables, as any launcher that JAX does not know may: the coordinator's address,
how many processes there are, and which one this is. SLURM, Open MPI and Cloud TPU are found by JAX.
"""

import os
from typing import Any

import jax
import numpy as np

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_SIZES = (NUM_PROCESSES, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how many, each launcher's name


def is_one_of_several() -> bool:
    """Whether a launcher has started this process together with others."""
    sizes = [os.environ.get(name, "") for name in _SIZES]
    several = any(size.isdecimal() and int(size) > 1 for size in sizes)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def join() -> None:
    """Joins the other processes; before JAX is first used."""
    config: Any = jax.config
    if not config.jax_cpu_collectives_implementation:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if NUM_PROCESSES in os.environ:
        jax.distributed.initialize(
            os.environ[COORDINATOR], int(os.environ[NUM_PROCESSES]), int(os.environ[PROCESS_ID])
        )
    else:
        jax.distributed.initialize()


def is_first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def agree(number: int) -> int:
    """The first process's number, in all of them."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
