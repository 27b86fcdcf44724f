"""The virtio block device (virtio 1.4, 5.2): serves a `Backing` to a driver.

A request is a byte stream whose framing says nothing (2.7.4.1): 16 bytes of header, then data or segments; the last
writable byte is the status, what stands before it is room for data. Everything that a driver can send is answered with
a status if there is a byte for it; nothing leaves here as an exception.

Each access to a payload may cost the transport a hypervisor call, so there are as few as the request has parts: a read
of the header, one move of the data, one write of the status. Where requests can share these (`virtio/batch.py`), reads
and writes are served in groups; each of them has the result that it would have alone.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from dataclasses import replace

from powervio.devices.block_loop import BlockLoop
from powervio.devices.block_options import SECTOR, BlockCounters, BlockOptions, check_options
from powervio.devices.block_table import BlockRules, fail_written, serve
from powervio.devices.throttle import Throttle, Waiting
from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Backing, Payload
from powervio.memory.target import FileTarget
from powervio.virtio import block as blk
from powervio.virtio.batch import Batch
from powervio.virtio.device import Cancellable, Device, DeviceSession, QueueLoop
from powervio.virtio.device_queue import MappedQueue
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request
from powervio.virtio.request_table import ROWS, RequestTable, borrow, give_back

__all__ = ["BlockCounters", "BlockDevice", "BlockOptions"]

_FLUSH_COST = 1 << 20
"""What a flush takes of a pass, in bytes that could be moved meanwhile."""
_STATUS = tuple(bytes([status]) for status in range(256))


class BlockDevice(Device):
    """A disk. What is available is served at once: request by request, or together where the transport gains by it."""

    device_id = blk.DEVICE_ID

    def __init__(self, backing: Backing, options: BlockOptions | None = None) -> None:
        """Raises `LocalError` for options that contradict each other or the backing."""
        super().__init__()
        options = BlockOptions() if options is None else options
        self.backing = backing
        self.options = options
        self._counters = BlockCounters()
        self.read_only = options.read_only or backing.read_only
        self.block_size = options.block_size or backing.block_size
        self.queue_count = options.queues
        self.queue_size = options.queue_size
        self._serial = check_options(options, self.block_size)
        self._discard = not self.read_only and (backing.can_discard if options.discard is None else options.discard)
        self._secure_erase = not self.read_only and backing.can_secure_erase
        self._capacity = backing.size // SECTOR * SECTOR
        self._writeback = options.writeback
        self._header = blk.REQUEST_HEADER["little"]
        self._segment = blk.SEGMENT["little"]
        self._rules = BlockRules(options.max_request, read_only=self.read_only)
        self._negotiated = 0
        self._throttle = None if options.limits is None else Throttle(options.limits)
        self._throttle_timer: Cancellable | None = None
        # who handles requests in a way of their own gets them one by one
        self._handles_batches = type(self).handle is BlockDevice.handle
        self._loops: list[BlockLoop] = []
        self._apart_lock = threading.Lock()
        self._left: dict[int, tuple[DeviceQueue, deque[tuple[Request, bytes | None]]]] = {}
        """By queue: what was popped and not served when the pass was over, with its header."""

    # What the driver sees

    @property
    def features(self) -> int:
        """Device-type bits (virtio 1.4, 5.2.3); nothing is offered that `handle` does not do."""
        options = self.options
        bits = blk.F_SIZE_MAX | blk.F_SEG_MAX | blk.F_BLK_SIZE | blk.F_FLUSH | blk.F_TOPOLOGY
        if options.config_wce:
            bits |= blk.F_CONFIG_WCE
        if options.queues > 1:
            bits |= blk.F_MQ
        if self.read_only:
            return bits | blk.F_RO
        if self._discard:
            bits |= blk.F_DISCARD
        if self._secure_erase:
            bits |= blk.F_SECURE_ERASE
        return bits | blk.F_WRITE_ZEROES

    def config(self, byteorder: ByteOrder) -> bytes:
        """The config space (virtio 1.4, 5.2.4), all fields up to those of WRITE_ZEROES, or of SECURE_ERASE."""
        options = self.options
        physical = max(options.physical_block_size, self.block_size)
        changes = not self.read_only
        return blk.pack_config(
            blk.BlockConfig(
                capacity=self._capacity // SECTOR,
                size_max=options.size_max,
                seg_max=options.seg_max or options.queue_size - 2,
                blk_size=self.block_size,
                physical_block_exp=(physical // self.block_size).bit_length() - 1,
                alignment_offset=0,
                min_io_size=physical // self.block_size,
                opt_io_size=options.optimal_io_size // self.block_size,
                writeback=int(self._writeback),
                num_queues=options.queues,
                max_discard_sectors=options.max_discard_sectors if self._discard else 0,
                max_discard_seg=options.max_segments if self._discard else 0,
                discard_sector_alignment=physical // SECTOR if self._discard else 0,
                max_write_zeroes_sectors=options.max_write_zeroes_sectors if changes else 0,
                max_write_zeroes_seg=options.max_segments if changes else 0,
                write_zeroes_may_unmap=int(changes and self.backing.can_discard),
                max_secure_erase_sectors=options.max_secure_erase_sectors if self._secure_erase else 0,
                max_secure_erase_seg=options.max_segments if self._secure_erase else 0,
                secure_erase_sector_alignment=self.backing.block_size // SECTOR if self._secure_erase else 0,
            ),
            byteorder,
            blk.USUAL_FIELDS | (blk.F_SECURE_ERASE if self._secure_erase else 0),
        )

    def write_config(self, offset: int, data: bytes, byteorder: ByteOrder) -> None:
        """`writeback` is the one writable field (virtio 1.4, 5.2.5.1); all else raises `RemoteError`."""
        if offset != blk.WRITEBACK_OFFSET or len(data) != 1 or not self.options.config_wce:
            raise RemoteError(f"config bytes {offset}..{offset + len(data) - 1} of a block device are not writable")
        if data[0] > 1:
            raise RemoteError(f"writeback is 0 or 1, not {data[0]} (virtio 1.4, 5.2.5.1)")
        if self.session is not None and not self._negotiated & blk.F_CONFIG_WCE:
            raise RemoteError("writeback written without CONFIG_WCE (virtio 1.4, 5.2.5.1)")
        # No flush here when the cache is switched off: the next write is followed by one, and that covers all before.
        self._writeback = bool(data[0])
        if self.session is not None and not self._negotiated & blk.F_FLUSH:
            self._writeback = False
        self._tell_loops()

    def start(self, session: DeviceSession) -> None:
        """Without FLUSH the driver cannot ask for stability, so every write is stable when it completes (5.2.6.2)."""
        if self._throttle is not None and self.scheduler is None:
            raise LocalError("a disk with limits needs a transport that has timers")
        super().start(session)
        self._negotiated = session.features
        if not session.features & blk.F_FLUSH:
            self._writeback = False
        self._rules.big_endian = session.byteorder == "big"
        self._header = blk.REQUEST_HEADER[session.byteorder]
        self._segment = blk.SEGMENT[session.byteorder]

    def reset(self) -> None:
        """Back to the cache mode that the device starts with. What waits because of a limit is the driver's again."""
        super().reset()
        self._left.clear()
        if self._throttle is not None:
            self._throttle.clear()
            self._stop_timer()
            self._negotiated = 0
        self._writeback = self.options.writeback

    # Loops

    def loop(self, queue: MappedQueue, spin: float) -> QueueLoop | None:
        """See `Device`: where the backing can be reached by descriptor and nothing is limited."""
        target, session = self.backing.target, self.session
        own = type(self)._handle is BlockDevice._handle and type(self).handle is BlockDevice.handle
        if not isinstance(target, FileTarget) or self._throttle is not None or not own:
            return None
        if session is None or session.byteorder != "little":
            return None
        rules = BlockRules(self.options.max_request, read_only=self.read_only)
        loop = BlockLoop(queue, target, rules, self._serve_apart, spin=spin)
        self._loops.append(loop)
        self._tell_loops()
        return loop

    def loop_ended(self, loop: QueueLoop) -> None:
        """See `Device`."""
        assert isinstance(loop, BlockLoop)
        self._loops.remove(loop)
        loop.add_to(self._counters)
        self.requests += loop.requests

    def _tell_loops(self) -> None:
        """The loops go by the disk as it is now."""
        for loop in self._loops:
            loop.rules.capacity = self._capacity
            loop.writeback = self._writeback

    def _serve_apart(self, request: Request) -> None:
        """What a loop hands over, from its thread: one at a time, for what follows knows of no threads."""
        with self._apart_lock:
            self._handle(request, b"")

    # What the operator does

    @property
    def counters(self) -> BlockCounters:
        """What the device has done, loops that are at work included."""
        if not self._loops:
            return self._counters
        both = replace(self._counters, errors=dict(self._counters.errors))
        for loop in list(self._loops):
            loop.add_to(both)
        return both

    @property
    def capacity(self) -> int:
        """Bytes that the driver sees."""
        return self._capacity

    @property
    def writeback(self) -> bool:
        """Whether a completed write may still be volatile."""
        return self._writeback

    def resize(self, size: int) -> None:
        """Let the disk have `size` bytes and tell the driver; the backing has them already, or loses them after this.

        Raises `LocalError` for a size that is no multiple of the logical block or more than the backing has.
        """
        if size < 0 or size % self.block_size or size > self.backing.size:
            raise LocalError(
                f"a disk of {size} bytes on a backing of {self.backing.size}: expected a multiple of {self.block_size}"
            )
        if size != self._capacity:
            self._capacity = size
            self._tell_loops()
            self.config_changed()

    def state(self) -> dict[str, object]:
        """The cache mode that the driver chose, and the size that it knows."""
        return {"writeback": self._writeback, "capacity": self._capacity}

    def restore(self, state: dict[str, object]) -> None:
        """Take these over. Raises `LocalError` when they do not fit this disk."""
        writeback, capacity = state.get("writeback"), state.get("capacity")
        if not isinstance(writeback, bool) or not isinstance(capacity, int):
            raise LocalError(f"not the state of a block device: {state}")
        if not 0 <= capacity <= self.backing.size or capacity % self.block_size:
            raise LocalError(f"the driver knows a disk of {capacity} bytes, the backing has {self.backing.size}")
        self._writeback = writeback
        self._capacity = capacity

    # Requests

    def process(self, queue: DeviceQueue) -> None:
        """Serve what is available; with limits, what may be served now."""
        if self._throttle is not None:
            self._process_limited(queue, self._throttle)
        elif queue.batch is not None and self._handles_batches:
            self._process_batches(queue, queue.batch)
        else:
            super().process(queue)

    def handle(self, request: Request) -> None:
        """Serve one request (virtio 1.4, 5.2.6)."""
        self._handle(request, b"")

    def _handle(self, request: Request, header: bytes | None) -> None:
        """`header` is what was read of it already: nothing yet, 16 bytes, or None when they cannot be read."""
        readable, writable = request.readable, request.writable
        self.requests += 1
        room = writable.length - 1
        if room < 0:
            self._count("no status")
            request.complete(0)
            return
        try:
            if header is None:
                filled = self._failed("memory", blk.S_IOERR)
            else:
                filled = self._serve(request, readable, writable, room, header)
        except OSError:
            filled = self._failed("backing", blk.S_IOERR)
        except RemoteError:
            filled = self._failed("memory", blk.S_IOERR)
        status = 0
        if filled < 0:
            status, filled = -filled, 0
        try:
            writable.write(room, _STATUS[status])
        except RemoteError:
            self._count("no status")
            request.complete(0)
            return
        # The used length counts from the first writable byte on, so the status counts only if nothing before it is
        # left out (2.7.8.2: a driver may rely on all of it).
        request.complete(filled + 1 if filled == room else filled)

    def _process_batches(self, queue: DeviceQueue, batch: Batch) -> None:
        """Serve what is available, as many requests at once as there are."""
        if self._left and not self._serve_left(queue):
            return
        table = borrow()
        try:
            full = True
            while full and queue.index not in self._left:
                try:
                    full = table.fill(queue) == ROWS
                except RemoteError:
                    if table.count:  # the ring broke behind them
                        self._serve_table(table, batch)
                    raise
                if table.count:
                    self._serve_table(table, batch)
        finally:
            give_back(table)

    def _serve_table(self, table: RequestTable, batch: Batch) -> None:
        """Serve these."""
        self._rules.capacity = self._capacity
        flush = None if self._writeback else self._flush_written
        usual = serve(table, batch, self.backing, self._rules, self._counters, flush, self._serve_other)
        self.requests += usual  # `_serve_other` counts, too

    def _serve_other(self, table: RequestTable, row: int) -> bool:
        """Serve one that is no usual read or write.

        What takes long and was not charged for when it was popped may end the pass: the rest is for the next one.
        """
        queue = table.queue
        assert queue is not None
        self._handle(table.request(row), table.header(row))
        row += 1
        if row < table.count and queue.allowance is not None and queue.allowance <= 0:
            rest = deque((table.request(one), table.header(one)) for one in range(row, table.count))
            self._left[queue.index] = queue, rest
            queue.wake()
            return False
        return True

    def _serve_left(self, queue: DeviceQueue, *, all_of_it: bool = False) -> bool:
        """Serve what is left of an earlier pass; whether that is all of it."""
        _, left = self._left.pop(queue.index, (queue, None))
        while left:
            self._handle(*left.popleft())
            if left and not all_of_it and queue.allowance is not None and queue.allowance <= 0:
                self._left[queue.index] = queue, left
                queue.wake()
                return False
        return True

    def _flush_written(self, table: RequestTable, first: int, end: int) -> None:
        """Make the writes of a group stable: one flush covers all of them."""
        table.charge(_FLUSH_COST)
        try:
            self.backing.flush()
        except OSError as error:
            fail_written(table, first, end, error.errno or errno.EIO)

    def _serve(self, request: Request, readable: Payload, writable: Payload, room: int, header: bytes) -> int:
        """Do it; returns the bytes of data written to the driver, or the status of a failure, negative."""
        counters = self._counters
        length = readable.length - 16
        if length < 0:
            return self._failed("malformed", blk.S_IOERR)
        if length > self.options.max_request or room > self.options.max_request:
            return self._failed("range", blk.S_IOERR)
        kind, _, sector = self._header.unpack(header or readable.read(0, 16))
        position = sector * SECTOR
        if kind == blk.T_IN:
            if room % SECTOR or position + room > self._capacity:
                return self._failed("range", blk.S_IOERR)
            if room:
                writable.fill_from(self.backing, position, 0, room)
            counters.reads += 1
            counters.bytes_read += room
            return room
        if kind == blk.T_OUT:
            if self.read_only:
                return self._failed("read-only", blk.S_IOERR)
            if length % SECTOR or position + length > self._capacity:
                return self._failed("range", blk.S_IOERR)
            if length:
                readable.drain_to(self.backing, position, 16, length)
            if not self._writeback:
                request.charge(_FLUSH_COST)
                self.backing.flush()
            counters.writes += 1
            counters.bytes_written += length
            return 0
        if kind in (blk.T_FLUSH, blk.T_FLUSH_OUT):
            request.charge(_FLUSH_COST)
            self.backing.flush()
            counters.flushes += 1
            return 0
        if kind == blk.T_DISCARD and self._negotiated & blk.F_DISCARD:
            return self._change_ranges(request, readable, length, kind)
        if kind == blk.T_WRITE_ZEROES and self._negotiated & blk.F_WRITE_ZEROES:
            return self._change_ranges(request, readable, length, kind)
        if kind == blk.T_SECURE_ERASE and self._negotiated & blk.F_SECURE_ERASE:
            return self._change_ranges(request, readable, length, kind)
        if kind == blk.T_GET_ID:
            answer = self._serial[:room]
            writable.write(0, answer)
            return len(answer)
        return self._failed("unsupported", blk.S_UNSUPP)

    def _change_ranges(self, request: Request, readable: Payload, length: int, kind: int) -> int:
        """DISCARD, WRITE_ZEROES and SECURE_ERASE: all ranges are checked before the first is touched."""
        options, size, counters = self.options, self._segment.size, self._counters
        if self.read_only:
            return self._failed("read-only", blk.S_IOERR)
        if length == 0 or length % size or length > options.max_segments * size:
            return self._failed("malformed", blk.S_IOERR)
        allowed = blk.SEGMENT_UNMAP if kind == blk.T_WRITE_ZEROES else 0
        limit = {
            blk.T_DISCARD: options.max_discard_sectors,
            blk.T_WRITE_ZEROES: options.max_write_zeroes_sectors,
            blk.T_SECURE_ERASE: options.max_secure_erase_sectors,
        }[kind]
        ranges = list(self._segment.iter_unpack(readable.read(16, length)))
        if any(flags & ~allowed for _, _, flags in ranges):
            return self._failed("unsupported", blk.S_UNSUPP)
        if any(count > limit or (sector + count) * SECTOR > self._capacity for sector, count, _ in ranges):
            return self._failed("range", blk.S_IOERR)
        whole = sum(count for _, count, _ in ranges) * SECTOR
        request.charge(_FLUSH_COST if kind == blk.T_DISCARD else whole)
        for sector, count, flags in ranges:
            position, count = sector * SECTOR, count * SECTOR
            if kind == blk.T_WRITE_ZEROES:
                self.backing.write_zeroes(position, count, unmap=bool(flags & blk.SEGMENT_UNMAP))
            elif kind == blk.T_DISCARD:
                self.backing.discard(position, count)
            elif count:
                try:
                    self.backing.secure_erase(position, count)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:
                        raise
                    return self._failed("unsupported", blk.S_UNSUPP)
        if not self._writeback:
            self.backing.flush()
        if kind == blk.T_WRITE_ZEROES:
            counters.write_zeroes += 1
        elif kind == blk.T_DISCARD:
            counters.discards += 1
        else:
            counters.secure_erases += 1
        return 0

    # Limits

    @property
    def delayed(self) -> int:
        """Requests that wait now because of the limits."""
        return 0 if self._throttle is None else len(self._throttle)

    def suspend(self) -> None:
        """What waits because of a limit is served at once, in debt: a client that suspends waits for all of it."""
        for queue, _ in list(self._left.values()):
            self._serve_left(queue, all_of_it=True)
            queue.flush()
        if self._throttle is not None:
            self._serve_waiting(self._throttle, unlimited=True)

    def queue_reset(self, index: int) -> None:
        """What waits is the driver's again."""
        self._left.pop(index, None)
        if self._throttle is not None:
            self._throttle.forget(index)

    def _process_limited(self, queue: DeviceQueue, throttle: Throttle) -> None:
        assert self.scheduler is not None  # `start` looked
        now = self.scheduler.clock()
        new: list[Waiting] = []
        try:
            while (request := queue.pop()) is not None:
                new.append(self._classify(queue, request, now))
                throttle.add(new[-1])
        finally:  # also when the driver broke the ring: what waits needs its timer
            self._serve_waiting(throttle)
            self._counters.throttled += sum(not waiting.served for waiting in new)

    def _serve_waiting(self, throttle: Throttle, *, unlimited: bool = False) -> None:
        """Serve what may go now, and come again when there is more that may."""
        scheduler = self.scheduler
        assert scheduler is not None
        now = scheduler.clock()
        touched: set[DeviceQueue] = set()
        while isinstance(found := throttle.next(now, unlimited=unlimited), Waiting):
            self._counters.throttled_seconds += now - found.since
            self._handle(found.request, found.header)
            touched.add(found.queue)
        self._stop_timer()
        if found is not None:
            self._throttle_timer = scheduler.call_later(found, lambda: self._serve_waiting(throttle))
        for queue in touched:
            queue.flush()

    def _stop_timer(self) -> None:
        if self._throttle_timer is not None:
            self._throttle_timer.cancel()
            self._throttle_timer = None

    def _classify(self, queue: DeviceQueue, request: Request, now: float) -> Waiting:
        """What a request costs. Its header is read here and not again."""
        header: bytes | None = b""
        size, is_flush = 0, False
        if request.readable.length >= 16:
            try:
                header = request.readable.read(0, 16)
            except RemoteError:
                header = None
        if header:
            kind = self._header.unpack(header)[0]
            if kind == blk.T_IN:
                size = max(0, request.writable.length - 1)
            elif kind == blk.T_OUT:
                size = request.readable.length - 16
            is_flush = kind in (blk.T_FLUSH, blk.T_FLUSH_OUT)
        return Waiting(queue, request, header, size, is_flush, now)

    def _failed(self, kind: str, status: int) -> int:
        self._count(kind)
        return -status

    def _count(self, kind: str) -> None:
        self._counters.count(kind)
