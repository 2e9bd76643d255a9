"""The examples in docstrings run, and print what they say they print."""

import doctest
import importlib
import inspect
import re
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
# What is one of a few words, and what a function that takes it must say about it.
WORDS = ("ties", "wire", "scope", "noise", "sign", "aggregate", "how", "norm", "on_nonfinite")
WITH_WORDS = {
    f"{module.__name__}.{name}": (f, taken)
    for module in (signax, signax.baselines)
    for name, f in inspect.getmembers(module, inspect.isroutine)
    if (taken := [word for word in WORDS if word in inspect.signature(f).parameters])
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str):
    assert ">>> " in (inspect.getdoc(getattr(signax, name)) or ""), f"signax.{name} has no example"


@pytest.mark.parametrize("name", WITH_WORDS)
def test_what_an_unknown_word_raises_is_documented(name: str):
    function, words = WITH_WORDS[name]
    raises = (inspect.getdoc(function) or "").partition("Raises:")[2].partition("\n\n")[0]
    for word in words:
        assert re.search(rf"\b{word}\b", raises), f"{name}: {word} is missing from Raises:"
    assert ("on_nonfinite" in words) == ("FloatingPointError" in raises)
