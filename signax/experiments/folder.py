"""A folder to write in, made and found to be of use before anything is computed."""

import errno
import os
from pathlib import Path

from signax.experiments.errors import UsageError


def named(text: str) -> Path:
    """What `--workdir` says."""
    if not text:  # as `--workdir=$DIR` without a DIR: the current folder is nobody's wish
        raise UsageError("--workdir= names no folder: write --workdir=DIR, or leave it out.")
    return Path(text)


def make_folder(path: Path) -> Path:
    """Makes the folder and returns it; where nothing can be written, a `UsageError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a work directory in which nothing can be written."""
    is_file = isinstance(error, FileExistsError)
    reason = "it is a file" if is_file else error.strerror or error
    return UsageError(
        f"cannot write in the work directory {path}: {reason}. Pass another: --workdir=DIR."
    )
