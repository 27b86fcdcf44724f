# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""From buffers of the ring to a 9P session and back: what of the 9P device is done for every message.

A message is looked at as far as docs/virtio-9p.md obliges the device to: its header, the room for its answer, and where
the data of a read or a write stand. Answers, and reads up to `SMALL`, are put together in the server's own memory and
go to the driver in one piece, since a copy of so little costs less than a second access to the driver; the data of
larger reads, and of all writes that do not come with their message, move between file and driver directly. A Tfsync,
and what has to do with one that is not answered, goes to `p9_syncs`.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Protocol

import cython
from cython.cimports.powervio.files.identity import Identity
from cython.cimports.powervio.files.p9_session import Session
from cython.cimports.powervio.files.wire import put8, put16, put32, take8, take16, take32
from cython.cimports.powervio.memory.hw import address_of, at, bytes_at, ld64, pointer, pointer_to_read
from cython.cimports.powervio.virtio.device_queue import DeviceQueue, Request
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.staging import Staging

from powervio.devices.p9_syncs import DeviceSyncs
from powervio.errors import RemoteError
from powervio.memory.abstract import Payload
from powervio.virtio.batch import Batch

WRITE_DATA = 23
"""Where the data of a Twrite begin."""
READ_DATA = 11
"""Where the data of an Rread and an Rreaddir begin."""
ERROR_ROOM = 11
"""Bytes of an Rlerror, and what any answer may need."""
SMALL = 16 * 1024
"""Bytes of an Rread up to which it is put together before it goes to the driver."""
SMALL_MESSAGE = 4096
"""Bytes of a message up to which all of it is read at once; of a longer one, which is a Twrite nearly always, what
stands before its data."""
GROUP = 64
"""Requests that share what they can."""
LONGEST = 128 * 1024
"""Bytes of a message without data: far more than sixteen names and a link's target have."""

_HEADER = cython.declare(cython.longlong, 7)
_WRITE = cython.declare(cython.longlong, WRITE_DATA)
_READ = cython.declare(cython.longlong, READ_DATA)
_ERROR = cython.declare(cython.longlong, ERROR_ROOM)
_SMALL = cython.declare(cython.longlong, SMALL)
_SMALL_MESSAGE = cython.declare(cython.longlong, SMALL_MESSAGE)
_GROUP = cython.declare(cython.int, GROUP)
_PIECES = cython.declare(cython.uint, 4)
"""Of a message that is read at once: each is a call."""
_LONGEST = cython.declare(cython.longlong, LONGEST)
_TREADDIR = cython.declare(cython.int, 40)
_TFSYNC = cython.declare(cython.int, 50)
_TVERSION = cython.declare(cython.int, 100)
_TFLUSH = cython.declare(cython.int, 108)
_TWALK = cython.declare(cython.int, 110)
_TREAD = cython.declare(cython.int, 116)
_TWRITE = cython.declare(cython.int, 118)
_EMSGSIZE = cython.declare(cython.int, errno.EMSGSIZE)
_RLERROR = cython.declare(cython.int, 7)
_QID = cython.declare(cython.longlong, 13)
_ROOM = {8: 67, 12: 24, 14: 24, 16: 20, 18: 20, 24: 160, 30: 15, 54: 30, 72: 20, 100: 13, 102: 20, 104: 20}
"""By the type of a T-message whose R-message is longer than `ERROR_ROOM`: bytes of it, but for strings (F3.3)."""


class P9Session(Protocol):
    """One conversation with the 9P server: its fids, its msize. It raises nothing but `RemoteError`, from payloads."""

    def handle(self, message: bytes, source: Payload, target: Payload) -> bytes:
        """Carry out a T-message and give the R-message, without the data of an Rread.

        `message` is the whole of it, but for the data of a Twrite that is longer, which stand in `source` from
        `WRITE_DATA` on. The data of an Rread are put into `target` from `READ_DATA` on; `target.length` is the room.
        """

    def close(self) -> None:
        """It is over: all fids are clunked."""


