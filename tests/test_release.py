"""What a release promises: one version, dependencies that are imported, numbers with commands.

And a list of surviving mutants that speaks of this code.
"""

import ast
import re
import tomllib
from pathlib import Path

import signax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
# What a distribution is imported as, where that is not its own name with underscores.
MODULES = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "scikit-learn": "sklearn",
}
# Imported by tensorflow-datasets, for the images of MNIST and the files it keeps them in.
BEHIND_TFDS = {"array-record", "importlib-resources", "pillow"}


def test_the_changelog_tells_of_this_version():
    (newest, *_) = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", changelog(), re.MULTILINE)
    assert newest == signax.__version__


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_imported():
    asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    names = {re.split(r"[\s<>=!~\[;]", requirement)[0] for requirement in asked}
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "signax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in names}
    unused = {name for name, module in modules.items() if module not in imported}
    assert unused == BEHIND_TFDS


def test_the_script_of_results_runs_every_command_of_the_readme():
    script = (ROOT / "scripts" / "results.sh").read_text().replace('"', "")
    commands = re.findall(r"`signax (train --config=configs|bench|weights|figures)([^`]*)`", README)
    assert len(commands) >= 5
    for command in map("".join, commands):
        for word in command.replace("'", "").split():
            is_run = word.removesuffix(":RUN") in script or word == "NAME"
            assert is_run, f"scripts/results.sh lacks {word} of `signax {command}`"


def test_every_mutant_that_may_survive_is_one_of_a_line_that_still_stands():
    listed = tomllib.loads((ROOT / "scripts" / "survivors.toml").read_text())["survivor"]
    for survivor in listed:
        lines = map(str.strip, (ROOT / survivor["module"]).read_text().splitlines())
        assert survivor["line"] in lines, survivor
        assert survivor["line"] not in survivor["mutants"], survivor
        assert survivor["why"].endswith("."), survivor
