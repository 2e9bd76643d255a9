"""Many processes that train together: how they meet, what they tell one another, how they end.

Three ways to meet, for `signax train` and `signax bench` alike:

- flags: the coordinator's address, how many processes there are, and which one this is;
- the same three as environment variables, as `signax launch` (or any launcher of yours) sets them;
- SLURM, Open MPI, Cloud TPU and Kubernetes are found by `jax.distributed.initialize()`.

What they tell one another goes through an all-gather over one device of each process, so it works
before they have agreed on anything, such as how many devices each of them has.
"""

import json
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from signax.experiments import native_log
from signax.experiments.errors import OneLineError, UsageError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
# How many processes each launcher has started *in this step*: inside an allocation SLURM_NTASKS is
# set for a process on its own, too, which would wait for others that nobody starts.
_SIZES = (NUM_PROCESSES, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
HEARTBEAT_TIMEOUT = 30  # seconds
_FAREWELL = 2.0  # seconds


class Meeting(NamedTuple):
    """Where processes meet; all None where JAX finds out."""

    coordinator: str | None = None  # host:port of process 0
    num_processes: int | None = None
    process_id: int | None = None


def meeting_of(environment: Any = os.environ) -> Meeting | None:
    """Where a launcher's environment says that processes meet; None for a process on its own."""
    if _number(environment.get(NUM_PROCESSES)) > 1:
        address, rank = environment.get(COORDINATOR), environment.get(PROCESS_ID, "")
        if not address or not rank.isdecimal():
            raise UsageError(
                f"{NUM_PROCESSES} is set, so this process is one of several: set {COORDINATOR} to "
                f"HOST:PORT of process 0, and {PROCESS_ID} to 0, 1, ... as well."
            )
        return checked(Meeting(address, int(environment[NUM_PROCESSES]), int(rank)))
    several = any(_number(environment.get(name)) > 1 for name in _SIZES)
    return Meeting() if several or "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def is_launched(environment: Any = os.environ) -> bool:
    """Whether a launcher has started this process, maybe as the only one."""
    return _number(environment.get(NUM_PROCESSES)) > 0


def checked(meeting: Meeting) -> Meeting:
    """The meeting, if its numbers can be true."""
    address, num, rank = meeting
    port = re.fullmatch(r".+:(\d+)", address or "")
    if not port or not 0 < int(port[1]) < 2**16:
        raise UsageError(f"--coordinator={address}: write HOST:PORT, such as 10.0.0.1:8476.")
    if num is not None and rank is not None and rank >= num:
        raise UsageError(
            f"--process_id={rank}: {num} processes are numbered 0 to {num - 1} (--num_processes)."
        )
    return meeting


def join(meeting: Meeting, heartbeat_timeout: int = HEARTBEAT_TIMEOUT) -> None:
    """Joins the other processes; before JAX is first used.

    Args:
      meeting: Where they meet.
      heartbeat_timeout: After so many seconds without a sign of life a process counts as dead, and
        all the others end. As long is waited, at the start, for all to come.
    """
    if meeting.process_id == 0 and meeting.coordinator:
        _require_free_port(meeting.coordinator)
    global _num_processes
    config: Any = jax.config
    if not config.jax_cpu_collectives_implementation:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    # Two programs in flight at once may wait for each other's collectives, and hang.
    config.update("jax_cpu_enable_async_dispatch", False)
    native_log.condense()
    try:
        jax.distributed.initialize(
            *meeting,
            initialization_timeout=heartbeat_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=max(60, heartbeat_timeout),  # the first one draws curves
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"cannot join the other processes: {error}") from error
    _num_processes = meeting.num_processes or _num_processes_of(os.environ)


def run_joined(meeting: Meeting | None, heartbeat_timeout: int, fn: Callable[[], int]) -> int:
    """Runs `fn` as one of several processes (None: on its own) and returns its exit status.

    A process that fails ends at once, with one line: as long as it lives, the others wait for it.
    """
    if meeting is None:
        return fn()
    try:
        join(meeting, heartbeat_timeout)
        status = fn()
        jax.distributed.shutdown()  # waits for the others
        return status
    except BaseException as error:
        _end(as_lost(error))


def _end(error: BaseException) -> NoReturn:
    if isinstance(error, OneLineError):
        print(f"signax: error: {error}", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(error, UsageError):  # the same mistake in all: they part in peace, if they can
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(_FAREWELL)
    # Not sys.exit: at the interpreter's end JAX would wait for the others, and they for this one.
    os._exit(130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1))


def _require_free_port(address: str) -> None:
    """Where the port is taken gRPC would end this process by a signal."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ours.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise UsageError(
                f"the coordinator cannot listen at {address}: {error.strerror}. Pass another port."
            ) from error


def num_processes() -> int | None:
    """How many processes there are, without starting JAX; None if only JAX can know."""
    return _num_processes


def is_first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def gather(row: np.ndarray) -> np.ndarray:
    """Every process's row, in all of them: [...] -> [num_processes, ...]."""
    if jax.process_count() == 1:
        return row[None]
    of_process = {device.process_index: device for device in reversed(jax.devices())}
    devices = np.array([of_process[process] for process in range(jax.process_count())])
    mesh = Mesh(devices, ("processes",), axis_types=(AxisType.Auto,))
    spread, everywhere = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (mesh.axis_names, ())
    )
    rows = jax.make_array_from_process_local_data(spread, row[None], (len(devices), *row.shape))
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(rows))


def gather_bytes(text: bytes) -> list[bytes]:
    """Every process's bytes, in all of them."""
    sizes = gather(np.array(len(text), np.int32))
    row = np.zeros(max(1, *sizes), np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    return [bytes(other[:size]) for other, size in zip(gather(row), sizes, strict=True)]


def agree(number: int) -> int:
    """The first process's number, in all of them."""
    return int(gather(np.array(number, np.int32))[0])


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process; the same answer in all."""
    return bool(gather(np.array(flag, np.int32)).any())


def from_first(fn: Callable[[], Any]) -> Any:
    """Runs `fn` on the first process; all get what it returned (as JSON), or its `UsageError`."""
    if jax.process_count() == 1:
        return fn()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": fn()}
        except UsageError as error:
            outcome = {"error": str(error)}
    outcome = json.loads(gather_bytes(json.dumps(outcome).encode())[0])
    if "error" in outcome:
        raise UsageError(outcome["error"])
    return outcome["value"]


def first_before_others(fn: Callable[[], Any]) -> Any:
    """Runs `fn` in all processes, but first in the first: it may download what the others read."""
    if is_first():
        value = fn()
        agree(0)
        return value
    agree(0)
    return fn()


class LostError(OneLineError):
    """Another process has ended or no longer answers."""

    exit_status = 3


def as_lost(error: BaseException) -> BaseException:
    """A `LostError` if that is what an error of JAX's runtime means, else the error itself."""
    text = str(error)
    is_runtime = isinstance(error, (RuntimeError, ValueError))  # gloo's are ValueErrors
    if not is_runtime or not any(word in text for word in _SIGNS_OF_LOSS):
        return error
    return LostError(f"the connection to another process is lost, so this one ends: {text[:160]}")


# Words of gloo's, NCCL's and the coordination service's errors when a peer is gone.
_SIGNS_OF_LOSS = ("Gloo", "gloo", "NCCL", "ncclRemoteError", "coordination", "heartbeat", "UNAVAIL")
_num_processes: int | None = 1  # a process joins once, as JAX's own record of it


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _num_processes_of(environment: Any) -> int | None:
    return max(_number(environment.get(name)) for name in _SIZES) or None
