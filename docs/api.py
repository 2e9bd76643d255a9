"""The page of the public names, room by room, read from `signax/__init__.py`, which lists them."""

import ast
import re
from pathlib import Path


def page(face: Path) -> str:
    """Returns `api.md`: one section for each room of `signax/__init__.py`."""
    lines = ["# API", "", "Every public name has one import path: `signax.<name>`.", ""]
    for title, names in _rooms(face.read_text()):
        if names:
            lines += [f"## {title}", "", *_block("signax", names)]
    lines += ["## `signax.baselines`", "", "What the sign methods are compared with.", ""]
    return "\n".join([*lines, *_block("signax.baselines", _baselines(face))])


def _block(module: str, names: list[str]) -> list[str]:
    """Functions first, then the classes."""
    directives = [f".. autofunction:: {module}.{name}" for name in names if not name[0].isupper()]
    directives += [
        f".. autoclass:: {module}.{name}\n   :members:\n" for name in names if name[0].isupper()
    ]
    return ["```{eval-rst}", *directives, "```", ""]


def _baselines(face: Path) -> list[str]:
    """The public names of `signax.baselines`."""
    tree = ast.parse((face.parent / "baselines" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    return sorted(names)


def _rooms(source: str) -> list[tuple[str, list[str]]]:
    """The comments above the imports, and the names that are imported below each."""
    rooms = []
    for block in re.split(r"^# \d+\. ", source, flags=re.MULTILINE)[1:]:
        title, _, rest = block.partition("\n")
        imports = [
            node
            for node in ast.parse(rest.partition("\n__version__")[0]).body
            if isinstance(node, ast.ImportFrom) and node.module != "signax"
        ]
        rooms.append((title, [alias.name for node in imports for alias in node.names]))
    return rooms
