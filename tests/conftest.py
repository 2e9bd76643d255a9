"""Eight CPU devices, strict JAX settings, and the fixtures that all tests share."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test's program runs for milliseconds and compiles for seconds, most of them LLVM's optimizer at
# work; XLA's own passes (fusions, collectives, memory) run all the same. Where the machine code
# itself is what is tested, `pytestmark = pytest.mark.optimized`; CI sets 0 for the thorough tests.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

from daily import thorough
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


@pytest.fixture(scope="module", autouse=True)
def _optimized(request: pytest.FixtureRequest):
    """Compiles the programs of a module marked `optimized` as a user's are."""
    as_set = jax.config.read("jax_disable_most_optimizations")
    is_off = as_set and request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", is_off)
    yield
    jax.config.update("jax_disable_most_optimizations", as_set)


@pytest.fixture(params=MAPPINGS)
def mapped(request: pytest.FixtureRequest) -> Mapped:
    """`mapped(fn, *args, num_workers=None)`: M workers under vmap, pmap and shard_map."""
    return Mapped(request.param)


@pytest.fixture
def strict_dtypes():
    """No implicit promotion of dtypes: `pytestmark = pytest.mark.usefixtures("strict_dtypes")`.

    Not for all tests: Optax's own `ema`, `adam` and schedules promote an int32 count to float.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield
