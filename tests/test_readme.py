"""The blocks of README.md, docs/ and CONTRIBUTING.md run as printed, and each fits on a screen.

A block that is run stands below a comment that names it:

    <!-- test: make_train_step -->
    ```python
    ...
    ```
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from daily import daily, thorough
from workers import run_python

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TEXT = "\n".join(page.read_text() for page in PAGES)
MARKED = re.compile(r"<!-- test: (?P<name>[\w-]+) -->\s*```python\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = {match["name"]: match["code"] for match in MARKED.finditer(TEXT)}
LOOPS = ("make_train_step", "shard_map", "vmap", "nnx", "linen", "pmap")


@pytest.mark.parametrize("name", LOOPS)
def test_the_documentation_shows_a_loop_for(name: str):
    assert name in BLOCKS, f"README.md and docs/ have no python block below <!-- test: {name} -->"


def test_the_readme_is_a_front_page():
    assert len(PAGES[0].read_text().splitlines()) <= 285


def test_every_marker_stands_above_a_python_block():
    assert len(re.findall(r"^<!-- test: ", TEXT, re.MULTILINE)) == len(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_short(name: str):
    """A whole program with a mesh of two axes, its layout and a checkpoint takes a screen."""
    most = 45 if name.startswith("sharded") else 20
    assert len([line for line in BLOCKS[name].splitlines() if line.strip()]) <= most


@pytest.mark.parametrize(
    "name",
    daily([name for name in BLOCKS if name != "own_method"], ["shard_map"]),
)
def test_a_block_runs_as_printed(name: str):
    run_python(BLOCKS[name], timeout=180, devices=None)  # as it stands there


@thorough
def test_the_method_of_contributing_is_trained_by_the_printed_command(tmp_path: Path):
    """As printed but short; the file is imported, so the block's own example runs as well."""
    (match,) = re.finditer(r"^signax (train .*quiet:quiet_signum.*)$", CONTRIBUTING, re.MULTILINE)
    (tmp_path / "quiet.py").write_text(BLOCKS["own_method"])
    short = ["num_steps=20", "eval_every=10", "hidden_size=8", "batch_size=96", "num_workers=3"]
    argv = [*shlex.split(match[1]), *(f"--config.{field}" for field in short), "--workdir=run"]
    done = run_python(
        f"import os; os.chdir({str(tmp_path)!r})\n"
        f"from signax.experiments import cli; raise SystemExit(cli.main({argv!r}))",
        timeout=180,
    )
    (printed,) = re.findall(r"^print\(.*\)  # (.*)$", BLOCKS["own_method"], re.MULTILINE)
    assert printed in done.stdout
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20
    assert rows[-1]["loss"] < rows[0]["loss"]
