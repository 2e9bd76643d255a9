"""The fixtures themselves: what every other test leans on."""

import ast
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workers import WORKERS, Mapped, run_python

pytestmark = pytest.mark.machine_code


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8])
def test_row_w_of_every_argument_belongs_to_worker_w(mapped: Mapped, num_workers: int):
    rows = {"a": jnp.arange(num_workers * 3.0).reshape(num_workers, 3), "none": None}
    keys = jax.random.split(jax.random.key(0), num_workers)

    def fn(tree, key):
        return tree, jax.lax.axis_index(WORKERS), jax.lax.axis_size(WORKERS), key

    out, index, size, out_keys = mapped(fn, rows, keys)
    np.testing.assert_array_equal(out["a"], rows["a"])
    np.testing.assert_array_equal(index, np.arange(num_workers))
    np.testing.assert_array_equal(size, np.full(num_workers, num_workers))
    assert bool((out_keys == keys).all())


def test_replicated_outputs_come_back_once_per_worker(mapped: Mapped):
    total = mapped(lambda x: jax.lax.psum(x, WORKERS), jnp.arange(8.0))
    np.testing.assert_array_equal(total, np.full(8, 28.0))


def test_a_function_without_arguments_runs_on_num_workers(mapped: Mapped):
    out = mapped(lambda: jax.lax.axis_index(WORKERS), num_workers=5)
    np.testing.assert_array_equal(out, np.arange(5))


def test_a_snippet_runs_on_the_devices_it_asked_for():
    assert run_python("import jax; print(jax.device_count())", devices=3).stdout == "3\n"


def test_a_snippet_that_fails_shows_its_traceback():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("1 / 0")


def test_a_snippet_that_hangs_is_ended_at_its_time_limit():
    with pytest.raises(subprocess.TimeoutExpired):
        run_python("import time; time.sleep(60)", timeout=1)


TESTS = sorted(Path(__file__).parent.glob("*.py"))
WAITS = ("run", "check_call", "check_output", "call", "communicate", "wait")


def waits_in(path: Path) -> list[ast.Call]:
    """The calls that wait for another process."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in WAITS]
    return [c for c in named if ast.unparse(c.func.value) in ("subprocess", "process")]


@pytest.mark.parametrize("path", [p for p in TESTS if waits_in(p)], ids=lambda p: p.name)
def test_every_wait_for_another_process_has_a_time_limit(path: Path):
    for call in waits_in(path):
        assert "timeout" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


def test_strict_dtypes_refuse_implicit_promotion(strict_dtypes: None):
    with pytest.raises(jax.dtypes.TypePromotionError, match="strict"):
        jnp.add(jnp.float32(1), jnp.int32(1))
