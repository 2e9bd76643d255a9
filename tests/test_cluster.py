"""Who is one of several processes, and what a person reads of the runtime's errors."""

import socket

import numpy as np
import pytest

from signax.experiments import agreement, cli, cluster, fleet, native_log
from signax.experiments.errors import UsageError
from workers import run_python


@pytest.mark.parametrize(
    ("environment", "meeting"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),  # inside an allocation, but on its own
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, cluster.Meeting()),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, cluster.Meeting()),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, cluster.Meeting()),
        (fleet.meeting_environment(1, 3, "10.0.0.1:8476"), cluster.Meeting("10.0.0.1:8476", 3, 1)),
    ],
    ids=str,
)
def test_a_launchers_environment_says_whether_a_process_is_alone(
    environment: dict[str, str], meeting: cluster.Meeting | None
):
    assert cluster.meeting_of(environment) == meeting


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["train", "--num_processes=2"], "add --coordinator and --process_id"),
        (
            ["train", "--coordinator=here", "--num_processes=2", "--process_id=0"],
            "--coordinator=here: write HOST:PORT",
        ),
        (
            ["train", "--coordinator=here:99999", "--num_processes=2", "--process_id=0"],
            "--coordinator=here:99999: write HOST:PORT",
        ),
        (
            ["train", "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "2 processes are numbered 0 to 1",
        ),
        (["train", "--resume_or_start", "--overwrite"], "choose one"),
        (["launch", "-n", "2"], "say what: signax launch -n 2 -- train"),
        (
            ["launch", "-n", "2", "train"],
            "stand before what is launched: signax launch -n 2 -- train",
        ),
        (["launch", "-n", "2", "--", "doctor"], "'doctor' cannot be launched, only train can"),
        (["launch", "-n", "0", "--", "train"], "-n=0: at least 1"),
        (["launch", "--", "train"], "-n"),
        (["launch", "-n", "2", "--restart", "--", "train"], "--help"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], hint: str, capsys: pytest.CaptureFixture
):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("signax: error: ")
    assert error.count("\n") == 1
    assert hint in error


def test_a_coordinator_whose_port_is_taken_says_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"cannot listen at {address}: Address already in use"):
            cluster.join(cluster.Meeting(address, 2, 0))


def test_one_process_of_a_launcher_is_one_worker():
    code = "from signax.experiments.workers import make_mesh; print(make_mesh(None).size)"
    assert run_python(code, JAX_NUM_PROCESSES="1").stdout == "1\n"
    assert run_python(code).stdout == "8\n"


def test_one_process_alone_agrees_with_itself():
    agreement.require_same({"config.seed": 1})
    assert cluster.gather(np.arange(3)).tolist() == [[0, 1, 2]]
    assert cluster.agree(7) == 7
    assert not cluster.any_process(False)
    with pytest.raises(UsageError, match="teaches"):
        cluster.from_first(lambda: (_ for _ in ()).throw(UsageError("an error that teaches")))


HEARTBEAT_PAGE = """\
[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1
a line of its own
E1125 09:27:38.4 28196 agent.cc:289] Polled an error from coordination service (this can be ...).
F1125 09:27:38.4 28196 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
2
The tasks have crashed. Check the task logs for an earlier error.
*** Check failure stack trace: ***
    @     0x7fcd09440634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


def test_a_page_of_the_runtime_becomes_a_line_that_names_the_silent_process():
    assert list(native_log.condensed(HEARTBEAT_PAGE.splitlines(keepends=True))) == [
        "a line of its own\n",
        "signax: error: no heartbeat from process 2: stopped, or cut off. This one ends.\n",
    ]


FATAL = (
    "F1125 09:27:38.4 28196 client.h:80] Terminating process because the JAX distributed service"
)


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        (
            ": DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/Heartbeat\n",
            "process 0",
        ),
        (
            ": DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n",
            "in time",
        ),
        (": UNAVAILABLE: Failed to send RPC to coordination service.\n", "is gone"),
        (" absl::Status: NEW: a reason\n    @ 0x7f  unknown\n", "ends: NEW: a reason"),
    ],
)
def test_each_page_of_the_runtime_has_its_line(rest: str, line: str):
    (only,) = native_log.condensed(f"{FATAL}{rest}".splitlines(keepends=True))
    assert line in only


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", cluster.LostError),
        ("NCCL operation failed: remote process exited", cluster.LostError),
        ("the array has a wrong shape", ValueError),
    ],
)
def test_an_error_of_the_network_is_told_from_an_error_of_ours(message: str, kind: type):
    assert type(cluster.as_lost(ValueError(message))) is kind
