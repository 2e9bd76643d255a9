"""The documentation says everything once and leaves no public name out."""

import re
import sys
from pathlib import Path

import pytest

import signax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import api  # noqa: E402
import docstrings  # noqa: E402

PAGES = sorted(DOCS.glob("*.md"))


def test_the_api_page_has_every_public_name_once():
    page = api.page(Path(signax.__file__))
    baselines = re.findall(r"signax\.baselines\.(\w+)$", page, re.MULTILINE)
    assert sorted(baselines) == sorted(signax.baselines.__all__)
    shown = re.findall(r"signax\.(\w+)$", page, re.MULTILINE)
    modules = {"baselines", "diagnostics", "theory"}
    assert sorted(shown) == sorted(set(signax.__all__) - modules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_includes_is_there(page: Path):
    for file, options in re.findall(r"```\{include\} (\S+)\n(.*?)```", page.read_text(), re.DOTALL):
        text = (DOCS / file).read_text()
        for mark in re.findall(r": (<!--.*?-->)", options):
            assert text.count(mark) == 1, f"{page.name}: {file} has no {mark}"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_links_to_files_lead_somewhere(path: Path):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_docstrings_become_restructured_text():
    text = docstrings.to_rst("The mean |x| is `1 / M`:\n\n$$ |x| $$\n\n>>> a | b\nand $|y|$.")
    assert text == (
        "The mean \\|x\\| is ``1 / M``:\n\n.. math::\n\n    |x|\n\n\n>>> a | b\nand :math:`|y|`."
    )
