"""Training in many processes: what they compute, and how they end when one fails.

They run with a time limit, and most of the tests are marked slow. A fault comes from the config
file, which is Python: at a known step of a known process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from short_run import rows_of
from signax.experiments import processes
from signax.experiments.checkpoint import Checkpoints
from signax.experiments.default_config import get_config
from signax.experiments.experiment import make_experiment

HEARTBEAT = 10  # seconds
LIMIT = 240  # seconds: a run takes 15 on a core of its own

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


FAULTY = """
import os, signal, sys, time
from pathlib import Path
from signax.experiments import default_config, train

def fault(kind):
    Path("fault").touch()
    if kind == "raise":
        raise RuntimeError("the fault of this test")
    os.kill(os.getpid(), getattr(signal, kind))

def get_config():
    config = default_config.get_config()
    config.hidden_size, config.batch_size, config.eval_every = 8, 240, 5
    config.checkpoint_every = 5
    kind, who = os.environ.get("FAULT", ","). split(",")
    me = os.environ.get("JAX_PROCESS_ID") or ([a[-1] for a in sys.argv if "process_id" in a] + [""])[0]
    if who and who == me and not Path("fault").exists():
        advance = train._Run._advance
        def faulty(self):
            if self.step == 10:
                fault(kind)
            return advance(self)
        train._Run._advance = faulty
    return config
"""  # noqa: E501
SHORT = ("--config.num_steps=20",)


class Ended(NamedTuple):
    status: int
    output: str
    at: float  # seconds since the epoch


def launched(*flags: str, fault: str = ",", check: bool = True) -> str:
    """`signax launch`; returns what it printed."""
    done = started(["launch", *flags], fault)
    try:
        output, _ = done.communicate(timeout=LIMIT)
    finally:
        end_all_of(done)
    assert done.returncode == 0 or not check, output
    return output


def apart(num: int, *flags: str, fault: str = ",", who: Any = None) -> dict[int, Ended]:
    """`signax train` in processes that nobody watches over; returns how the ended ones ended."""
    port = processes.free_port()
    common = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num}", *flags]
    run = ["train", "--config=page.py", "--workdir=run", f"--heartbeat_timeout={HEARTBEAT}"]
    ranks = range(num) if who is None else who
    all_of = {r: started([*run, *common, f"--process_id={r}"], fault) for r in ranks}
    ended: dict[int, Ended] = {}
    limit = time.monotonic() + LIMIT
    try:
        silent = 1 if fault.startswith("SIGSTOP") else 0
        while len(ended) < len(all_of) - silent and time.monotonic() < limit:
            for rank, process in all_of.items():
                if rank not in ended and process.poll() is not None:
                    ended[rank] = Ended(process.returncode, "", time.time())
            time.sleep(0.1)
    finally:
        for process in all_of.values():
            end_all_of(process)
    outputs = {rank: process.communicate(timeout=60)[0] for rank, process in all_of.items()}
    return {rank: end._replace(output=outputs[rank]) for rank, end in ended.items()}


def started(argv: list[str], fault: str = ",") -> subprocess.Popen:
    Path("page.py").write_text(FAULTY)
    return subprocess.Popen(
        processes.python(*argv),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "FAULT": fault},
    )  # fmt: skip


def end_all_of(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def params_of(workdir: str, step: int, num_workers: int, optimizer: str = "signum") -> Any:
    config = get_config()
    config.hidden_size, config.batch_size, config.num_workers = 8, 240, num_workers
    config.optimizer.name = optimizer
    checkpoints = Checkpoints(Path(workdir))
    assert checkpoints.latest_step == step
    state = checkpoints.restore(make_experiment(config).first_state())
    checkpoints.close()
    return jax.tree.map(np.asarray, (state.params, state.opt_state))


def processes_in(folder: Path) -> list[str]:
    """The processes that work in a folder; only Linux lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.resolve() == folder.resolve() and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_end_as_one_that_was_left_alone(tmp_path: Path):
    page = ["train", "--config=page.py", "--config.num_steps=30"]  # 20 steps behind the restore
    output = launched(
        "-n", "2", "--restarts=1", "--", *page, "--workdir=two", fault="SIGKILL,1"
    )  # fmt: skip
    assert "process 1 of 2 was ended by SIGKILL, and the others were stopped; restart 1" in output
    assert Path("fault").exists()
    assert sys.platform != "linux" or not processes_in(tmp_path)
    alone = started([*page, "--config.num_workers=2", "--workdir=one"])
    assert alone.wait(LIMIT) == 0, alone.communicate()[0]
    alone.communicate()
    assert rows_of("two") == rows_of("one")
    jax.tree.map(np.testing.assert_array_equal, params_of("two", 30, 2), params_of("one", 30, 2))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sign_sgd", "ssdm"])
def test_two_and_four_processes_give_the_bits_of_one_process_with_as_many_devices(optimizer: str):
    run = ["train", "--config=page.py", "--config.num_steps=50", "--config.num_workers=4"]
    run += [f"--config.optimizer.name={optimizer}", "--config.eval_every=25"]
    for num in (1, 2, 4):
        launched("-n", str(num), "--", *run, f"--workdir={num}")
    want = params_of("1", 50, 4, optimizer)
    for num in ("2", "4"):
        jax.tree.map(np.testing.assert_array_equal, params_of(num, 50, 4, optimizer), want)
        assert rows_of(num) == rows_of("1")


