"""Text that every machine has: the sources of Python's standard library, as bytes.

Left out are tests, installed packages, and tables in place of prose and code (`encodings`,
`pydoc_data`, what `configure` wrote): about 9 million bytes remain. The split is by file and by a
hash of the file's name, so that no test file is ever trained on, and a file lies on the same side
in every version of Python. Its contents do depend on the version, and so do the numbers, a little.
"""

import functools
import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

from signax.experiments.errors import UsageError

_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data",
}  # fmt: skip
_WRITTEN_BY_CONFIGURE = ("_sysconfigdata", "config-")
_TEST_SHARE = 0.1  # of the files


class Windows(NamedTuple):
    """Pieces of T + 1 bytes, of which all but the first are to be foretold."""

    text: np.ndarray  # uint8 [num_windows, T + 1]; the last byte is the next window's first
    files: np.ndarray  # int32 [num_windows], which file a window is from

    def spread(self, num_bytes: int) -> "Windows":
        """About so many bytes of all, evenly spread."""
        wanted = max(1, num_bytes // (self.text.shape[1] - 1))
        rows = np.linspace(0, len(self.text) - 1, min(wanted, len(self.text))).astype(int)
        return Windows(self.text[rows], self.files[rows])


class Text(NamedTuple):
    """The library's sources, cut up."""

    train: Windows
    test: Windows
    fingerprint: str


@functools.lru_cache(maxsize=1)  # several runs in one process
def load_text(sequence_length: int, root: Path | None = None) -> Text:
    """Reads the sources below `root`: Python's own, where none is given.

    Args:
      sequence_length: T, how many bytes of a window are foretold.
      root: a folder.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    contents = {name: (root / name).read_bytes() for name in names if _is_source(name)}
    digest = hashlib.sha256(b"\0".join(contents.values())).hexdigest()[:12]
    size = sum(map(len, contents.values()))
    parts = (
        _windows([text for name, text in contents.items() if is_test(name) == which],
                 sequence_length)
        for which in (False, True)
    )  # fmt: skip
    text = Text(*parts, fingerprint=f"{len(contents)} files, {size:,} bytes, sha256 {digest}")
    if not len(text.train.text) or not len(text.test.text):
        raise UsageError(
            f"the text in {root} ({text.fingerprint}) is too short to be cut into pieces of"
            f" config.text.sequence_length={sequence_length} for training and for testing."
        )
    return text


def is_test(name: str) -> bool:
    """Whether the file of this name, written with slashes, is for testing."""
    first = hashlib.sha256(name.encode()).digest()[:4]
    return int.from_bytes(first, "big") < _TEST_SHARE * 2**32


def _is_source(name: str) -> bool:
    parts = name.split("/")
    return not _LEFT_OUT & {*parts} and not parts[0].startswith(_WRITTEN_BY_CONFIGURE)


def _windows(files: list[bytes], length: int) -> Windows:
    """Every file from its start; what is left at its end is dropped."""
    pieces, owners = [np.zeros((0, length + 1), np.uint8)], [np.zeros(0, np.int32)]
    for index, content in enumerate(files):
        text = np.frombuffer(content, np.uint8)
        if len(text) > length:
            windows = np.lib.stride_tricks.sliding_window_view(text, length + 1)[::length]
            pieces.append(windows)
            owners.append(np.full(len(windows), index, np.int32))
    return Windows(np.concatenate(pieces), np.concatenate(owners))
