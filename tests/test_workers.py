"""The fixtures themselves: what every other test leans on."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workers import WORKERS, Mapped, run_python


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


def test_strict_dtypes_refuse_implicit_promotion(strict_dtypes: None):
    with pytest.raises(jax.dtypes.TypePromotionError, match="strict"):
        jnp.add(jnp.float32(1), jnp.int32(1))
