"""A temporary folder that signals cannot leave behind."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def scratch_folder(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A folder for as long as this is entered; a signal while it is made or removed takes effect afterwards."""
    folder: str | None = None
    try:
        with _undisturbed():  # mkdir takes its time on a busy disk
            folder = tempfile.mkdtemp(prefix=prefix, dir=place)
        yield Path(folder)
    finally:
        if folder is not None:
            try:
                with _undisturbed():
                    shutil.rmtree(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # if a signal came just before


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Python's signal handlers wait. (Blocking the signals would not: another thread may take them.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    waiting = [number for number, handler in handlers.items() if callable(handler)]
    for number in waiting:
        signal.signal(number, lambda came_now, frame: came.append(came_now))
    try:
        yield
    finally:
        for number in waiting:
            signal.signal(number, handlers[number])
    for late in came:
        signal.raise_signal(late)
