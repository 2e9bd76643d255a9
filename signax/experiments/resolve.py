"""From a name on the command line to the function that makes an optimizer: ours, or a user's own.

A short name stands in a table; `package.module:function` is imported, from the working folder too.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from signax.experiments.errors import UsageError, unknown_name

_CONTRACT = "An optimizer is function(learning_rate, *, axis_name, ...) -> GradientTransformation."


def resolve(name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Returns the function that `name` means: one of `table`, or `package.module:function`."""
    if ":" not in name:
        if name not in table:
            raise unknown_name("optimizer", name, table)
        return table[name]
    module_name, _, attribute = name.partition(":")
    function = _attribute(_module(module_name, name), attribute, name)
    if not callable(function):
        raise UsageError(f"optimizer {name!r} is {function!r}, not a function. {_CONTRACT}")
    if not _takes_axis_name(function):
        raise UsageError(
            f"optimizer {name!r} does not take axis_name, so no network link in it could know the"
            f" workers. {_CONTRACT}"
        )
    return function


def _module(module: str, name: str) -> Any:
    if os.getcwd() not in sys.path:  # a console script does not look in the working folder
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UsageError(
                f"optimizer {name!r}: no module named {error.name!r}. It is looked for where Python"
                f" looks and in {os.getcwd()}; write package.module:function, without .py."
            ) from error
        raise UsageError(f"optimizer {name!r}: {module} failed to import: {error}") from error
    except (TypeError, ValueError) as error:  # an empty or a relative name
        raise UsageError(f"optimizer {name!r}: write package.module:function.") from error


def _attribute(module: Any, attribute: str, name: str) -> Any:
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if callable(value) and key[:1] != "_"]
        error = unknown_name("function", attribute, public)
        raise UsageError(f"optimizer {name!r}, in {module.__name__}: {error}")
    return getattr(module, attribute)


def _takes_axis_name(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == "axis_name" or p.kind is p.VAR_KEYWORD for p in parameters)
