# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The hypervisor's lock, which each hcall takes: as `threading.Lock`, and a few instructions for compiled callers.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import check_signals, mutex_give, mutex_try, mutex_wait, pointer


@cython.final
@cython.cclass
class HypervisorLock:
    """Not reentrant, without an owner, and not fair; who waits for it does so without the interpreter lock.

    A waiting thread takes signals: what a handler raises ends the wait, and the lock is not held then.
    """

    _word: cython.p_uchar
    _book: bytearray

    def __init__(self) -> None:
        self._book = bytearray(4)
        self._word = pointer(self._book)

    @cython.ccall
    @cython.exceptval(-1)
    def acquire(self, blocking: cython.bint = True) -> cython.bint:
        """Take it, after a wait if need be; False when it is held and `blocking` is not set."""
        if mutex_try(self._word) != 0:
            return True
        return blocking and self._wait()

    @cython.ccall
    @cython.exceptval(check=False)
    def release(self) -> cython.void:
        """Give it back. Whoever does has taken it."""
        mutex_give(self._word)

    @cython.cfunc
    @cython.exceptval(-1)
    def _wait(self) -> cython.bint:
        code: cython.int = -1
        while code < 0:
            with cython.nogil:
                code = mutex_wait(self._word)
            if code < 0:
                check_signals()
        return True

    def locked(self) -> bool:
        """Whether somebody holds it at this moment."""
        if mutex_try(self._word) == 0:
            return True
        mutex_give(self._word)
        return False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def new_lock() -> Any:
    """A lock of this kind.

    Interpreted it is the standard library's: in `with` there is no moment in which a signal's exception leaves that
    one locked, and it would do so between two steps of an interpreted `__enter__`.
    """
    return HypervisorLock() if cython.compiled else threading.Lock()
