"""`config.optimizer.name=module:function`: any optimizer, and errors that name the cause."""

from pathlib import Path

import pytest

import signax
from signax.experiments.errors import UsageError
from signax.experiments.optimizers import OPTIMIZERS
from signax.experiments.resolve import resolve


def test_a_module_and_a_function_are_found_also_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert resolve("signax:ssdm", OPTIMIZERS) is signax.ssdm
    assert resolve("signax.baselines:power_sgd", {}) is resolve("power_sgd", OPTIMIZERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_method.py").write_text("def mine(learning_rate, *, axis_name): return axis_name\n")
    assert resolve("own_method:mine", {})(0.1, axis_name="workers") == "workers"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdm", "unknown optimizer 'sdm'. Did you mean 'ssdm'"),
        ("no_such_module:f", "no module named 'no_such_module'"),
        ("signax.no_such:f", "no module named 'signax.no_such'"),
        ("signax:signun", "unknown function 'signun'. Did you mean 'signum'"),
        ("signax:__version__", "not a function"),
        ("optax:adam", "does not take axis_name"),
        (":f", "write package.module:function"),
    ],
)
def test_a_name_that_means_nothing_is_explained(name: str, message: str):
    with pytest.raises(UsageError, match=message.replace(".", r"\.").replace("(", r"\(")):
        resolve(name, OPTIMIZERS)
