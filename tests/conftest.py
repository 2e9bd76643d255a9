"""Eight CPU devices, strict JAX settings, and the fixtures that all tests share."""

import gc
import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA runs each CPU device, and the parts of its kernels, in one pool of as many threads as there
# are devices: where other processes keep the cores busy, all may come to wait for each other.
os.environ.setdefault("NPROC", "16")
# A test's program runs for milliseconds and compiles for a second, most of it in the making of
# machine code. So here that is made quickly; XLA's own passes (fusions, collectives, memory) run as
# ever. CI compiles files marked `machine_code` as a user does.
if os.environ.setdefault("SIGNAX_QUICK_COMPILE", "1") == "1":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # no test reads lines of source from HLO
    # Parts of a program would be made by many threads, which pays with more than two cores.
    flags = "--xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # a later one aborts at this flag
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and few cycles

import hypothesis
import jax
import pytest

from daily import daily, thorough
from workers import MAPPINGS, Mapped

# Before the first use of JAX: afterwards the number of devices is fixed.
jax.config.update("jax_num_cpu_devices", 8)
# Eight devices share a thread pool of as many threads as there are cores: two programs in flight at
# once wait in it for each other's collectives, and hang. One at a time cannot.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "raise")

# One order of examples on every machine, and no clock: a compilation takes as long as it takes.
hypothesis.settings.register_profile("signax", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("signax")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Notebooks take up to a minute each."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(thorough)


# Every day without pmap, which in JAX is shard_map in other words.
@pytest.fixture(params=daily(MAPPINGS, ["vmap", "shard_map"]))
def mapped(request: pytest.FixtureRequest) -> Mapped:
    """`mapped(fn, *args, num_workers=None)`: M workers under vmap, pmap and shard_map."""
    return Mapped(request.param)


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a command may leave its runs: `usefixtures("in_an_empty_folder")`."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def strict_dtypes():
    """No implicit promotion of dtypes: `pytestmark = pytest.mark.usefixtures("strict_dtypes")`.

    Not for all tests: Optax's own `ema`, `adam` and schedules promote an int32 count to float.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield
