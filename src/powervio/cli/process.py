"""What the command's process owes its surroundings: standard files that are there, signals that leave nothing behind,
output that may fail.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from contextlib import suppress

PATIENCE = 2.0
"""Seconds after the first signal in which more of them change nothing, for what is undone then is done in less. Who is
still waiting after that ends the process at once."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command; SIGHUP only if nobody (nohup) had it ignored."""

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
_SHOW_CURSOR = b"\x1b[?25h"

_first: float | None = None
_ended_by = 0


def open_standard_files() -> None:
    """Open /dev/null where one of the descriptors 0 to 2 is missing, so that no lock or pipe of ours comes to be there.

    Text that cannot be encoded is written with escapes.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def end_on_signals() -> None:
    """End by an exception, so that temporary folders, partitions and locks go; see `PATIENCE`."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _ended)


def _ended(number: int, frame: object) -> None:
    global _first, _ended_by  # noqa: PLW0603 - there is one process
    if _first is None:
        _first = time.monotonic()
        _ended_by = number
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    if time.monotonic() - _first > PATIENCE:
        show_cursor()
        os._exit(128 + number)


def ended_by() -> int:
    """The signal that ends the command, 0 if none does: what fails from then on fails because of it."""
    return _ended_by


def let_go() -> None:
    """The command is over: signals end what is left of the process without a word."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if _first is not None:
        show_cursor()


def show_cursor() -> None:
    """A progress bar hides it."""
    for fd in (1, 2):
        with suppress(OSError):
            if os.isatty(fd):
                os.write(fd, _SHOW_CURSOR)


def hold_signals() -> set[int]:
    """Keep the signals that end a command waiting, in this thread and those it makes; returns what waited before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ENDING))


def forget_signals(before: set[int]) -> None:
    """Forget the signals that wait, and go back to what `hold_signals` returned: what they asked for is done."""
    for number in ENDING:
        handler = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN)
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def give_up_output() -> None:
    """Drop what waits to be written to standard output: Python would fail on it again when it flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    with suppress(OSError):
        sys.stdout.flush()


def is_output_failure(error: OSError) -> bool:
    """Whether an error that no command explained is one of writing its output."""
    return error.filename is None and error.errno in _OUTPUT_ERRORS
