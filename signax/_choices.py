"""An argument that is one of a few words."""

from typing import Any, get_args


def require(value: Any, choices: Any, function: str, argument: str) -> None:
    """Raises a `ValueError` unless `value` is one of the `Literal` type's choices."""
    if value not in get_args(choices):
        raise ValueError(
            f"signax.{function}: unknown {argument} {value!r}; choose one of {get_args(choices)}."
        )
