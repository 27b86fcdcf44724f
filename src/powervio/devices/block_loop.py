# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The request path of a disk over a mapped queue: one thread for each queue, without the interpreter lock.

A loop takes requests one by one. What can be done without waiting for a medium (files in memory, what the page cache
holds) is done at once, for handing it to a worker of the kernel costs more than doing it; everything else goes to
io_uring and completes later, in any order. A request that is not a usual read, write or flush (its header is in pieces,
it is a discard, it is not allowed, ...) is handed to the device's Python, and has the same result there.

A buffer that is in flight is known by its head. Its pieces of memory and what has to be known at its end stand in
tables of the loop's own, a row for each head: nothing of a chain is read twice.
This file is compiled (Cython pure mode) and also runs interpreted, where there is no io_uring and all is done at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.devices.block_table import BlockRules
from cython.cimports.powervio.memory.hw import (
    at,
    clock_ns,
    copy,
    fetch,
    ld8_acquire,
    ld32,
    ld64,
    le32,
    pointer,
    put8,
    relax,
    st8_release,
    st32,
    st64,
)
from cython.cimports.powervio.memory.space import READ, WRITE, AddressSpace
from cython.cimports.powervio.memory.target import FileTarget
from cython.cimports.powervio.memory.uring import (
    uring_close,
    uring_defers,
    uring_fd,
    uring_move,
    uring_open,
    uring_rest,
    uring_result,
    uring_submit,
    uring_sync,
    uring_wait,
    uring_watch,
)
from cython.cimports.powervio.virtio.device_queue import MappedQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.request_table import FILL

from powervio.devices.block_options import BlockCounters
from powervio.errors import LocalError

DEFERS = True
"""Whether a loop asks for a kernel ring whose results are made when they are asked for. Kernels before Linux 6.1 have
none; without it a loop sleeps in poll."""

_PIECES = cython.declare(cython.int, 160)
_ROW = cython.declare(cython.ulonglong, 2560)
"""Pieces of one request's data at most, and their bytes; what has more is the device's Python's."""
_TURN = cython.declare(cython.int, 32)
"""Requests that are begun before results are looked for."""
_TOGETHER = cython.declare(cython.uint, 4)
"""Requests that are handed to the kernel together, at most: more is less work, but the medium would wait for them."""

_FLUSH = cython.declare(cython.uint, 4)
_READS = cython.declare(cython.uint, 0)
_WRITES = cython.declare(cython.uint, 1)
_SYNCS = cython.declare(cython.uint, 2)

# Of a request in flight: status address, position, bytes that are missing, bytes of all, pieces, what it does.
_IN_FLIGHT = cython.declare(cython.ulonglong, 40)

_NOT_NOW = cython.declare(cython.int, -errno.EAGAIN)
_BUSY = cython.declare(cython.int, -errno.EBUSY)
_AGAIN = cython.declare(cython.longlong, -errno.EAGAIN)
_INTERRUPTED = cython.declare(cython.longlong, -errno.EINTR)

_KICK = cython.declare(cython.ulonglong, 1 << 32)
_STOP = cython.declare(cython.ulonglong, 1 << 33)
"""Tokens of the kernel's ring that are no heads: watches of the two descriptors that may end a sleep."""

_OK = cython.declare(cython.uint, 0)
_IOERR = cython.declare(cython.uint, 1)


