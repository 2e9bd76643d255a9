"""Ctrl-C asks the run to stop after the steps in hand; a second Ctrl-C stops it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM has come.

    Only the main thread may install handlers; elsewhere nothing is caught.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        del frame
        asked.set()
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {
        signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)
    }
    for signum in before:
        signal.signal(signum, ask)
    try:
        yield asked.is_set
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
