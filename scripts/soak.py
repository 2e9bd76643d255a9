"""A soak: two processes train for long, and one of them is killed again and again.

    python3 -m uv run scripts/soak.py                              # 20,000 steps, 9 kills
    python3 -m uv run scripts/soak.py --steps=2000 --kill_every=500

Trains the digits twice with `signax launch -n 2`: left alone, and with a process (the worker and
the coordinator in turn) killed by SIGKILL every `--kill_every` steps, from which the launcher
starts all again at the last checkpoint. It fails unless both end with the same bits of loss and
accuracy, and no process grows: not from a tenth of the quiet run to its end, nor from the first
life after a kill to the last. Replicas are compared every 100 steps by the run itself. Linux only.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

NUM_PROCESSES = 2
GROWTH = 1.05  # of a process's memory from a tenth of the steps to the last
PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """Where a run was, and how large its processes."""

    pids: tuple[int, ...]
    step: int
    megabytes: tuple[float, ...]


def main() -> None:
    """Runs both, compares, and says what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--kill_every", type=int, default=2_000)
    parser.add_argument("--workdir", type=Path, default=Path("runs/soak"))
    flags = parser.parse_args()
    alone, num_restarts = _run(flags.workdir / "alone", flags.steps, [])
    assert num_restarts == 0
    kills = range(flags.kill_every, flags.steps, flags.kill_every)
    killed, num_restarts = _run(flags.workdir / "killed", flags.steps, kills)
    ends = [_end(flags.workdir / name) for name in ("alone", "killed")]
    print(f"left alone {ends[0]}\nkilled     {ends[1]}, {num_restarts} restarts")
    # At the last step a process gives its memory back.
    later = [sample for sample in alone if flags.steps // 10 <= sample.step < flags.steps]
    lives = _lives(killed)
    growth = {
        "left alone": _growth(later[0], later[-1]),
        "life to life": _growth(lives[1][-1], lives[-2][-1]),  # the last but one was as long
    }
    print(f"largest process {max(max(sample.megabytes) for sample in alone + killed):.0f} MB")
    print("grew by   ", ", ".join(f"{100 * (g - 1):.1f} % ({name})" for name, g in growth.items()))
    _require(ends[0] == ends[1], "the killed run ended elsewhere")
    _require(num_restarts == len(kills), f"{len(kills)} kills, but {num_restarts} restarts")
    _require(max(growth.values()) <= GROWTH, "a process grew")


def _end(workdir: Path) -> dict[str, float]:
    """Where a run ended."""
    result = json.loads((workdir / "result.json").read_text())
    *_, last = (workdir / "metrics.jsonl").read_text().splitlines()
    return {**{k: result[k] for k in ("step", "test_accuracy")}, "loss": json.loads(last)["loss"]}


def _run(workdir: Path, num_steps: int, kills: Sequence[int]) -> tuple[list[Sample], int]:
    """One run, its samples, and how often it was started again."""
    command = [
        *(sys.executable, "-m", "signax.experiments.cli", "launch", f"-n={NUM_PROCESSES}"),
        *(f"--restarts={len(kills)}", "--", "train", f"--workdir={workdir}", "--overwrite"),
        *("--config.num_workers=2", f"--config.num_steps={num_steps}"),
        *("--config.eval_every=100", "--config.checkpoint_every=500", "--check_sync_every=100"),
    ]
    print("$", " ".join(["signax", *command[3:]]), flush=True)
    samples, waiting, log = [], list(kills), workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    with log.open("w") as output:
        launcher = subprocess.Popen(command, stdout=output, stderr=output)
        with _ended(launcher):
            while launcher.poll() is None:
                time.sleep(0.1)
                sample = _look(launcher.pid, workdir)
                if sample is None:
                    continue
                samples.append(sample)
                if waiting and sample.step >= waiting[0]:
                    victim = sample.pids[len(waiting) % NUM_PROCESSES]
                    print(f"step {sample.step:,}: kill -9 of process {victim}", flush=True)
                    os.kill(victim, signal.SIGKILL)
                    waiting.pop(0)
                    while _children(launcher.pid) == sample.pids:
                        time.sleep(0.1)
    said = log.read_text()
    _require(launcher.returncode == 0, f"the run ended with {launcher.returncode}: {said[-2000:]}")
    return samples, said.count("; restart ")


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _look(launcher: int, workdir: Path) -> Sample | None:
    """The run as it is now; None where it is between two lives or has no metrics yet."""
    pids = _children(launcher)
    try:
        *_, last = (workdir / "metrics.jsonl").read_text().splitlines()
        megabytes = tuple(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6 for pid in pids
        )
        step = json.loads(last)["step"]
    except (OSError, ValueError, IndexError):
        return None
    return Sample(pids, step, megabytes) if len(pids) == NUM_PROCESSES else None


def _children(pid: int) -> tuple[int, ...]:
    """The processes that a process started, oldest first."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return tuple(map(int, text.split()))
    return ()


def _lives(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Cut where the processes are others."""
    lives: list[list[Sample]] = []
    for sample in samples:
        if not lives or lives[-1][-1].pids != sample.pids:
            lives.append([])
        lives[-1].append(sample)
    return lives


def _growth(before: Sample, after: Sample) -> float:
    """How many times as large the process is that grew most."""
    return max(b / a for a, b in zip(before.megabytes, after.megabytes, strict=True))


def _require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"scripts/soak.py: {message}")


if __name__ == "__main__":
    main()