@cython.final
@cython.cclass
class BlockLoop:
    """Serves one queue from `run` until `stop`."""

    rules: BlockRules
    reads: cython.ulonglong
    writes: cython.ulonglong
    flushes: cython.ulonglong
    bytes_read: cython.ulonglong
    bytes_written: cython.ulonglong
    failed: cython.ulonglong
    sleeps: cython.ulonglong
    handed_over: cython.ulonglong
    deferred: cython.ulonglong
    writeback: cython.bint
    _queue: MappedQueue
    _ring: DeviceRing
    _space: AddressSpace
    _target: FileTarget
    _apart: Any
    _books: Any
    _rows: cython.p_uchar
    _moves: cython.p_uchar
    _small: cython.p_uchar
    _header: cython.p_uchar
    _stopping: cython.p_uchar
    _uring: cython.p_uchar
    _has_uring: cython.bint
    _watches: cython.bint
    _flying: cython.uint
    _launched: cython.uint
    _given_up: cython.bint
    _looked: cython.bint
    _whole: cython.bint
    _spin: cython.ulonglong
    _stop_fd: cython.int

    def __init__(
        self,
        queue: MappedQueue,
        target: FileTarget,
        rules: BlockRules,
        apart: Callable[[Any], None],
        *,
        spin: float = 0.0,
    ) -> None:
        """`rules` are this loop's own; `apart(request)` serves what is not usual, in the loop's thread. `spin` is the
        seconds for which an empty queue is looked at before the loop sleeps.
        """
        size = queue.ring.size
        if queue.space is None:
            raise LocalError(f"queue {queue.index} is not mapped: no loop can serve it")
        rows, moves, small = bytearray(_ROW * size), bytearray(_IN_FLIGHT * size), bytearray(16)
        header, stopping = bytearray(16), bytearray(1)
        self.rules = rules
        self.writeback = True
        """Whether a write may complete before it is stable; if not, the device's Python serves writes."""
        self.reads = self.writes = self.flushes = self.bytes_read = self.bytes_written = self.failed = 0
        self.sleeps = 0
        """How often there was nothing to do."""
        self.handed_over = 0
        """Requests that the device's Python served."""
        self.deferred = 0
        """Requests that went to io_uring."""
        self._queue = queue
        self._ring = queue.ring
        self._space = queue.space
        self._target = target
        self._apart = apart
        self._books = (rows, moves, small, header, stopping)
        self._rows = pointer(rows)
        self._moves = pointer(moves)
        self._small = pointer(small)
        self._header = pointer(header)
        self._stopping = pointer(stopping)
        self._has_uring = self._watches = False
        self._flying = self._launched = 0
        self._given_up = False
        self._looked = self._whole = False
        self._spin = int(spin * 1e9)
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self) -> None:
        """Serve until `stop`; what is in flight then has ended on return. Raises `RemoteError` for a broken ring."""
        size: cython.uint = self._ring.size
        self._uring = uring_open(size + 2, 1 if DEFERS else 0)
        self._has_uring = self._uring != cython.NULL
        # then it is the place to sleep in: one call submits, waits, and has the results made
        self._watches = self._has_uring and uring_defers(self._uring) != 0
        try:
            with cython.nogil:
                self._run()
        except BaseException:
            self._given_up = True  # nothing of the ring is touched any more
            raise
        finally:
            with cython.nogil:
                self._finish_flying()
            if self._has_uring:
                uring_close(self._uring)
                self._has_uring = False

    def stop(self) -> None:
        """Make `run` return; from another thread."""
        st8_release(self._stopping, 0, 1)
        os.eventfd_write(self._stop_fd, 1)

    def close(self) -> None:
        """Give back what the loop has; `run` has returned or was never called."""
        os.close(self._stop_fd)
        self._stop_fd = -1

    def add_to(self, counters: BlockCounters) -> None:
        """Count what this loop did in `counters`."""
        counters.reads += self.reads
        counters.writes += self.writes
        counters.flushes += self.flushes
        counters.bytes_read += self.bytes_read
        counters.bytes_written += self.bytes_written
        if self.failed:
            counters.errors["backing"] = counters.errors.get("backing", 0) + self.failed

    @property
    def requests(self) -> int:
        """Requests that this loop completed itself."""
        return self.reads + self.writes + self.flushes + self.failed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self) -> cython.int:
        begun: cython.int
        if self._watches:
            uring_watch(self._uring, self._stop_fd, _STOP)
            if self._queue.kick >= 0:
                uring_watch(self._uring, self._queue.kick, _KICK)
        while not ld8_acquire(self._stopping, 0):
            begun = 0
            self._looked = False
            while begun < _TURN and self._serve_one():
                begun += 1
                if self._launched >= _TOGETHER:
                    self._submit()
            if self._flying or self._watches:
                self._submit()
                begun += self._reap()
            if begun == 0:
                self._idle()
        self._queue.settle()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _idle(self) -> cython.int:
        """There is nothing to do: look for a while, then sleep until there is."""
        until: cython.ulonglong
        ready: cython.int
        self._queue.settle()
        if self._spin:
            until = clock_ns() + self._spin
            while clock_ns() < until:
                if self._ring.look() or ld8_acquire(self._stopping, 0):
                    return 0
                if self._flying:
                    self._submit()
                    if self._reap():
                        return 0
                relax()
        if self._ring.arm():
            self._ring.disarm()
            return 0
        self.sleeps += 1
        ready = self._rest()
        self._ring.disarm()
        if ready < 0:
            with cython.gil:
                raise OSError(-ready, f"queue {self._queue.index}: waiting for kicks failed")
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _rest(self) -> cython.int:
        """Sleep until there is a kick or a result, or the loop is to stop. Negative: an errno."""
        outcome: cython.int
        if self._watches:
            if ld8_acquire(self._stopping, 0):
                return 0  # its watch may have been reaped already, and tells it once
            outcome = uring_rest(self._uring)
            if outcome == _BUSY or outcome == _NOT_NOW:
                return self._queue.rest(self._stop_fd, -1, 1)  # the kernel is short of memory: again soon
            return outcome
        # what the kernel did not take at once is handed over again soon
        return self._queue.rest(
            self._stop_fd,
            uring_fd(self._uring) if self._flying else -1,
            1 if self._flying and self._submit() else -1,
        )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _serve_one(self) -> cython.int:
        """Take a request and do it, or begin it; 0 when there is none."""
        if not self._queue.take() and not (self._ring.look() and self._queue.take()):
            return 0
        if not self._begin():
            self.handed_over += 1
            with cython.gil:
                self._apart(self._queue.request())
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _begin(self) -> cython.int:
        """Do what was taken last, or begin it; 0, and nothing done, when it is the device's Python's."""
        chain: cython.p_uchar = self._ring.chain
        last: cython.ulonglong = 16 * (self._ring.segment_count - 1)
        status: cython.ulonglong
        # nearly every driver has the header in a descriptor of its own, and so the status
        if self._ring.readable_bytes < 16 or self._ring.writable_bytes == 0 or ld64(chain, 8) < 16:
            return 0
        if self._space.gather(ld64(chain, 0), 16, READ, self._small, 0, 1) != 1:
            return 0
        fetch(self._header, 0, ld64(self._small, 0), 16)
        if self._space.gather(ld64(chain, last) + ld64(chain, last + 8) - 1, 1, WRITE, self._small, 0, 1) != 1:
            return 0
        status = ld64(self._small, 0)
        if self.rules.check(self._header, 0, self._ring.readable_bytes, self._ring.writable_bytes):
            return self._begin_move(status)
        if le32(ld32(self._header, 0)) == _FLUSH and self._ring.writable_bytes == 1 and self._has_uring:
            return self._begin_flush(status)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _begin_move(self, status: cython.ulonglong) -> cython.int:
        writes: cython.bint = self.rules.kind != FILL
        length: cython.ulonglong = self.rules.length
        position: cython.ulonglong = self.rules.position
        table: cython.p_uchar = at(self._rows, _ROW * self._ring.head)
        count: cython.int = self._gather(table, writes)
        done: cython.longlong
        whole: cython.bint
        if count <= 0 or not self._target.allows(table, count, position, length):
            return 0
        if writes and (not self.writeback or self._ring.writable_bytes != 1 or self._target.read_only):
            return 0
        whole = (writes or self._target.mapped) and self._is_whole()
        if writes and not whole:
            return 0
        done = self._target.start(writes, table, count, position, length, whole)
        if done >= 0 and cython.cast(cython.ulonglong, done) == length:
            self._moved(self._ring.head, status, writes, length)
            return 1
        if done < 0 and done != _AGAIN:
            return 0  # the device's Python tries again, and says what is wrong
        if not self._has_uring:
            # what the medium has to be waited for is waited for here
            done = (
                self._target.write(table, count, position, length)
                if writes
                else self._target.read(table, count, position, length)
            )
            if not done:
                return 0
            self._moved(self._ring.head, status, writes, length)
            return 1
        self._note(self._ring.head, status, position, length, count, _WRITES if writes else _READS)
        if done > 0:
            self._advance(self._ring.head, done)
        self._launch(self._ring.head)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_whole(self) -> cython.bint:
        """Whether the file has what it had; it is looked at once a turn, when something wants to know."""
        if not self._looked:
            self._looked = True
            self._whole = self._target.is_whole()
        return self._whole

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _begin_flush(self, status: cython.ulonglong) -> cython.int:
        if self._target.lost:
            return 0
        self._note(self._ring.head, status, 0, 0, 0, _SYNCS)
        self._launch(self._ring.head)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _gather(self, table: cython.p_uchar, writes: cython.bint) -> cython.int:
        """The pieces of the data of the chain that was taken last; not positive when these are not to be had."""
        chain: cython.p_uchar = self._ring.chain
        number: cython.uint = 0 if writes else self._ring.readable_count
        end: cython.uint = self._ring.readable_count if writes else self._ring.segment_count
        count: cython.int = 0
        address: cython.ulonglong
        size: cython.ulonglong
        while number < end:
            address = ld64(chain, 16 * number)
            size = ld64(chain, 16 * number + 8)
            if number == 0:  # the header
                address += 16
                size -= 16
            number += 1
            if not writes and number == end:  # the status
                size -= 1
            count = self._space.gather(address, size, READ if writes else WRITE, table, count, _PIECES)
            if count < 0:
                return count
        return count

    # -- requests that take their time

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _note(
        self,
        head: cython.uint,
        status: cython.ulonglong,
        position: cython.ulonglong,
        length: cython.ulonglong,
        count: cython.uint,
        what: cython.uint,
    ) -> cython.void:
        row: cython.ulonglong = _IN_FLIGHT * head
        st64(self._moves, row, status)
        st64(self._moves, row + 8, position)
        st64(self._moves, row + 16, length)
        st64(self._moves, row + 24, length)
        st32(self._moves, row + 32, count)
        st32(self._moves, row + 36, what)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _advance(self, head: cython.uint, done: cython.ulonglong) -> cython.void:
        """So many bytes of a request are where they belong: the pieces are those of the rest."""
        row: cython.ulonglong = _IN_FLIGHT * head
        table: cython.p_uchar = at(self._rows, _ROW * head)
        count: cython.ulonglong = ld32(self._moves, row + 32)
        whole: cython.ulonglong = 0
        st64(self._moves, row + 8, ld64(self._moves, row + 8) + done)
        st64(self._moves, row + 16, ld64(self._moves, row + 16) - done)
        while whole < count and done >= ld64(table, 16 * whole + 8):
            done -= ld64(table, 16 * whole + 8)
            whole += 1
        copy(table, 0, table, 16 * whole, 16 * (count - whole))
        st32(self._moves, row + 32, cython.cast(cython.uint, count - whole))
        if done:
            st64(table, 0, ld64(table, 0) + done)
            st64(table, 8, ld64(table, 8) - done)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _launch(self, head: cython.uint) -> cython.void:
        """Hand a request to the kernel. A ring of the kernel has room for all heads of ours."""
        row: cython.ulonglong = _IN_FLIGHT * head
        what: cython.uint = ld32(self._moves, row + 36)
        fd: cython.int = self._target.fd
        self._flying += 1
        self._launched += 1
        self.deferred += 1
        if what == _SYNCS:
            uring_sync(self._uring, fd, head)
        else:
            uring_move(
                self._uring,
                what == _WRITES,
                fd,
                at(self._rows, _ROW * head),
                ld32(self._moves, row + 32),
                ld64(self._moves, row + 8),
                head,
            )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _submit(self) -> cython.int:
        """Hand what was launched to the kernel; not 0 when it did not take all of it."""
        self._launched = 0
        return uring_submit(self._uring)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _reap(self) -> cython.int:
        """Take the results that are there; how many requests they completed."""
        completed: cython.int = 0
        found: cython.int = uring_result(self._uring, self._small)
        token: cython.ulonglong
        while found:
            token = ld64(self._small, 0)
            if token < _KICK:
                self._flying -= 1
                if self._result(cython.cast(cython.uint, token), cython.cast(cython.longlong, ld64(self._small, 8))):
                    if completed == 0 and not self._given_up:
                        self._queue.settle()  # a driver that sleeps wakes up while the rest is done
                    completed += 1
            elif found == 1:  # the kernel ended a watch
                self._watch_again(token, cython.cast(cython.longlong, ld64(self._small, 8)))
            found = uring_result(self._uring, self._small)
        return completed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _watch_again(self, token: cython.ulonglong, outcome: cython.longlong) -> cython.int:
        """A watch is over; it can see no more when the kernel had no room for its results."""
        if self._given_up:
            return 0
        if outcome < 0:
            with cython.gil:
                raise OSError(-outcome, f"queue {self._queue.index}: waiting for kicks failed")
        uring_watch(self._uring, self._stop_fd if token == _STOP else self._queue.kick, token)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _result(self, head: cython.uint, outcome: cython.longlong) -> cython.int:
        row: cython.ulonglong = _IN_FLIGHT * head
        what: cython.uint = ld32(self._moves, row + 36)
        status: cython.ulonglong = ld64(self._moves, row)
        if self._given_up:
            return 1
        if outcome == _AGAIN or outcome == _INTERRUPTED:
            self._launch(head)
            return 0
        if what == _SYNCS and outcome == 0:
            self.flushes += 1
            self._complete(head, status, _OK, 1)
        elif what != _SYNCS and outcome > 0:
            self._advance(head, cython.cast(cython.ulonglong, outcome))
            if ld64(self._moves, row + 16):
                self._launch(head)
                return 0
            self._moved(head, status, what == _WRITES, ld64(self._moves, row + 24))
        else:
            if what == _SYNCS:
                self._target.lost = cython.cast(cython.int, -outcome)
            self.failed += 1
            # a read that ended early has no data to be told of; the status behind it counts only with all of it
            self._complete(head, status, _IOERR, 0 if what == _READS else 1)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _moved(
        self, head: cython.uint, status: cython.ulonglong, writes: cython.bint, length: cython.ulonglong
    ) -> cython.int:
        """All data of a request are where they belong."""
        if writes:
            self.writes += 1
            self.bytes_written += length
            self._complete(head, status, _OK, 1)
        else:
            self.reads += 1
            self.bytes_read += length
            self._complete(head, status, _OK, cython.cast(cython.uint, length + 1))
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _complete(
        self, head: cython.uint, status: cython.ulonglong, code: cython.uint, written: cython.uint
    ) -> cython.int:
        put8(status, code)
        self._queue.finish(head, written)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _finish_flying(self) -> cython.int:
        """Wait for what the kernel has: it may write to the driver's memory until then."""
        while self._flying:
            uring_submit(self._uring)
            self._reap()
            if self._flying:
                uring_wait(self._uring)
        if not self._given_up:
            self._queue.settle()
        return 0
