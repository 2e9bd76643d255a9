"""Arguments: one of a few words, a number, one that shapes depend on, a transformation."""

import numbers
import operator
from typing import Any, get_args

import jax
import numpy as np


def require(value: Any, choices: Any, function: str, argument: str) -> None:
    """Raises a `ValueError` unless `value` is one of the `Literal` type's choices."""
    if value not in get_args(choices):
        raise ValueError(
            f"signax.{function}: unknown {argument} {value!r}; choose one of {get_args(choices)}."
        )


def require_number(
    value: Any,
    function: str,
    argument: str,
    instead: str = "(The axis is a keyword, axis_name=...)",
) -> None:
    """Raises a `TypeError` for what is no real number, traced or not."""
    is_array = isinstance(value, (jax.Array, np.ndarray, np.generic)) and value.ndim == 0
    if not (is_array or isinstance(value, numbers.Real)) or isinstance(value, bool):
        raise TypeError(f"signax.{function}: {argument} must be a number, got {value!r}. {instead}")


def as_integer(value: Any) -> int | None:
    """The value as an int of Python, NumPy's and JAX's too; None for what is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def require_positive_integer(value: Any, function: str, argument: str, what: str) -> int:
    """The value as an int of Python; a `ValueError` unless it is a whole number of at least 1."""
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(
            f"signax.{function}: {argument} must be an integer of at least 1, got {value!r}. {what}"
        )
    return number


def require_transformation(tx: Any, call: str, argument: str = "tx") -> None:
    """Raises a `TypeError` for what is no Optax transformation, such as parameters in its place.

    `call` is the right one without its module: "init_opt_state(tx, params, mesh)".
    """
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(
            f"signax.{call.partition('(')[0]}: {argument} must be an Optax transformation, got a"
            f" {type(tx).__name__}. Write signax.{call}."
        )


def require_static(value: Any, function: str, argument: str) -> None:
    """Raises a `TypeError` for an array where the number decides on shapes."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"signax.{function}: the shapes of what is sent depend on {argument}, so it must be a"
            " number of Python and no JAX array. optax.inject_hyperparams makes arrays of numbers:"
            f' write optax.inject_hyperparams(..., static_args="{argument}").'
        )
