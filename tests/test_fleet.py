"""A fleet of small processes that train nothing: their lines, and who is to blame for the end."""

import errno
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from signax.experiments import fleet, launch_command


def run_fleet(*codes: str) -> tuple[fleet.End, list[tuple[int, str]]]:
    lines: list[tuple[int, str]] = []
    commands = [[sys.executable, "-S", "-c", code] for code in codes]
    end = fleet.run(
        commands, [{}] * len(codes), lambda rank, line, to: lines.append((rank, line.strip()))
    )
    return end, sorted(lines)


SLEEP = "import time; time.sleep(600)"
ABORT = "import os; os.abort()"


def test_every_line_comes_with_its_processs_number():
    end, lines = run_fleet("print('a')", "import sys; print('b', file=sys.stderr)")
    assert end == fleet.End(0)
    assert lines == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("codes", "rank", "how"),
    [
        ((SLEEP, "raise SystemExit(5)"), 1, "ended with exit status 5"),
        ((SLEEP, "import os; os.kill(os.getpid(), 9)"), 1, "was ended by SIGKILL"),
        # the others notice first, and the one to blame ends after them
        (("raise SystemExit(3)", ABORT, "import time; time.sleep(1); 1 / 0"), 2, "status 1"),
        (("raise SystemExit(3)", ABORT, SLEEP), 2, "no longer answers"),
        ((ABORT, "raise SystemExit(3)"), 0, "was ended by SIGABRT"),
    ],
)
def test_the_one_to_blame_is_named_and_the_rest_are_stopped(
    codes: tuple[str, ...], rank: int, how: str
):
    start = time.monotonic()
    end, _ = run_fleet(*codes)
    assert time.monotonic() - start < 60  # not the sleeper's 600
    assert end.rank == rank
    assert how in end.how


def test_a_fleet_whose_lines_cannot_be_written_ends_as_ever_and_then_says_so(tmp_path: Path):
    def full(rank: int, line: str, to: IO[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    code = (
        f"print('a\\n' * 100_000); open({str(tmp_path / 'done')!r}, 'w')"  # more than a pipe holds
    )
    with pytest.raises(OSError, match="No space left"):
        fleet.run([[sys.executable, "-S", "-c", code]], [{}], full)
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says who is stopped")
def test_a_stopped_process_is_to_blame_for_its_peers_end():
    stop = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    end, _ = run_fleet("import time; time.sleep(1); raise SystemExit(3)", SLEEP, stop)
    assert (end.rank, end.how) == (2, "is stopped and no longer answers")


def test_a_restart_goes_on_and_keeps_the_other_flags():
    command = ["train", "--config.seed=3", "--overwrite"]
    assert launch_command._going_on(command, False) == [*command, "--resume_or_start"]
    once = launch_command._going_on(["train", "--resume"], True)
    assert once == ["train", "--resume_or_start", "--change_num_workers=mean"]
    assert launch_command._going_on(once, True) == once
