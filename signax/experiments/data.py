"""Small labelled image sets that fit in memory, as bytes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from signax.experiments.default_config import Config
from signax.experiments.errors import unknown_name


class Split(NamedTuple):
    images: np.ndarray  # uint8 [num_examples, num_pixels]
    labels: np.ndarray  # int32 [num_examples]


class Dataset(NamedTuple):
    train: Split
    test: Split
    max_pixel: int
    num_classes: int


def load_dataset(config: Config) -> Dataset:
    """Loads `config.dataset`."""
    if config.dataset not in DATASETS:
        raise unknown_name("dataset", config.dataset, DATASETS)
    return DATASETS[config.dataset](config)


def _load_digits(config: Config) -> Dataset:
    """1,797 images of 8 x 8 pixels that come with scikit-learn; every fifth is for testing."""
    del config
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order].astype(np.uint8), labels[order].astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
    train = Split(images[~is_test], labels[~is_test])
    return Dataset(train, Split(images[is_test], labels[is_test]), max_pixel=16, num_classes=10)


def _load_mnist(config: Config) -> Dataset:
    from signax.experiments.mnist import load_mnist

    arrays = load_mnist(config.mnist_dir)
    train = Split(arrays["train_images"], arrays["train_labels"])
    test = Split(arrays["test_images"], arrays["test_labels"])
    return Dataset(train, test, max_pixel=255, num_classes=10)


DATASETS: dict[str, Callable[[Config], Dataset]] = {
    "digits": _load_digits,
    "mnist": _load_mnist,
}
