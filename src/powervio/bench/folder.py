"""What a signal must not break into: making and removing a temporary folder, and an event loop."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def scratch_folder(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A folder for as long as this is entered; a signal while it is made or removed takes effect afterwards."""
    folder: str | None = None
    try:
        with signals_wait():  # mkdir takes its time on a busy disk
            folder = tempfile.mkdtemp(prefix=prefix, dir=place)
        yield Path(folder)
    finally:
        if folder is not None:
            try:
                with signals_wait():
                    shutil.rmtree(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # if a signal came just before


@contextmanager
def signals_wait(tell: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let Python's signal handlers wait until this is left; `tell` is called when one has to.

    (Blocking the signals would not do: another thread may take them.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, frame: object) -> None:
        came.append(number)
        tell()

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    waiting = [number for number, handler in handlers.items() if callable(handler)]
    for number in waiting:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number in waiting:
            signal.signal(number, handlers[number])
        for late in came:
            signal.raise_signal(late)
