"""The README's loops run as printed, and each fits on a screen.

A block that is run stands below a comment that names it:

    <!-- test: make_train_step -->
    ```python
    ...
    ```
"""

import re
from pathlib import Path

import pytest

from workers import run_python

README = (Path(__file__).parents[1] / "README.md").read_text()
MARKED = re.compile(r"<!-- test: (?P<name>[\w-]+) -->\s*```python\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = {match["name"]: match["code"] for match in MARKED.finditer(README)}
LOOPS = ("make_train_step", "shard_map", "vmap", "nnx", "linen", "pmap")


@pytest.mark.parametrize("name", LOOPS)
def test_the_readme_shows_a_loop_for(name: str):
    assert name in BLOCKS, f"README.md has no python block below <!-- test: {name} -->"


def test_every_marker_stands_above_a_python_block():
    assert README.count("<!-- test: ") == len(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_at_most_20_lines(name: str):
    assert len([line for line in BLOCKS[name].splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_runs_as_printed(name: str):
    run_python(BLOCKS[name], timeout=180)
