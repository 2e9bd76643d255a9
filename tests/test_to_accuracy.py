"""`signax bench --to_accuracy`: what it asks for, what it makes of what was measured, one real run.

No clock is asserted. Whatever trains is marked slow.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from signax.experiments import cli, processes
from signax.experiments.bench import network, race_chart, race_report, race_settings
from signax.experiments.errors import UsageError

CONFIGS = Path(__file__).parents[1] / "configs"
FLAGS = ("bench", "--to_accuracy")

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


# What is asked for


def test_the_flags_name_runs_of_a_page_and_change_all_of_them():
    race = race_settings.parse(
        ["--to_accuracy", f"--config={CONFIGS}/digits.py", "--target=95",
         "--config.batch_size=64", "--bandwidths=loopback"]
    )  # fmt: skip
    assert race.runs == ("signum", "majority_vote", "ssdm", "ssdm_shared", "sgd")
    assert race.config_of("sgd").optimizer.name == "dense_sgd"
    assert {race.config_of(run).batch_size for run in race.runs} == {64}
    alone = race_settings.parse(["--to_accuracy", "--target=95", "--quick"])
    assert alone.runs == ("",)
    assert alone.config_of("").num_steps == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--target"),
        (["--target=high"], "--target"),
        (["--target=95", "--bandwidths=fast"], "100mbit"),
        (["--target=95", "--bandwidths=loopback,loopback"], "named twice"),
        (["--target=95", "--processes=1"], "2 or more"),
        (["--target=95", "--budget=0"], "above 0"),
        (["--target=95", "--config=nowhere.py"], "no config file nowhere.py"),
        (["--target=95", f"--config={CONFIGS}/digits.py", "--runs=signun"], "'signum'"),
        (["--target=95", "--config.bach_size=8"], "batch_size"),
        (["--target=95", "--rounds=3"], "bench --to_accuracy --help"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_starts_nothing(
    flags: list[str], words: str, capsys: pytest.CaptureFixture
):
    assert cli.main([*FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("signax: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(Path().iterdir())


def test_a_bandwidth_without_root_is_one_error_and_the_loopback_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main([*FLAGS, "--target=95", "--bandwidths=loopback,100mbit"]) == 2
    error = capsys.readouterr().err
    assert "needs root" in error
    assert error.count("\n") == 1
    assert race_settings.parse(["--target=95", "--to_accuracy"]).bandwidths == ("loopback",)


def test_under_a_launcher_it_says_that_it_starts_its_own_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert cli.main([*FLAGS, "--target=95"]) == 2
    assert "starts its own processes" in capsys.readouterr().err


def test_help_is_status_0(capsys: pytest.CaptureFixture):
    assert cli.main([*FLAGS, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--timed_steps" in out
    assert "--share" not in out


# What is made of it


def outcome(run: str, network: str, *, trained: bool, step: float, **changes: Any) -> Any:
    """Two steps between evaluations; the score halves from 8 bits per byte at each."""
    points = [
        {"step": 2 * i, "seconds": 2 * i * step, "megabytes": 3.0 * i, "score": 8 / 2**i}
        for i in (1, 2, 3)
    ]
    return {
        "run": run, "network": network, "is_trained": trained, "metric": "bits_per_byte",
        "local_steps": 1, "bits_per_coordinate": 48.0, "seconds": [step] * 6,
        "losses": [3.0, 2.0, 1.0], "points": points if trained else [],
    } | changes  # fmt: skip


OUTCOMES = [
    outcome("dense", "loopback", trained=True, step=1.0),
    outcome("sign", "loopback", trained=True, step=0.5),
    outcome("dense", "20mbit", trained=False, step=10.0, losses=[3.0, 2.0]),
    outcome("sign", "20mbit", trained=False, step=2.0, losses=[3.0, 2.5]),
]


def test_the_time_to_the_target_is_measured_or_steps_times_the_median_step():
    rows = {(row.network, row.run): row for row in race_report.rows_of(OUTCOMES, 2.0)}
    dense, slow = rows["loopback", "dense"], rows["20mbit", "dense"]
    assert (dense.steps, dense.seconds, dense.megabytes, dense.is_measured) == (4, 4.0, 6.0, True)
    assert (slow.steps, slow.seconds, slow.megabytes, slow.is_measured) == (4, 40.0, 6.0, False)
    assert {key: row.speedup for key, row in rows.items()} == {
        ("loopback", "dense"): 1, ("loopback", "sign"): 2,
        ("20mbit", "dense"): 1, ("20mbit", "sign"): 5,
    }  # fmt: skip


def test_a_step_that_lost_other_bits_is_marked():
    rows = race_report.rows_of(OUTCOMES, 2.0)
    assert [row.has_same_bits for row in rows] == [None, None, True, False]
    lines = race_report.tables(rows, 2.0).splitlines()
    assert [line[-2:] for line in lines if " 10 [" in line or " 2 [" in line] == ["x=", "x!"]


def test_a_target_that_is_not_reached_has_no_time_and_no_ratio():
    rows = race_report.rows_of(OUTCOMES, 0.5)
    assert {(row.steps, row.seconds, row.megabytes, row.speedup) for row in rows} == {(None,) * 4}
    assert {row.best for row in rows} == {1.0}
    assert race_report.tables(rows, 0.5).count("not reached") == 4


def test_a_round_of_local_steps_counts_as_many_steps():
    local = outcome("local", "20mbit", trained=False, step=8.0, local_steps=2)
    first = outcome("local", "loopback", trained=True, step=2.0, local_steps=2)
    row = race_report.rows_of([first, local], 2.0)[1]
    assert (row.steps, row.seconds, row.step_seconds[0]) == (4, 16.0, 4.0)


def test_an_accuracy_is_a_percentage_and_more_is_better():
    points = [{"step": s, "seconds": s, "megabytes": s, "score": 90.0 + s} for s in (1, 2, 3)]
    first = outcome("a", "loopback", trained=True, step=1.0, metric="accuracy", points=points)
    (row,) = race_report.rows_of([first], 92)
    assert (row.steps, row.best) == (2, 93.0)
    assert "test accuracy 92%" in race_report.tables([row], 92)


def test_the_picture_has_a_panel_for_each_bandwidth_and_one_for_megabytes(tmp_path: Path):
    race_chart.draw(race_report.rows_of(OUTCOMES, 2.0), OUTCOMES, 2.0, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# Real runs


def signax(*argv: str, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        processes.python(*argv), capture_output=True, text=True, timeout=280, check=False,
        **options,
    )  # fmt: skip


def can_make_namespaces() -> bool:
    try:
        network.require_possible()
        with network.slow_network(1, 10**8):
            return True
    except UsageError:
        return False


@pytest.mark.slow
def test_runs_are_trained_at_the_first_bandwidth_and_timed_at_the_other():
    networks = "loopback,100mbit" if can_make_namespaces() else "loopback"
    flags = [
        *FLAGS, f"--config={CONFIGS}/bytes.py", "--runs=adamw,local_vote", "--quick",
        "--target=8.5", f"--bandwidths={networks}", "--processes=2", "--timed_steps=8",
        "--workdir=out",
    ]  # fmt: skip
    done = signax(*flags)
    assert done.returncode == 0, done.stderr
    content = json.loads(Path("out/to_accuracy.json").read_text())
    rows = {(row["network"], row["run"]): row for row in content["rows"]}
    assert len(rows) == 2 * len(networks.split(","))
    for (name, _), row in rows.items():
        assert row["steps"] > 0
        assert row["seconds"] > 0
        assert row["is_measured"] == (name == "loopback")
        assert row["has_same_bits"] in (None, True)
    megabytes = {run: rows["loopback", run]["megabytes"] for run in ("adamw", "local_vote")}
    assert 0 < megabytes["local_vote"] < megabytes["adamw"]
    assert Path("out/to_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "loopback  adamw: step" in done.stderr
    assert "until test bits per byte 8.5" in done.stdout
    Path(f"out/{networks.split(',')[-1]}/adamw.json").unlink()
    again = signax(*flags, "--resume")  # takes only what is missing
    assert again.stderr.count("compiling") == 1
    assert {
        (row["network"], row["run"])
        for row in json.loads(Path("out/to_accuracy.json").read_text())["rows"]
    } == {*rows}


@pytest.mark.slow
def test_the_budget_ends_a_run_and_the_target_is_not_reached():
    done = signax(
        *FLAGS, "--config.num_steps=100000", "--config.eval_every=10", "--config.num_workers=2",
        "--target=100", "--budget=0.5", "--processes=2", "--workdir=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(Path("out/to_accuracy.json").read_text())["rows"]
    assert (row["steps"], row["seconds"]) == (None, None)
    assert "not reached" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_sigint_leaves_no_process_behind(tmp_path: Path):
    workdir = str(tmp_path / "interrupted")
    flags = ["--config.num_steps=1000000", "--config.num_workers=2", "--target=100"]
    with subprocess.Popen(
        processes.python(*FLAGS, *flags, "--processes=2", f"--workdir={workdir}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        limit = threading.Timer(240, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            assert any("step" in line for line in iter(process.stdout.readline, ""))
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            limit.cancel()
            process.kill()
    assert process.returncode == 130
    deadline = time.monotonic() + 60
    while mentioning(workdir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mentioning(workdir) == []


def mentioning(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found
