"""What is written in the notebooks; `pytest --nbmake notebooks` (a default here) runs them."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SOURCES = {path: json.loads(path.read_text())["cells"] for path in NOTEBOOKS}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_is_a_notebook():
    assert NOTEBOOKS


@every_notebook
def test_a_notebook_opens_with_a_colab_badge_that_leads_to_itself(path: Path):
    first = "".join(SOURCES[path][0]["source"])
    assert re.match(rf"\[!\[Open in Colab\]\(\S+\)\]\(\S+/{re.escape(path.name)}\)\n", first)


@every_notebook
def test_a_notebook_never_installs_the_registrys_signax(path: Path):
    lines = [line for cell in SOURCES[path] for line in cell["source"] if "pip install" in line]
    assert lines
    assert all("signax-optax" in line for line in lines)


@every_notebook
def test_a_notebook_is_committed_with_the_outputs_of_one_run_and_small(path: Path):
    cells = [cell for cell in SOURCES[path] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert path.stat().st_size < 100_000