@pytest.mark.slow
def test_four_processes_go_on_as_three():
    flags = ("-n", "4", "--restarts=1", "--restart_with=3")
    output = launched(*flags, "--", "train", "--config=page.py", *SHORT, "--workdir=run",
                      fault="SIGKILL,3")  # fmt: skip
    assert "restart 1 of 1, with 3 processes" in output
    result = json.loads(Path("run/result.json").read_text())
    assert (result["num_workers"], result["step"], result["is_finished"]) == (3, 20, True)
    assert [row["step"] for row in rows_of("run")] == [5, 10, 15, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("SIGKILL,1", "is lost, so this one ends"),
        ("SIGKILL,0", "this one ends"),
        ("SIGSTOP,1", "no heartbeat from process 1"),
        ("SIGSTOP,0", "no heartbeat from process 0"),
        ("raise,1", "this one ends"),
    ],
)
def test_when_one_process_fails_every_other_ends_with_a_line_that_says_why(fault: str, line: str):
    ended = apart(3, *SHORT, fault=fault)
    culprit = int(fault[-1])
    assert {*ended} - {culprit} == {0, 1, 2} - {culprit}, ended
    since = Path("fault").stat().st_mtime
    for rank in {0, 1, 2} - {culprit}:
        assert ended[rank].status in (3, -signal.SIGABRT), ended
        assert ended[rank].at - since < 2 * HEARTBEAT, ended
        errors = [text for text in ended[rank].output.splitlines() if "signax: error" in text]
        assert any("this one ends" in text.lower() for text in errors), ended
        assert "Traceback" not in ended[rank].output
        assert "stack trace" not in ended[rank].output
    assert any(line in end.output for end in ended.values()), ended
    if fault.startswith("raise"):
        assert ended[culprit].status == 1
        assert "the fault of this test" in ended[culprit].output


@pytest.mark.slow
def test_who_waits_for_a_process_that_never_comes_says_so():
    begun = time.time()
    ended = apart(3, *SHORT, who=(0, 1))
    for end in ended.values():
        assert end.status in (3, -signal.SIGABRT), ended
        assert "not all processes have come in time" in end.output, ended
        assert "stack trace" not in end.output
    assert {*ended} == {0, 1}
    assert max(end.at for end in ended.values()) - begun < 2 * HEARTBEAT + 60  # with the imports


@pytest.mark.slow
def test_processes_that_were_not_started_alike_refuse_and_name_the_field(tmp_path: Path):
    text = Path(tmp_path, "page.py")
    port = processes.free_port()
    common = ["train", "--config=page.py", *SHORT, "--workdir=run", "--num_processes=2",
              f"--coordinator=127.0.0.1:{port}"]  # fmt: skip
    both = [started([*common, f"--process_id={r}", f"--config.seed={r}"]) for r in range(2)]
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in both]
    finally:
        for process in both:
            end_all_of(process)
    assert text.exists()
    assert [process.returncode for process in both] == [2, 2], outputs
    assert all("process 1 has config.seed=1 (not 0)" in output for output in outputs), outputs
    assert not Path("run").exists(), "a mistake leaves nothing behind"


@pytest.mark.slow
def test_sigint_to_one_process_stops_all_at_the_same_step_with_a_checkpoint():
    ended = apart(2, "--config.num_steps=100000", fault="SIGINT,1")
    assert {rank: end.status for rank, end in ended.items()} == {0: 130, 1: 130}, ended
    assert "stopped at step 15 of 100,000" in ended[0].output
    assert "stopped at" not in ended[1].output, "only the first process prints"
    checkpoints = Checkpoints(Path("run"))
    assert checkpoints.latest_step == 15
    checkpoints.close()


STARTS = """
import sys
import jax, jax.numpy as jnp, numpy as np, signax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh, tx = signax.make_worker_mesh(), signax.signum(0.1, axis_name="workers")
same, own = jnp.ones(3), jnp.full(3, float(jax.process_index()))
signax.init_train_state({"a": same, "b": same}, tx, mesh, model_state=same, key=1)
print("same:", 1)

def loss_of(batch):
    step = signax.make_train_step(lambda p, b: jnp.sum(p["a"] * b["x"]), tx, mesh)
    return float(step(signax.init_train_state({"a": same}, tx, mesh), batch)[1]["loss"])


rows, sharding = np.asarray(own)[None], jax.NamedSharding(mesh, jax.P("workers"))
print("of each:", loss_of({"x": jax.make_array_from_process_local_data(sharding, rows)}))
print("of all:", loss_of({"x": np.array([[0.0] * 3, [1.0] * 3])}))
try:
    loss_of({"x": rows.repeat(2, 0)})
except ValueError as error:
    print(error)
signax.init_train_state({"a": same, "b": own}, tx, mesh)
"""


def test_processes_that_pass_numbers_of_their_own_as_everyones_are_told_at_once():
    address = f"127.0.0.1:{processes.free_port()}"
    commands = [[sys.executable, "-c", STARTS, address, str(rank)] for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for command in commands]
    ended = [process.communicate(timeout=LIMIT) for process in running]
    for output, errors in ended:
        assert "same: 1\nof each: 1.5\nof all: 1.5\n" in output
        assert "the batch leaf ['x'] is not the same on all processes" in output
        assert "the processes do not pass the same numbers at ['params']['b']" in errors
