"""Docstrings are written as Markdown, equations between dollars; Sphinx reads reStructuredText."""

import re

_PART = re.compile(
    r"^(?P<indent> *)\$\$(?P<displayed>.+?)\$\$"
    r"|(?P<doctest>^ *(?:>>>|\.\.\.) [^\n]*$)"
    r"|(?P<table>(?:^\|[^\n]*\|$\n?)+)"
    r"|(?<!\$)\$(?!\$)(?P<inline>[^$]+?)\$(?!\$)"
    r"|(?<![`:])`(?P<code>[^`]+)`(?!`)"
    r"|(?P<bar>\|)",
    re.MULTILINE | re.DOTALL,
)


def to_rst(text: str) -> str:
    """Turns equations, code spans and tables into reStructuredText."""
    return _PART.sub(_translated, text)


def _translated(part: re.Match[str]) -> str:
    kind = part.lastgroup
    if kind == "displayed":
        indent = part["indent"]
        lines = [f"{indent}    {line.strip()}" for line in part["displayed"].strip().splitlines()]
        return "\n".join([f"{indent}.. math::", "", *lines, ""])
    if kind == "inline":
        return f":math:`{' '.join(part['inline'].split())}`"
    if kind == "code":
        return f"``{' '.join(part['code'].split())}``"
    if kind == "table":
        return _list_table(part["table"])
    if kind == "bar":
        return r"\|"  # a bare bar would begin a substitution
    return part[0]


def _list_table(table: str) -> str:
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows[:1] + rows[2:]:
        marks = ["*", *" " * (len(row) - 1)]
        lines += [
            f"   {mark} - {to_rst(cell.strip())}" for mark, cell in zip(marks, row, strict=True)
        ]
    return "\n".join([*lines, "", ""])
