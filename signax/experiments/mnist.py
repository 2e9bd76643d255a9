"""MNIST through tensorflow-datasets, without TensorFlow.

The stock builder of TFDS 4.9.10 *reads* MNIST without TensorFlow, but prepares it with
`download_and_extract` and `tf.io.gfile`, which need it. The builder below inherits everything
(name, version, features, URLs, checksums) and replaces only the two methods that prepare: it
downloads, unpacks with `gzip`, and hands over PNG bytes made by Pillow. What it writes is an
ordinary TFDS dataset, `mnist/3.0.1`, stored as array_record.
"""

import contextlib
import gzip
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import mnist as stock

from signax.experiments.errors import UsageError

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IMAGE_HEADER, _LABEL_HEADER = 16, 8  # bytes of the IDX format before the data


class MNIST(stock.MNIST, skip_registration=True):
    """The stock MNIST, prepared without TensorFlow."""

    name = "mnist"

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        paths = dl_manager.download(
            {split: [self.URL + name for name in names] for split, names in _FILES.items()}
        )
        return {split: self._generate_examples(*pair) for split, pair in paths.items()}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict]]:
        pixels = _unpack(images, _IMAGE_HEADER).reshape(-1, *stock.MNIST_IMAGE_SHAPE[:2])
        pairs = zip(pixels, _unpack(labels, _LABEL_HEADER), strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": _png(image), "label": int(label)}


def load_mnist(mnist_dir: str = "") -> dict[str, np.ndarray]:
    """Returns MNIST as bytes, prepared by TFDS on the first call and cached for the next.

    Args:
      mnist_dir: folder with the four `.gz` files, for a machine without a network. Empty: the
        environment variable `SIGNAX_MNIST_DIR`; if that is unset too, TFDS downloads them.

    Returns:
      `train_images` uint8 [60000, 784], `train_labels` int32 [60000], and the same for `test`.
    """
    builder = _make_builder()
    cache = Path(builder.data_dir) / "signax_arrays.npz"
    if not cache.exists():
        _prepare(builder, mnist_dir or os.environ.get("SIGNAX_MNIST_DIR", ""))
        _write_cache(builder, cache)
    with np.load(cache) as arrays:
        return dict(arrays)


def _make_builder() -> MNIST:
    try:
        # TFDS would read the variable when it is imported, and overlook what is set in a notebook.
        return MNIST(file_format="array_record", data_dir=os.environ.get("TFDS_DATA_DIR"))
    except ValueError as error:
        raise UsageError(
            f"MNIST in the TFDS folder cannot be read without TensorFlow: {error}. "
            "Set TFDS_DATA_DIR to another folder."
        ) from error


def _prepare(builder: MNIST, mnist_dir: str) -> None:
    _check_folder(mnist_dir)
    config = tfds.download.DownloadConfig(manual_dir=mnist_dir or None)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints to stdout; that is the result's
            builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS raises a dozen unrelated types: network, checksum, disk
        where = f"from {mnist_dir}" if mnist_dir else "by download"
        raise UsageError(
            f"MNIST could not be prepared {where}: {type(error).__name__}: {error} "
            "-- without a network, put the four .gz files into a folder and pass "
            "--config.mnist_dir=FOLDER or set SIGNAX_MNIST_DIR."
        ) from error


def _check_folder(mnist_dir: str) -> None:
    if not mnist_dir:
        return
    missing = [
        name for pair in _FILES.values() for name in pair if not (Path(mnist_dir) / name).is_file()
    ]
    if missing:
        raise UsageError(f"MNIST: {mnist_dir} holds no {', '.join(missing)}.")


def _write_cache(builder: Any, cache: Path) -> None:
    """Decodes 70,000 PNGs once (13 s); a later start reads the arrays in 0.2 s."""
    arrays = {}
    for split in _FILES:
        source = builder.as_data_source(split=split)
        examples = [source[index] for index in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        arrays[f"{split}_images"] = images.reshape(len(examples), -1)
        arrays[f"{split}_labels"] = np.array([e["label"] for e in examples], np.int32)
    part = cache.with_suffix(f".{os.getpid()}.part.npz")  # two runs may start together
    np.savez(part, **arrays)
    part.replace(cache)


def _unpack(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
