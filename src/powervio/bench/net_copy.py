# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What is the least that anything between two TAPs does: a loop that copies frames from each to the other.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import os
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import address_of, pointer, preadv, pwritev, st64, wait_any

_ROOM = cython.declare(cython.ulonglong, 65536 + 64)
_TURN = cython.declare(cython.uint, 64)
_STOPPED = cython.declare(cython.int, 4)


@cython.final
@cython.cclass
class CopyLoop:
    """Between two TAP descriptors that are not waiting, in whatever thread `run` is called."""

    frames: cython.ulonglong
    lost: cython.ulonglong
    stop_fd: cython.int
    _first: cython.int
    _second: cython.int
    _data: cython.p_uchar
    _table: cython.p_uchar
    _views: tuple[Any, ...]

    def __init__(self, first: int, second: int) -> None:
        data, table = bytearray(65536 + 64), bytearray(16)
        self.frames = 0
        self.lost = 0
        """Frames that were not taken."""
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._first = first
        self._second = second
        self._data = pointer(data)
        self._table = pointer(table)
        self._views = (data, table)

    def run(self) -> None:
        """Copy until `stop`, without the interpreter lock."""
        ready: cython.int = 3
        first: cython.bint
        second: cython.bint
        with cython.nogil:
            while True:
                if ready & _STOPPED:
                    break
                first = self._pass_on(self._first, self._second) if ready & 1 else False
                second = self._pass_on(self._second, self._first) if ready & 2 else False
                if first or second:
                    ready = 3
                    if wait_any(self.stop_fd, -1, -1, 0) != 0:
                        break
                else:
                    ready = wait_any(self._first, self._second, self.stop_fd, -1)
                    if ready < 0:
                        break

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _pass_on(self, source: cython.int, target: cython.int) -> cython.bint:
        """Up to 64 frames; whether there were that many."""
        number: cython.uint
        length: cython.longlong
        for number in range(_TURN):
            st64(self._table, 0, address_of(self._data, 0))
            st64(self._table, 8, _ROOM)
            length = preadv(source, self._table, 1, 0)
            if length <= 0:
                return False
            st64(self._table, 8, length)
            if pwritev(target, self._table, 1, 0) < 0:
                self.lost += 1
            self.frames += 1
        return True

    def stop(self) -> None:
        """Make `run` return soon; from another thread."""
        os.eventfd_write(self.stop_fd, 1)

    def close(self) -> None:
        """Give back what the loop has, after `run`."""
        os.close(self.stop_fd)
