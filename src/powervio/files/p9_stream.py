# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The messages of one 9P connection over a stream socket, carried out in its own thread.

All messages that have come are carried out before the answers go, in one call of the kernel if there is room for them,
and then what comes next is waited for; the interpreter lock is not held while anything waits. A message is carried out
where it was received, and an answer, with the data of a read, is put where it is sent from. Tfsync alone is carried out
beside the others (`p9_syncs`).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import cython
from cython.cimports.powervio.files.p9_session import Session
from cython.cimports.powervio.files.wire import receive, send, take8, take16, take32
from cython.cimports.powervio.memory.hw import at, copy, pointer

from powervio.files.p9_syncs import Syncs

_TREAD = cython.declare(cython.int, 116)
_TREADDIR = cython.declare(cython.int, 40)
_TFSYNC = cython.declare(cython.int, 50)
_TFLUSH = cython.declare(cython.int, 108)
_TVERSION = cython.declare(cython.int, 100)
_FIRST = cython.declare(cython.longlong, 65536)
"""Bytes of the longest message before there is a version."""
_SMALL = cython.declare(cython.longlong, 66048)
"""Bytes that the answer has at most to what asks for no data: a string of 64 KiB is in it."""
_ENOUGH = cython.declare(cython.longlong, 262144)
"""Bytes of answers that are not kept for more to come."""


@cython.final
@cython.cclass
class P9Stream:
    """One connection. `messages`, `received` and `sent` (bytes) count."""

    session: Session
    messages: cython.ulonglong
    received: cython.ulonglong
    sent: cython.ulonglong
    _syncs: Any
    _fd: cython.int
    _limit: cython.longlong
    _in: bytearray
    _out: bytearray
    _from: cython.p_uchar
    _to: cython.p_uchar
    _start: cython.longlong
    _end: cython.longlong
    _filled: cython.longlong

    def __init__(self, fd: int, session: Session) -> None:
        """`fd` is a blocking socket that stays the caller's, and so does the session."""
        self.session = session
        self.messages = self.received = self.sent = 0
        self._fd = fd
        self._start = self._end = self._filled = 0
        self._syncs = None
        self._in = bytearray()
        self._resize(_FIRST)

    @cython.cfunc
    @cython.exceptval(-1)
    def _resize(self, limit: cython.longlong) -> cython.int:
        """Messages are up to `limit` bytes from now on; what was received stays."""
        left = bytes(memoryview(self._in)[self._start : self._end])
        self._in = bytearray(limit + _FIRST)
        self._out = bytearray(limit + _SMALL)
        self._in[: len(left)] = left
        self._from = pointer(self._in)
        self._to = pointer(self._out)
        self._start = 0
        self._end = len(left)
        self._limit = limit
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _flush(self) -> cython.longlong:
        """Send the answers that there are."""
        size: cython.longlong = self._filled
        done: cython.longlong
        fd: cython.int = self._fd
        to: cython.p_uchar = self._to
        if self._syncs is not None:
            self._syncs.lock.acquire()
        with cython.nogil:
            done = send(fd, to, 0, size)
        if self._syncs is not None:
            if done < 0:  # before the other thread goes on in the middle of an answer
                self._syncs.broken = -done
            self._syncs.lock.release()
        self._filled = 0
        if done > 0:
            self.sent += cython.cast(cython.ulonglong, done)
        return done

    @cython.cfunc
    @cython.exceptval(check=False)
    def _needs(self, message: cython.p_uchar, size: cython.longlong) -> cython.longlong:
        """Room that the answer may have to have."""
        kind: cython.int = take8(message, 4)
        count: cython.longlong
        if (kind == _TREAD or kind == _TREADDIR) and size >= 23:
            count = take32(message, 19)
            count += 11
            if count > self._limit:
                count = self._limit
            return count if count > 512 else 512
        return _SMALL

    @cython.cfunc
    @cython.exceptval(-1)
    def _carry_out(self) -> cython.int:
        """Carry out what has come; 0, the negative errno of what failed, or 1: what follows is no message."""
        size: cython.longlong
        done: cython.longlong
        message: cython.p_uchar
        while self._end - self._start >= 4:
            size = take32(self._from, self._start)
            if size < 7 or size > self._limit:
                return 1
            if self._end - self._start < size:
                break
            message = at(self._from, self._start)
            if self._filled > 0 and (
                self._filled > _ENOUGH or len(self._out) - self._filled < self._needs(message, size)
            ):
                done = self._flush()
                if done < 0:
                    return cython.cast(cython.int, done)
            self.messages += 1
            if self._is_aside(message, size):
                self._start += size
                continue
            done = self.session.serve(message, size, at(self._to, self._filled), len(self._out) - self._filled)
            self._filled += done
            self._start += size
            if take8(message, 4) == _TVERSION and self.session.versioned:
                done = self._flush()
                if done < 0:
                    return cython.cast(cython.int, done)
                self._resize(self.session.msize)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_aside(self, message: cython.p_uchar, size: cython.longlong) -> cython.int:
        """Whether a message is answered beside the others; 0: it is carried out in its place."""
        kind: cython.int = take8(message, 4)
        if kind == _TFSYNC:
            opened = self.session.to_sync(message, size)
            if opened is None:
                return 0
            if self._syncs is None:
                try:
                    self._syncs = Syncs(self._fd, self.session.tree.identity)
                except OSError:
                    return 0
            return 1 if self._syncs.take(take16(message, 5), opened, take32(message, 11) != 0) else 0
        if self._syncs is not None:
            if kind == _TFLUSH and size == 9:
                return 1 if self._syncs.flush(take16(message, 5), take16(message, 7)) else 0
            if kind == _TVERSION:
                self._syncs.wait()
        return 0

    def serve(self) -> str:
        """Serve until the client goes, or breaks the protocol so that what follows cannot be understood; why."""
        try:
            why = self._serve()
        finally:
            if self._syncs is not None:
                self._syncs.close()
                self.sent += self._syncs.sent
        if self._syncs is not None and self._syncs.broken:
            return os.strerror(self._syncs.broken)
        return why

    @cython.cfunc
    def _serve(self) -> str:
        code: cython.longlong
        fd: cython.int = self._fd
        base: cython.p_uchar
        end: cython.longlong
        room: cython.longlong
        while True:
            code = self._carry_out()
            if self._filled > 0 and code >= 0:
                room = self._flush()
                if room < 0:
                    code = room
            if code < 0:
                return os.strerror(-code)
            if code > 0:
                return f"a message of {take32(self._from, self._start)} bytes; expected 7 to {self._limit}"
            if self._start == self._end:
                self._start = self._end = 0
            elif len(self._in) - self._start < self._limit:
                copy(self._from, 0, self._from, self._start, self._end - self._start)
                self._end -= self._start
                self._start = 0
            base = self._from
            end = self._end
            room = len(self._in) - end
            with cython.nogil:
                code = receive(fd, base, end, room)
            if code < 0:
                return "" if code == -errno.ECONNRESET else os.strerror(-code)
            if code == 0:
                return "" if self._end == 0 else "the connection ended in the middle of a message"
            self.received += cython.cast(cython.ulonglong, code)
            self._end += code
