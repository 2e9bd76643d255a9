"""Which rows of a table are tested every day, and which by CI alone."""

from collections.abc import Iterable
from typing import Any

import pytest

thorough = pytest.mark.thorough


def daily(rows: Iterable[Any], chosen: Iterable[Any]) -> list[Any]:
    """Rows for `pytest.mark.parametrize`, of which those not chosen are marked thorough.

    A tuple is the values of several arguments.
    """
    chosen = list(chosen)
    values = lambda row: row if isinstance(row, tuple) else (row,)  # noqa: E731
    return [row if row in chosen else pytest.param(*values(row), marks=thorough) for row in rows]
