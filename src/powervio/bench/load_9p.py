# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A load of 9P messages at full speed, for any server: so many scripts at once, each one message at a time.

A script is a list of T-messages that is played again and again; the next of them goes when the one before is answered.
A script's number is its tag, so that a server may answer in any order. Messages that are due together go in one call of
the kernel. Nothing takes the interpreter lock from the first message to the last.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence

import cython
from cython.cimports.powervio.files.wire import put16, put64, receive, send, take8, take16, take32, take64
from cython.cimports.powervio.memory.hw import clock_ns, copy, pointer

_ROW = cython.declare(cython.int, 16)
_SLOT = cython.declare(cython.int, 24)
_TREAD = cython.declare(cython.int, 116)
_ROOM = cython.declare(cython.longlong, 1 << 20)
_HEAD = cython.declare(cython.longlong, 11)
_TROUBLE = {
    1: "the server does not take messages",
    2: "the server closed the connection, or does not answer",
    3: "the server's message is too short to be one",
    4: "the server answered a tag that was not used",
}


@cython.final
@cython.cclass
class Load9P:
    """One connection under load. `run` leaves `answers`, `moved` (bytes of data that were read), and `nanoseconds`.

    `failed` is the type of a message that was not answered as it should be (or 0), and `failed_errno` what was said.
    """

    answers: cython.ulonglong
    moved: cython.ulonglong
    nanoseconds: cython.ulonglong
    failed: cython.int
    failed_errno: cython.int
    _fd: cython.int
    _depth: cython.int
    _kept: list[bytes]
    _table: bytearray
    _slots: bytearray
    _in: bytearray
    _out: bytearray
    _rows: cython.p_uchar
    _places: cython.p_uchar
    _script: cython.p_uchar
    _from: cython.p_uchar
    _to: cython.p_uchar
    _bytes: bytearray
    _filled: cython.longlong
    _position: cython.ulonglong
    _step: cython.ulonglong
    _end: cython.ulonglong

    def __init__(self, fd: int, scripts: Sequence[Sequence[bytes]], *, sequential: int = 0) -> None:
        """`fd` is a blocking socket that stays the caller's. Tags are put in here.

        With `sequential` every Tread continues where the one before it, of any script, ended, and begins again when so
        many bytes have been read; each Tread's count is the step.
        """
        self.answers = self.moved = self.nanoseconds = 0
        self.failed = self.failed_errno = 0
        self._fd = fd
        self._depth = len(scripts)
        self._table = bytearray(_ROW * sum(map(len, scripts)))
        self._slots = bytearray(_SLOT * len(scripts))
        self._bytes = bytearray(b"".join(message for script in scripts for message in script))
        self._in = bytearray(_ROOM)
        self._out = bytearray(max(65536, 2 * len(self._bytes)))
        self._rows = pointer(self._table)
        self._places = pointer(self._slots)
        self._script = pointer(self._bytes)
        self._from = pointer(self._in)
        self._to = pointer(self._out)
        self._filled = 0
        self._position = self._step = 0
        self._end = sequential
        row = at = 0
        for number, script in enumerate(scripts):
            put64(self._places, _SLOT * number, row)
            put64(self._places, _SLOT * number + 8, row + len(script))
            put64(self._places, _SLOT * number + 16, row)
            for message in script:
                put64(self._rows, _ROW * row, at)
                put64(self._rows, _ROW * row + 8, len(message))
                put16(self._script, at + 5, number)
                if message[4] == _TREAD:
                    self._step = take32(self._script, at + 19)
                at += len(message)
                row += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _next(self, slot: cython.int) -> cython.void:
        """A script's next message joins those that are to be sent."""
        row: cython.ulonglong = take64(self._places, _SLOT * slot + 16)
        first: cython.ulonglong = take64(self._rows, _ROW * row)
        size: cython.ulonglong = take64(self._rows, _ROW * row + 8)
        if self._end > 0 and take8(self._script, first + 4) == _TREAD:
            if self._position >= self._end:
                self._position = 0
            put64(self._script, first + 11, self._position)
            self._position += self._step
        copy(self._to, self._filled, self._script, first, size)
        self._filled += size

    def run(self, seconds: float) -> None:
        """Play all scripts for so long; each ends with the end of itself, so that it may be played again.

        Raises `ConnectionError` when the server closed the connection, or said what is no answer.
        """
        limit: cython.ulonglong = int(seconds * 1e9)
        code: cython.int
        self.answers = self.moved = self.nanoseconds = 0
        with cython.nogil:
            code = self._run(limit)
        if code:
            raise ConnectionError(_TROUBLE[code])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _run(self, nanoseconds: cython.ulonglong) -> cython.int:
        begin: cython.ulonglong = clock_ns()
        slot: cython.int
        busy: cython.int = self._depth
        start: cython.longlong = 0
        end: cython.longlong = 0
        skip: cython.longlong = 0
        size: cython.longlong
        got: cython.longlong
        row: cython.ulonglong
        over: cython.bint = False
        kind: cython.int
        asked: cython.int
        for slot in range(self._depth):
            self._next(slot)
        while busy > 0:
            if self._filled > 0:
                if send(self._fd, self._to, 0, self._filled) < 0:
                    return 1
                self._filled = 0
            if end == _ROOM or start == end:
                copy(self._from, 0, self._from, start, end - start)
                end -= start
                start = 0
            got = receive(self._fd, self._from, end, _ROOM - end)
            if got <= 0:
                return 2
            end += got
            if not over and clock_ns() - begin >= nanoseconds:
                over = True
            while True:
                if skip > 0:  # data that were asked for
                    size = end - start
                    if size > skip:
                        size = skip
                    skip -= size
                    start += size
                    if skip > 0:
                        break
                if end - start < 7:
                    break
                size = take32(self._from, start)
                if size < 7:
                    return 3
                if end - start < size and end - start < _HEAD:
                    break
                kind = take8(self._from, start + 4)
                if kind != _TREAD + 1 and end - start < size:
                    break
                slot = take16(self._from, start + 5)
                if slot >= self._depth:
                    return 4
                row = take64(self._places, _SLOT * slot + 16)
                asked = take8(self._script, take64(self._rows, _ROW * row) + 4)
                if kind != asked + 1:
                    self.failed = asked
                    self.failed_errno = take32(self._from, start + 7) if kind == 7 else 0
                if kind == _TREAD + 1:
                    self.moved += cython.cast(cython.ulonglong, size - _HEAD)
                    skip = size - _HEAD
                    start += _HEAD
                else:
                    start += size
                self.answers += 1
                row += 1
                if row == take64(self._places, _SLOT * slot + 8):
                    row = take64(self._places, _SLOT * slot)
                    put64(self._places, _SLOT * slot + 16, row)
                    if over:
                        busy -= 1
                        continue
                put64(self._places, _SLOT * slot + 16, row)
                self._next(slot)
        self.nanoseconds = clock_ns() - begin
        return 0 if skip == 0 else self._rest(skip, end - start)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _rest(self, skip: cython.longlong, there: cython.longlong) -> cython.int:
        """What of the last data has not come yet."""
        got: cython.longlong
        skip -= there
        while skip > 0:
            got = receive(self._fd, self._from, 0, skip if skip < _ROOM else _ROOM)
            if got <= 0:
                return 2
            skip -= got
        return 0
