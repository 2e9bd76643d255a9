"""Data: what each worker owns, in which order it sees it, and MNIST without TensorFlow."""

import gzip
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from daily import thorough
from signax.experiments import default_config
from signax.experiments.data import load_dataset
from signax.experiments.errors import UsageError
from signax.experiments.feed import Order, place, take_batch
from signax.experiments.partition import split_examples
from signax.experiments.workers import make_mesh
from workers import run_python

LABELS = np.arange(103) % 10


def test_digits_need_no_download_and_no_example_is_in_both_splits():
    data = load_dataset(default_config.get_config())
    assert len(data.train.labels) + len(data.test.labels) == 1797
    assert data.train.images.dtype == np.uint8
    assert data.train.images.max() == data.max_pixel
    train, test = ({image.tobytes() for image in split.images} for split in (data.train, data.test))
    assert not train & test


@pytest.mark.parametrize("how", ["iid", "by_label"])
@pytest.mark.parametrize("num_workers", [1, 5, 8])
def test_every_example_has_exactly_one_owner(how: str, num_workers: int):
    owned = split_examples(how, LABELS, num_workers, seed=0)
    assert sorted(np.concatenate(owned)) == list(range(len(LABELS)))


def test_by_label_gives_worker_n_the_labels_n_plus_multiples_of_m():
    owned = split_examples("by_label", LABELS, 4, seed=0)
    labels = [sorted({*LABELS[examples].tolist()}) for examples in owned]
    assert labels == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


def test_a_worker_without_an_example_is_an_error():
    with pytest.raises(UsageError, match="worker 10 of 12"):
        split_examples("by_label", LABELS, 12, seed=0)


def test_an_epoch_shows_no_example_twice():
    order = Order([20, 23, 31], batch_size=15, seed=0)
    rows = order.rows(0, order.steps_per_epoch)
    assert rows.shape == (4, 3, 5)
    for worker in range(3):
        assert len(np.unique(rows[:, worker])) == 20


def test_any_step_can_be_replayed():
    whole = Order([20, 23], batch_size=10, seed=3).rows(0, 11)
    np.testing.assert_array_equal(Order([20, 23], batch_size=10, seed=3).rows(6, 5), whole[6:])
    assert not np.array_equal(whole[:4], whole[4:8]), "two epochs in the same order"


def test_the_nearest_batch_that_is_divisible_is_named():
    with pytest.raises(UsageError, match="batch_size=100 is not divisible by 8 workers: 96 is"):
        Order([50] * 8, batch_size=100, seed=0)


def test_a_batch_larger_than_a_worker_s_data_is_an_error():
    with pytest.raises(UsageError, match="lower it to 20 or less"):
        Order([10, 30], batch_size=22, seed=0)


def test_each_worker_gets_its_own_rows_from_its_own_memory():
    mesh = make_mesh(4)
    owned = [np.arange(start, start + 3 + start) for start in (0, 3, 9, 21)]
    images = np.arange(60, dtype=np.uint8)[:, None]
    shards = place({"image": images, "label": np.arange(60, dtype=np.int32)}, owned, mesh)
    placed = shards.examples["image"].addressable_shards
    assert {shard.data.shape for shard in placed} == {(1, 24, 1)}
    assert shards.is_example.sum(axis=1).tolist() == [len(mine) for mine in owned]
    rows = np.array([[0, 2], [5, 1], [3, 3], [20, 0]], np.int32)
    compiled = jax.jit(take_batch, static_argnums=2).lower(shards, rows, mesh).compile()
    batch = compiled(shards, jax.device_put(rows, shards.is_example.sharding))
    np.testing.assert_array_equal(batch["label"], [0, 2, 8, 4, 12, 12, 41, 21])
    np.testing.assert_array_equal(batch["image"][:, 0], batch["label"])
    hlo = compiled.as_text() or ""
    assert not any(word in hlo for word in ("all-gather", "all-reduce", "all-to-all"))


# MNIST. TFDS reads TFDS_DATA_DIR once, when it is imported: hence a fresh Python with a folder of
# its own, and the folder of the person who runs the tests stays as it is.

needs_mnist = pytest.mark.skipif(
    "SIGNAX_MNIST_DIR" not in os.environ,
    reason="SIGNAX_MNIST_DIR does not say where MNIST's four .gz files are",
)

LOAD = """
import sys
from signax.experiments import mnist
arrays = mnist.load_mnist()
assert arrays["train_images"].shape == (60_000, 784) and arrays["train_images"].dtype == "uint8"
assert arrays["test_images"].shape == (10_000, 784)
assert arrays["train_labels"].tolist().count(0) == 5923
again = mnist.load_mnist("no-such-folder")  # cached: nobody looks there
assert all((again[name] == array).all() for name, array in arrays.items())
assert "tensorflow" not in sys.modules
"""

REFUSE = """
from signax.experiments import mnist
try:
    mnist.load_mnist({folder!r})
except mnist.UsageError as error:
    print(error)
"""


@needs_mnist
@thorough
def test_mnist_is_prepared_read_and_cached_without_tensorflow(tmp_path: Path):
    assert run_python(LOAD, timeout=300, TFDS_DATA_DIR=str(tmp_path)).stdout == ""


@thorough
def test_a_missing_file_of_mnist_is_named(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    done = run_python(REFUSE.format(folder=str(tmp_path)), TFDS_DATA_DIR=str(tmp_path / "tfds"))
    assert "holds no train-labels-idx1-ubyte.gz, t10k-images" in done.stdout


@thorough
def test_a_wrong_file_of_mnist_is_refused_by_its_checksum(tmp_path: Path):
    for split in ("train", "t10k"):
        for part in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{split}-{part}-ubyte.gz").write_bytes(gzip.compress(b"not a digit"))
    done = run_python(REFUSE.format(folder=str(tmp_path)), TFDS_DATA_DIR=str(tmp_path / "tfds"))
    assert "could not be prepared" in done.stdout
    assert "hecksum" in done.stdout
    assert done.stdout.count("\n") == 1, "one line"