@cython.final
@cython.cclass
class P9Server:
    """Serves one session of a device."""

    messages: cython.ulonglong
    bytes_read: cython.ulonglong
    bytes_written: cython.ulonglong
    errors: cython.ulonglong
    refused: cython.ulonglong
    _session: Any
    _direct: Session | None
    _identity: Identity | None
    _syncs: Any
    _later: cython.bint
    _book: bytearray
    _out: cython.p_uchar
    _room: cython.longlong
    _data: cython.longlong

    def __init__(self, session: P9Session, syncs: DeviceSyncs | None = None) -> None:
        """`syncs` takes each Tfsync; None: it is carried out in its place."""
        self.messages = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.errors = 0
        self.refused = 0
        self._session = session
        self._direct = session if isinstance(session, Session) else None
        self._identity = session.tree.identity if isinstance(session, Session) else None
        self._syncs = syncs
        self._later = False
        self._book = bytearray(SMALL)
        self._out = pointer(self._book)
        self._room = SMALL
        self._data = 0

    def close(self) -> None:
        """The session is over."""
        self._session.close()

    def serve_mapped(self, queue: DeviceQueue) -> None:
        """Serve what is available, in its order, where memory is mapped.

        Raises `RemoteError` when the driver broke the ring; what it had made available before is served.
        """
        if self._identity is not None:
            self._identity.keep()
        try:
            while queue.take_allowed():
                self._serve(queue.request())
        finally:
            if self._identity is not None:
                self._identity.rest()

    @cython.cfunc
    @cython.exceptval(-1)
    def _serve(self, request: Request) -> cython.int:
        readable: Any = request.readable
        length: cython.longlong = readable.length
        try:
            head: bytes = readable.read(0, length if length <= SMALL_MESSAGE else WRITE_DATA)
        except RemoteError:
            self.refused += 1
            request.complete(0)
            return 0
        self._serve_begun(head, request)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _serve_begun(self, head: bytes, request: Request) -> cython.int:
        """Serve a message that begins with `head`."""
        try:
            answer: Any = self._answer(head, request)
            if self._later:
                return 0
            if answer is None:
                request.complete(0)
                return 0
            request.writable.write(0, answer)
        except RemoteError:
            self.refused += 1
            request.complete(0)
            return 0
        request.complete(len(answer) + self._data)
        return 0

    def serve_all(self, queue: DeviceQueue) -> None:
        """Serve what is available, in its order, where access to the driver's memory is a call of the hypervisor.

        Raises `RemoteError` when the driver broke the ring; what it had made available before is served.
        """
        group: list[Request] = []
        if self._identity is not None:
            self._identity.keep()
        try:
            try:
                while queue.take_allowed():
                    if not group and not queue.available and self._serve_staged(queue):
                        continue
                    group.append(queue.request())
                    if len(group) == _GROUP:
                        requests, group = group, []
                        self.serve_together(requests, queue.batch)
            finally:  # also those before the place where the ring broke
                if group:
                    self.serve_together(group, queue.batch)
        finally:
            if self._identity is not None:
                self._identity.rest()

    @cython.cfunc
    @cython.exceptval(-1)
    def _serve_staged(self, queue: DeviceQueue) -> cython.int:
        """Serve the buffer that was taken last without making objects of it, as most are that come alone: 1, or 0 when
        nothing was done. Message and answer go by the transport's own memory."""
        ring: DeviceRing = queue.ring
        staging: Staging | None = queue.staging
        there: cython.longlong = ring.readable_bytes
        room: cython.longlong = ring.writable_bytes
        size: cython.longlong
        kind: cython.int
        base: cython.p_uchar
        out: cython.p_uchar
        done: cython.longlong
        direct: Session | None = self._direct
        head: cython.uint = ring.head
        if staging is None or direct is None or there < _HEADER or there > _SMALL_MESSAGE or room < _ERROR:
            return 0
        if ring.readable_count > _PIECES or cython.cast(cython.longlong, staging.size) < _SMALL_MESSAGE + _SMALL:
            return 0
        if not self._move(ring, staging, 0, ring.readable_count, there, 0, False):
            self.refused += 1
            queue.complete(head, 0)
            return 1
        base = staging.base
        size = take32(base, 0)
        kind = take8(base, 4)
        if (
            size < _HEADER
            or size > there
            or room < self._need(kind, base, size)
            or self._is_apart(kind, base, size, size, room)
            or (kind == _TREADDIR and room > _SMALL)
            or self._is_about_syncs(kind)
        ):
            self._serve_begun(bytes_at(address_of(base, 0), there), queue.request())
            return 1
        self.messages += 1
        self._data = 0
        if room > direct.msize:
            room = direct.msize
        if room > _SMALL:
            room = _SMALL
        out = at(base, _SMALL_MESSAGE)
        done = self._count(direct.serve(base, size, out, room), out, kind, take16(base, 5), room)
        if not self._move(ring, staging, ring.readable_count, ring.segment_count, done, _SMALL_MESSAGE, True):
            self.refused += 1
            done = 0
        queue.complete(head, done)
        return 1

    @cython.cfunc
    @cython.exceptval(-1)
    def _move(
        self,
        ring: DeviceRing,
        staging: Staging,
        begin: cython.uint,
        end: cython.uint,
        length: cython.longlong,
        place: cython.ulonglong,
        out: cython.bint,
    ) -> cython.int:
        """Copy so many bytes between segments of the buffer and the transport's memory; 0 if they are not there."""
        number: cython.uint
        size: cython.longlong
        done: cython.int
        for number in range(begin, end):
            if length <= 0:
                break
            size = ld64(ring.chain, 16 * number + 8)
            if size > length:
                size = length
            if size == 0:
                continue
            if out:
                done = staging.put(ld64(ring.chain, 16 * number), size, place)
            else:
                done = staging.bring(ld64(ring.chain, 16 * number), size, place)
            if not done:
                return 0
            place += size
            length -= size
        return 1

    def serve_together(self, requests: Sequence[Request], batch: Batch) -> None:
        """Serve these, in their order; what can be read and written together is."""
        request: Request
        number: cython.Py_ssize_t
        length: cython.longlong
        count: cython.Py_ssize_t = len(requests)
        lengths: list[int] = [0] * count
        parts: list[Any] = []
        rows: list[int] = []
        small: list[Any] = []
        for request in requests:
            if request.readable.length <= SMALL_MESSAGE:
                small.append(request.readable)
        heads: list[Any] = batch.read(small)
        taken: cython.Py_ssize_t = 0
        for number in range(count):
            request = requests[number]
            readable: Any = request.readable
            writable: Any = request.writable
            self._later = False
            try:
                if readable.length <= SMALL_MESSAGE:
                    head: Any = heads[taken]
                    taken += 1
                else:
                    head = readable.read(0, WRITE_DATA)
                if head is None:
                    self.refused += 1
                    continue
                answer: Any = self._answer(head, request)
                if self._later:
                    lengths[number] = -1
                if answer is None:
                    continue
                length = len(answer)
                if self._data:  # what was put behind may not be touched by a copy that others share
                    writable.write(0, answer)
                else:
                    rows.append(number)
                    parts.append((writable, 0, answer))
                lengths[number] = length + self._data
            except RemoteError:
                self.refused += 1
        if parts:
            for number, done in zip(rows, batch.write(parts), strict=True):
                if not done:
                    lengths[number] = 0
                    self.refused += 1
        for number in range(count):
            request = requests[number]
            length = lengths[number]
            if length >= 0:
                request.complete(length)

    @cython.cfunc
    def _answer(self, head: bytes, request: Request) -> Any:
        """The answer to a message that begins with `head`; `_data` says how many bytes of data are behind it at the
        driver already. None: there was no message, or no room (F3.2, F3.3), or it is answered later (`_later`)."""
        readable: Any = request.readable
        writable: Any = request.writable
        there: cython.longlong = len(head)
        length: cython.longlong = readable.length
        room: cython.longlong = writable.length
        base: cython.p_uchar = pointer_to_read(head)
        size: cython.longlong
        done: cython.longlong
        kind: cython.int
        tag: cython.uint
        self.messages += 1
        self._data = 0
        self._later = False
        if there < _HEADER or room < _ERROR:
            self.refused += 1
            return None
        size = take32(base, 0)
        kind = take8(base, 4)
        tag = take16(base, 5)
        if size < _HEADER or size > length:
            return self._error(tag, errno.EPROTO)
        if size > there and kind != _TWRITE:
            if size > _LONGEST:
                return self._error(tag, errno.EMSGSIZE)
            head += readable.read(there, size - there)
            there = size
            base = pointer_to_read(head)
        elif size < there:
            head = head[:size]
            there = size
            base = pointer_to_read(head)
        if room < self._need(kind, base, there):
            return self._error(tag, errno.EMSGSIZE)
        if self._is_about_syncs(kind) and self._is_aside(kind, base, there, request):
            self._later = True
            return None
        if self._direct is None or self._is_apart(kind, base, there, size, room):
            answer = self._session.handle(head, readable, writable)
            done = len(answer)
            return self._said(answer, done, pointer_to_read(answer), kind, tag, room)
        direct: Session = self._direct
        if room > direct.msize:
            room = direct.msize
        if room > self._room and kind == _TREADDIR:
            self._book = bytearray(room)
            self._out = pointer(self._book)
            self._room = room
        if room > self._room:
            room = self._room
        done = direct.serve(base, there, self._out, room)
        return self._said(None, done, self._out, kind, tag, room)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_apart(
        self,
        kind: cython.int,
        base: cython.p_uchar,
        there: cython.longlong,
        size: cython.longlong,
        room: cython.longlong,
    ) -> cython.bint:
        """Whether the message's data are moved by themselves."""
        count: cython.longlong
        if kind == _TWRITE:
            return size > there
        if kind != _TREAD or there < _WRITE:
            return False
        count = take32(base, 19)
        return count > _SMALL - _READ and room > _SMALL

    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_about_syncs(self, kind: cython.int) -> cython.bint:
        return self._syncs is not None and (kind == _TFSYNC or kind == _TFLUSH or kind == _TVERSION)

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_aside(self, kind: cython.int, base: cython.p_uchar, size: cython.longlong, request: Request) -> cython.int:
        """Whether such a message is answered later; 0: it is carried out in its place."""
        direct: Session | None = self._direct
        if direct is None:
            return 0
        if kind == _TFSYNC:
            opened = direct.to_sync(base, size)
            if opened is None:
                return 0
            return 1 if self._syncs.take(request, take16(base, 5), opened, take32(base, 11) != 0) else 0
        if kind == _TFLUSH:
            return 1 if size == 9 and self._syncs.flush(request, take16(base, 5), take16(base, 7)) else 0
        self._syncs.cancel()
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _need(self, kind: cython.int, base: cython.p_uchar, there: cython.longlong) -> cython.longlong:
        """Bytes that the answer to a message may have, without strings and data."""
        count: cython.longlong
        if kind == _TWALK:
            count = take16(base, 15) if there >= 17 else 0
            return 9 + _QID * (count if count < 16 else 16)
        need: cython.longlong = _ROOM.get(kind, ERROR_ROOM)
        return need

    @cython.cfunc
    def _said(
        self,
        answer: Any,
        done: cython.longlong,
        base: cython.p_uchar,
        kind: cython.int,
        tag: cython.uint,
        room: cython.longlong,
    ) -> Any:
        """Count an answer of `done` bytes, and give it as bytes."""
        if answer is not None and done > room:
            return self._error(tag, errno.EMSGSIZE)
        done = self._count(done, base, kind, tag, room)
        if done == 0:
            return None
        return bytes(memoryview(self._book)[:done]) if answer is None else answer

    @cython.cfunc
    @cython.exceptval(check=False)
    def _count(
        self, done: cython.longlong, base: cython.p_uchar, kind: cython.int, tag: cython.uint, room: cython.longlong
    ) -> cython.longlong:
        """Count an answer of `done` bytes; how long it is, 0 when there is none. One that is longer than its room
        becomes an error in its place."""
        size: cython.longlong
        if done < _HEADER:  # nothing can be said to this
            self.refused += 1
            return 0
        if done > room:
            return self._put_error(base, tag, _EMSGSIZE)
        size = take32(base, 0)
        if take8(base, 4) == _RLERROR:
            self.errors += 1
        elif kind == _TREAD:
            self.bytes_read += size - _READ
            self._data = size - done
        elif kind == _TWRITE:
            self.bytes_written += take32(base, 7)
        return done

    @cython.cfunc
    @cython.exceptval(check=False)
    def _put_error(self, out: cython.p_uchar, tag: cython.uint, code: cython.int) -> cython.longlong:
        self.errors += 1
        put32(out, 0, ERROR_ROOM)
        put8(out, 4, _RLERROR)
        put16(out, 5, tag)
        put32(out, 7, code)
        return _ERROR

    @cython.cfunc
    def _error(self, tag: cython.uint, code: cython.int) -> bytes:
        self._put_error(self._out, tag, code)
        return bytes(memoryview(self._book)[:ERROR_ROOM])
