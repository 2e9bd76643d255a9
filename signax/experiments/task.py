"""What is learnt: examples, a model with its loss, and the number by which it is judged.

Everything behind this file (feeding, training, reports, curves) is the same for images and for
text. A new kind of data is one more `make_*` function in `TASKS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from signax.experiments import model, text, transformer
from signax.experiments.data import DATASETS, Split, load_dataset
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError, unknown_name
from signax.experiments.metric import ACCURACY, BITS_PER_BYTE, Metric

Examples = dict[str, np.ndarray]  # [num_examples, ...]: a batch is some rows of each


class Part(NamedTuple):
    """Examples, and what a partition by label goes by."""

    examples: Examples
    labels: np.ndarray  # int [num_examples]


class Task(NamedTuple):
    """All that training needs to know of what is learnt.

    A model has `loss(params, batch) -> (loss, {metric.name: ...})` for one worker's batch, and
    `score(params, examples, is_example) -> metric`, for [M, num_rows, ...] padded rows.
    """

    metric: Metric
    train: Part
    test: Part
    scored_train: Part  # of `train`, what is judged at the end of a run
    make_model: Callable[[int], tuple[Any, Any]]  # seed -> the model, its first parameters
    fingerprint: str  # equal on all hosts, where each reads its own copy; "": not compared


def make_task(config: Config) -> Task:
    """Returns the task of `config.dataset`."""
    if config.dataset not in TASKS:
        raise unknown_name("dataset", config.dataset, TASKS)
    return TASKS[config.dataset](config)


def _images_to_classes(config: Config) -> Task:
    data = load_dataset(config)
    train = _image_part(data.train)

    def make_model(seed: int) -> tuple[Any, Any]:
        num_pixels = data.train.images.shape[1]
        return model.make_model(
            num_pixels, config.hidden_size, data.num_classes, data.max_pixel, seed
        )

    return Task(ACCURACY, train, _image_part(data.test), train, make_model, "")


def _image_part(split: Split) -> Part:
    return Part({"image": split.images, "label": split.labels}, split.labels)


def _bytes_to_next_byte(config: Config) -> Task:
    sizes = config.text
    if config.hidden_size % sizes.num_heads:
        raise UsageError(
            f"config.hidden_size={config.hidden_size} is not divisible by"
            f" config.text.num_heads={sizes.num_heads}: a head is an equal share of the width."
        )
    corpus = text.load_text(sizes.sequence_length)

    def make_model(seed: int) -> tuple[Any, Any]:
        return transformer.make_model(
            sizes.sequence_length, config.hidden_size, sizes.num_layers, sizes.num_heads, seed
        )

    train, test, scored = (
        Part({"text": windows.text}, windows.files)
        for windows in (
            corpus.train,
            corpus.test.spread(sizes.scored_bytes),
            corpus.train.spread(sizes.scored_bytes),
        )
    )
    return Task(BITS_PER_BYTE, train, test, scored, make_model, corpus.fingerprint)


TASKS: dict[str, Callable[[Config], Task]] = {
    **dict.fromkeys(DATASETS, _images_to_classes),
    "stdlib": _bytes_to_next_byte,
}
