"""The examples in docstrings run, and print what they say they print."""

import doctest
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signax
from daily import daily

PACKAGE = Path(signax.__path__[0])
FILES = [p.relative_to(PACKAGE.parent) for p in sorted(PACKAGE.rglob("*.py"))]
MODULES = [
    ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if "experiments" not in path.parts
]
# Their examples take seconds, most of it to compile votes one operation at a time.
COSTLY = {"baselines", "diagnostics", "_optimizers", "_bypass", "_columns", "_training", "_votes"}
# What every reader has imported, so that no example has to.
IMPORTED = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "signax": signax}


@pytest.mark.parametrize(
    "name", daily(MODULES, [m for m in MODULES if not COSTLY & {*m.split(".")}])
)
def test_examples_print_what_they_say(name: str):
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(module, extraglobs=IMPORTED, optionflags=options)
    assert results.failed == 0


FUNCTIONS = [name for name in signax.__all__ if inspect.isroutine(getattr(signax, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str):
    assert ">>> " in (inspect.getdoc(getattr(signax, name)) or ""), f"signax.{name} has no example"
