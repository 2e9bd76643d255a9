"""`signax bench`: what it writes, what it refuses, what it leaves behind. No clock is asserted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import signax
from signax.experiments import cli, processes
from signax.experiments.bench import (
    bench_command,
    bits,
    c_loop,
    hosts,
    local,
    network,
    steps,
    timing,
)
from signax.experiments.bench.settings import parse_bandwidth, parse_parts, parse_sizes
from signax.experiments.errors import UsageError
from workers import run_python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]

QUICK = ("--quick", "--seconds=0.1", "--only=random")
IS_LINUX = sys.platform == "linux"


def bench(*flags: str, timeout: float = 280) -> str:
    """Runs `signax bench` in a process of its own; returns what it printed."""
    code = (
        f"import sys; from signax.experiments import cli; sys.exit(cli.main({['bench', *flags]}))"
    )
    return run_python(code, timeout=timeout, devices=None).stdout


def assert_is_result(content: dict[str, Any]):
    assert {*content} == {"signax", "machine", "settings", "groups", "bits"}
    for group in content["groups"]:
        names = [row["name"] for row in group["rows"]]
        assert {group["floor"], group["textbook"]} - {None} <= {*names}
        for row in group["rows"]:
            median, low, high = row["milliseconds"]
            assert 0 < low <= median <= high
            # a contestant against itself is one, in every round
            assert row["name"] != group["floor"] or row["over_floor"] == [1, 1, 1]
            assert row["name"] != group["textbook"] or row["faster_than_textbook"] == [1, 1, 1]


# What was asked for


@pytest.mark.parametrize(
    ("text", "rate"), [("100mbit", 10**8), ("1gbit", 10**9), ("2.5Gbit", 2_500_000_000)]
)
def test_a_bandwidth_is_written_as_tc_writes_it(text: str, rate: int):
    assert parse_bandwidth(text) == rate


def test_sizes_and_parts_are_lists():
    assert parse_sizes("1e6,2000") == (10**6, 2000)
    assert parse_parts("steps,kernels") == ("kernels", "steps")  # in the order in which they run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bandwidth=fast"], "100mbit"),
        (["--bandwidth=0mbit"], "100mbit"),
        (["--sizes=large"], "--sizes=1e6,1e7"),
        (["--sizes=10"], "overheads"),
        (["--parts=kernel"], "kernels, bits, steps"),
        (["--processes=1"], "leave it out"),
        (["--rounds=0"], "at least 1"),
        (["--parameters=10"], "too few for --leaves=195"),
        (["--rounds=many"], "--rounds"),
        (["--speed"], "--help"),
        (["--only=gossip"], "majority"),
        (["--mesh=2by4"], "write HOSTSxDEVICES, such as 2x4"),
        (["--mesh=2x4", "--processes=2"], "leave out --processes"),
        (["--mesh=100x100"], "at most 64 devices"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_status_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture
):
    assert cli.main(["bench", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("signax: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(Path().iterdir())


def test_help_is_status_0(capsys: pytest.CaptureFixture):
    assert cli.main(["bench", "--help"]) == 0
    assert "--bandwidth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "words"),
    [("platform", "this is darwin"), ("user", "sudo"), ("tools", "apt-get install iproute2")],
)
def test_a_bandwidth_without_linux_root_or_tools_is_one_error(
    what: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "platform", "darwin" if what == "platform" else "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if what == "user" else 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if what == "tools" else f"/bin/{tool}")
    assert cli.main(["bench", "--bandwidth=100mbit"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_processes_of_a_child_are_started_by_the_parent_alone():
    flags = ["--processes=4", "--bandwidth", "1gbit", "--batch=2"]
    from signax.experiments.bench import run

    assert run.without(flags, "--processes", "--bandwidth") == ["--batch=2"]
    assert bench_command.parse(["--batch=2"]).batch == 2


# Measuring


def test_contestants_take_turns_and_each_runs_in_every_round():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.measure(timing.Group("turns", 1, calls), 4, 60.0, repeat=False)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert order[:6] == list("abcabc")  # compile; a first look
    assert order[6:] == list("abcbcacababc")


def test_a_ratio_is_taken_within_each_round():
    # The machine is ten times slower in the last two rounds, for both.
    times = {"a": [2.0, 4.0, 20.0, 40.0], "b": [1.0, 2.0, 10.0, 20.0]}
    assert timing.ratio(times, "a", "b") == (2.0, 2.0, 2.0)


# Bits


@pytest.mark.parametrize("algorithm", list(bits.algorithms()), ids=lambda a: a.name)
def test_the_compiled_program_sends_what_the_formula_says(algorithm: bits.Algorithm):
    for wire in algorithm.wires or (None,):
        row = bits.row(algorithm, wire, 3)
        excess = row["bits_per_coordinate"] - row["formula"]
        assert 0 <= excess <= bits.tolerance(3), row
        # the exchange (one collective or two) and the mean loss
        assert row["num_collectives"] <= (3 if wire == "packed" else 2), row


# Whole runs


def test_a_quick_run_measures_every_part_and_writes_json_and_a_picture():
    printed = bench("--quick", "--seconds=0.1", "--workdir=out")
    content = json.loads(Path("out/bench.json").read_text())
    assert_is_result(content)
    assert {group["part"] for group in content["groups"]} == {"kernels", "steps"}
    assert {row["num_workers"] for row in content["bits"]} == {2}
    step = next(g for g in content["groups"] if g["title"].startswith("whole step"))
    assert {row["name"] for row in step["rows"]} == {"no communication", *steps.links()}
    for part in ("", "kernels", "bits", "steps"):
        assert Path("out", part, "bench.png").read_bytes().startswith(b"\x89PNG")
    assert 'majority, ties="random"' in printed


def test_a_mesh_of_hosts_prints_memory_and_what_goes_across():
    printed = bench("--mesh=2x2", "--quick", "--workdir=out")
    rows = {
        row["optimizer"]: row for row in json.loads(Path("out/bench.json").read_text())["hosts"]
    }
    assert [*rows] == [*hosts.optimizers()]
    dense, vote = rows["dense_sgd"], rows['sign_sgd(ties="random")']
    kinds = [text.split()[0] for text in vote["collectives_across_hosts"]]
    assert kinds == ["all-to-all", "all-gather"]
    # 1 bit each way, half of it to the other host; 20,000 coordinates, headers of 16 bytes.
    assert 1.0 <= vote["bits_per_coordinate"] < 1.02
    assert dense["bits_per_coordinate"] >= 32
    words = vote["num_parameters"] // 2 // 8
    assert vote["temporary_bytes"] <= dense["temporary_bytes"] + 2 * words + 64  # headers
    assert "2 hosts x 2 devices" in printed


def test_local_processes_measure_together_and_the_first_one_writes():
    bench(*QUICK, "--processes=2", "--workdir=out")
    content = json.loads(Path("out/bench.json").read_text())
    assert_is_result(content)
    assert content["machine"]["num_processes"] == 2
    assert "in 2 processes" in content["groups"][0]["title"]
    assert Path("out/process-1.log").exists()


def test_namespaces_are_a_network_of_the_asked_rate_and_vanish():
    try:
        network.require_possible()
        with network.slow_network(1, 10**8):
            pass
    except UsageError as error:
        pytest.skip(str(error))
    before = Path("/proc/net/dev").read_text().count(":")
    with network.slow_network(2, 100_000_000) as links:
        assert len(links.prefixes) == 2
        for rank, prefix in enumerate(links.prefixes):
            shown = subprocess.run(
                [*prefix, "sh", "-c", "hostname; getent hosts $(hostname); tc qdisc show dev eth0"],
                capture_output=True, text=True, check=True, timeout=60,
            ).stdout.split()  # fmt: skip
            assert shown[:2] == [f"worker{rank}", f"10.213.0.{rank + 1}"]
            assert "100Mbit" in shown
    assert Path("/proc/net/dev").read_text().count(":") == before


# What is left behind


def processes_that_mention(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.skipif(not IS_LINUX, reason="looks for processes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_run(signum: signal.Signals, tmp_path: Path):
    workdir = str(tmp_path / "interrupted")
    flags = ["--processes=2", "--quick", "--seconds=1000", "--rounds=1000000", "--only=random"]
    with subprocess.Popen(
        processes.python("bench", *flags, f"--workdir={workdir}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        limit = threading.Timer(240, process.kill)  # ends the lines below, should it say nothing
        limit.start()
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any("round 1 of" in line for line in lines)
            assert len(processes_that_mention(workdir)) == 3
            process.send_signal(signum)
            process.wait(timeout=60)
        finally:
            limit.cancel()
            process.kill()
    assert process.returncode == (-9 if signum == signal.SIGKILL else 130)
    deadline = time.monotonic() + 60
    while processes_that_mention(workdir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_that_mention(workdir) == []


def test_a_process_that_fails_stops_the_others():
    code = "import os, time; os.environ['JAX_PROCESS_ID'] == '1' and os._exit(3); time.sleep(600)"
    with pytest.raises(UsageError, match="process 1 of 2 ended with exit status 3"):
        local.run([sys.executable, "-c", code], 2, None, Path("logs"))


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_loop_in_c_packs_what_pack_bits_packs():
    g = jnp.asarray(np.random.default_rng(0).standard_normal(64 * 100, np.float32))
    words = c_loop.packing(g)()  # type: ignore[misc]
    np.testing.assert_array_equal(words.view(np.uint8), signax.pack_bits(g > 0))


def test_a_method_of_ones_own_is_a_contestant(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import signax\n\n\ndef vote(learning_rate, *, axis_name):\n"
        "    return signax.sign_sgd(learning_rate, axis_name=axis_name)\n"
    )
    steps.require_known(("mine:vote", "ssdm"))
    chosen = steps._chosen(steps.links(), ("mine:vote",))
    assert {*chosen} == {"float32 pmean", "mine:vote"}
    with pytest.raises(UsageError, match="mine:vote"):
        steps.require_known(("mine:votes",))


def test_a_contestant_may_keep_memory_that_lies_in_slices_on_the_workers(tmp_path: Path):
    """Its state can be made only where the axis is bound."""
    method = "signax:double_squeeze"
    small = ("--parameters=20000", "--leaves=4", f"--workdir={tmp_path}")
    bench("--parts=steps", "--quick", "--seconds=0.1", f"--only={method}", *small)
    groups = json.loads((tmp_path / "bench.json").read_text())["groups"]
    assert len(groups) == 2  # whole steps, and exchanges alone
    assert all(method in [row["name"] for row in group["rows"]] for group in groups)
