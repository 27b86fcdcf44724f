"""The virtio block driver without I/O: requests in, completions out (virtio 1.4, 5.2).

`submit` puts a request into a ring or, when none has room, into the pending queue; `kick` tells the device; `completed`
finishes what the device gave back and places what is pending. A request's life::

    submit -> pending -> in a ring -> done          done: exactly once, by its callback
                 ^___________|  session lost, queue reset

**Session loss.** When the server goes away (`stop`) what was in a ring goes back to the front of the pending queue, in
the order in which it was submitted, and the next session (`start`) takes it from there. The device may have done some
of it already; doing it again is harmless: a request that has not completed is not ordered against any other, and
reading, writing the same bytes, flushing, discarding and zeroing have the same result the second time.

A *completed* write that was not flushed is in the cache of the machine that serves the image, not in the server
process, so it survives the process; a flush that goes to the server's successor covers it as well, for fdatasync is
about the file. What is lost with the machine is what any disk's write cache loses at a power failure.

**Memory.** Headers, status bytes and discard ranges live in slots of their own pages, which stay mapped; data are the
caller's buffers. A slot is taken when a request enters a ring and is free again when it left it or the session ended,
so the device never has a slot that somebody writes.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from operator import attrgetter

from powervio.drivers.block_limits import SECTOR, BlockLimits
from powervio.drivers.block_request import NOT_WRITTEN, BlockRequest, Slot, failure, meaning, slot_bytes
from powervio.errors import LocalError, RemoteError
from powervio.virtio import block as blk
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, BufferSlice, ByteOrder, DriverQueue, DriverTransport


class BlockCore(BlockLimits, Driver):
    """A disk for callers that keep many requests going and are told by callback.

    Everything is called in the partition's thread. Before the first session the limits below are not known yet, and
    requests wait.
    """

    device_id = blk.DEVICE_ID

    def __init__(self, *, max_queues: int = 16, numbers: Iterator[int] | None = None) -> None:
        """Use up to `max_queues` of the queues that the device has.

        `numbers` gives each request its place in the order of submission; cores that pass requests on to each other
        share one.
        """
        super().__init__()
        self.max_queues = max_queues
        self.requests = 0
        """Completed by the device."""
        self.failed = 0
        """Completed, by the device or here, with an error."""
        self.resubmitted = 0
        """Put back when a session was lost or a queue was reset."""
        self._transport: DriverTransport | None = None
        self._queues: Sequence[DriverQueue] = ()
        self._load: list[int] = []
        self._unkicked: set[int] = set()
        self._pending: deque[BlockRequest] = deque()
        self._in_flight: dict[int, BlockRequest] = {}
        self._numbers = count() if numbers is None else numbers
        self._slots: list[Slot] = []
        self._free_slots: deque[Slot] = deque()  # first in, first out: requests of one batch have neighbours
        self._unmade_slots: Iterator[Slot] = iter(())
        self._slot_room = 0
        self._slot_memory: list[Buffer] = []
        self._header = blk.REQUEST_HEADER["little"]
        self._segment = blk.SEGMENT["little"]

    # What the disk is

    @property
    def connected(self) -> bool:
        """Whether a session is on."""
        return self._transport is not None

    @property
    def in_flight(self) -> int:
        """Requests that the device has."""
        return len(self._in_flight)

    @property
    def pending(self) -> int:
        """Requests that wait for room or for a session."""
        return len(self._pending)

    # Sessions

    def select_features(self, offered: int) -> int:
        """Every feature that this driver has a use for."""
        wanted = (
            blk.F_SIZE_MAX | blk.F_SEG_MAX | blk.F_RO | blk.F_BLK_SIZE | blk.F_FLUSH | blk.F_TOPOLOGY
            | blk.F_CONFIG_WCE | blk.F_DISCARD | blk.F_WRITE_ZEROES | blk.F_SECURE_ERASE
        )  # fmt: skip
        if self.max_queues > 1:
            wanted |= blk.F_MQ
        return offered & wanted

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """As many as the device has, up to `max_queues`."""
        if not features & blk.F_MQ:
            return 1
        return max(1, min(self.max_queues, blk.unpack_config(config, byteorder).num_queues))

    def start(self, transport: DriverTransport) -> None:
        """Learn what the disk is and place what is pending. Raises `RemoteError` for a config that cannot be."""
        self.features = transport.features
        self._header = blk.REQUEST_HEADER[transport.byteorder]
        self._segment = blk.SEGMENT[transport.byteorder]
        self._queues = transport.queues
        self._load = [0] * len(transport.queues)
        self._make_slots(transport, sum(queue.size for queue in transport.queues))
        self._read_config(transport)
        self._transport = transport
        self.started = True
        self._place_pending()
        self.kick()

    def stop(self) -> None:
        """The session is lost: what the device had is pending again, in front and in its old order."""
        self._transport = None
        self._queues = ()
        self._load = []
        self._unkicked.clear()
        lost = list(self._in_flight.values())
        self._in_flight.clear()
        for request in lost:
            request.slot = None
        self._put_back(lost)

    def reset_queue(self, index: int) -> None:
        """Take back what the device has in one queue, and submit it again, but for what was withdrawn.

        This is the way to a request that the device holds for too long: withdraw it, then reset its queue; the session
        and the other queues go on. Raises `LocalError` when there is no session or the device cannot do it.
        """
        if self._transport is None:
            raise LocalError("there is no session, and so no queue to reset")
        self._transport.reset_queue(self._queues[index], partial(self._came_back, index))

    def _came_back(self, index: int, tokens: list[object]) -> None:
        back: list[BlockRequest] = []
        for request in tokens:
            assert isinstance(request, BlockRequest)
            assert request.slot is not None
            self._free_slots.append(request.slot)
            request.slot = None
            del self._in_flight[request.order]
            back.append(request)
        self._load[index] -= len(back)
        self._put_back(back)
        self._place_pending()
        self.kick()

    def _put_back(self, requests: list[BlockRequest]) -> None:
        """What the device had and did not complete is pending again, in front and in its old order, or ends here."""
        again: list[BlockRequest] = []
        gone: list[BlockRequest] = []
        for request in sorted(requests, key=attrgetter("order")):
            (gone if request.withdrawn or self._closed is not None else again).append(request)
        self.resubmitted += len(again)
        self._pending.extendleft(reversed(again))
        for request in gone:
            if request.withdrawn:
                self._fail(request, errno.ECANCELED, "withdrawn")
            else:
                self._fail(request, errno.ESHUTDOWN, self._closed or "")

    def config_changed(self) -> None:
        """Read the config again; tells `on_resize` if the capacity is another."""
        if self._transport is not None:
            self._read_config(self._transport)

    def fail_all(self, reason: str) -> None:
        """The disk goes away for good: fail what is pending now, what the device has at its end, what comes at once."""
        self._closed = reason
        while self._pending:
            self._fail(self._pending.popleft(), errno.ESHUTDOWN, reason)

    def removed(self, reason: str) -> None:
        """See `fail_all`."""
        self.fail_all(reason)

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """Give back the memory of the slots; the session is over."""
        self._slots.clear()
        self._free_slots.clear()
        self._unmade_slots = iter(())
        self._slot_room = 0
        while self._slot_memory:
            give_back(self._slot_memory.pop())

    def _read_config(self, transport: DriverTransport) -> None:
        config = blk.unpack_config(transport.config(), transport.byteorder)
        has = self.features
        block_size = config.blk_size if has & blk.F_BLK_SIZE else SECTOR
        if block_size < SECTOR or block_size & (block_size - 1):
            raise RemoteError(f"block size {block_size} is no power of two from {SECTOR} (virtio 1.4, 5.2.4)")
        size_max = config.size_max if has & blk.F_SIZE_MAX else 0
        if 0 < size_max < SECTOR:
            raise RemoteError(f"segments of at most {size_max} bytes hold no sector (virtio 1.4, 5.2.4)")
        self.block_size = block_size
        # log2 of the physical block in logical ones; what gives no sensible size is as good as not told.
        exponent = config.physical_block_exp if has & blk.F_TOPOLOGY else 0
        self.physical_block_size = block_size << exponent if exponent < 16 else block_size
        self.size_max = (size_max or (1 << 32) - SECTOR) // SECTOR * SECTOR
        # A chain is no longer than the queue, also in an indirect table (2.7.5.3.1): header and status are in it.
        room = min(queue.size for queue in self._queues) - 2
        self.seg_max = max(1, min(room, config.seg_max or 1)) if has & blk.F_SEG_MAX else max(1, room)
        self.max_discard = (config.max_discard_sectors or 0xFFFF_FFFF) * SECTOR if has & blk.F_DISCARD else 0
        self.discard_alignment = max(1, config.discard_sector_alignment) * SECTOR if has & blk.F_DISCARD else SECTOR
        self.max_write_zeroes = (
            (config.max_write_zeroes_sectors or 0xFFFF_FFFF) * SECTOR if has & blk.F_WRITE_ZEROES else 0
        )
        self.max_secure_erase = (
            (config.max_secure_erase_sectors or 0xFFFF_FFFF) * SECTOR if has & blk.F_SECURE_ERASE else 0
        )
        capacity = config.capacity * SECTOR
        if capacity != self.capacity:
            self.capacity = capacity
            if self.on_resize is not None:
                self.on_resize()

    def _make_slots(self, transport: DriverTransport, count: int) -> None:
        """Have memory for `count` slots, in pages that hold nothing else."""
        missing = count - self._slot_room
        if missing > 0:
            buffer = transport.allocate(slot_bytes(missing), mapped=True)
            self._slot_memory.append(buffer)
            more = (Slot(buffer, number, missing) for number in range(missing))
            self._unmade_slots = chain(self._unmade_slots, more)
            self._slot_room = count
        self._free_slots = deque(self._slots)

    def _make_slot(self) -> bool:
        """One more slot is needed than ever before; an idle disk has none of these objects. False if there is none."""
        slot = next(self._unmade_slots, None)
        if slot is None:
            return False
        self._slots.append(slot)
        self._free_slots.append(slot)
        return True

    # Requests

    def submit(self, request: BlockRequest) -> None:
        """Take a request; the device has it after the next `kick`, or later when there is no room or no session now.

        Its callback may be called before this returns, if nothing has to be done for it or nothing can be.
        Raises `BlockError` for what this disk cannot do and `LocalError` for what no request can be; it is not
        submitted then.
        """
        self.check(request)
        request.order = next(self._numbers)
        try:
            self._take(request)
        except BaseException:
            request.order = -1
            raise

    def _take(self, request: BlockRequest) -> None:
        if self._pending or not self._place(request):
            self._pending.append(request)

    def submit_many(self, requests: Iterable[BlockRequest]) -> None:
        """Take requests in their order; what raises leaves those before it submitted."""
        for request in requests:
            self.submit(request)

    def kick(self) -> None:
        """Tell the device of what was submitted since the last kick."""
        while self._unkicked:
            self._queues[self._unkicked.pop()].kick()

    def withdraw(self, request: BlockRequest) -> None:
        """Give a request up: it ends with ECANCELED if the device does not have it.

        If the device has it, it ends as if it had not been withdrawn, unless the session is lost before or its queue
        is reset.
        """
        if request.done:
            return
        request.withdrawn = True
        if request.slot is None:
            try:
                self._pending.remove(request)
            except ValueError:
                return  # not submitted
            self._fail(request, errno.ECANCELED, "withdrawn")

    def completed(self, queue: DriverQueue) -> None:
        """Finish what the device gave back, then use the room. Raises `RemoteError` when the ring is broken."""
        index = queue.index
        while (used := queue.reap()) is not None:
            request = used[0]
            assert isinstance(request, BlockRequest)
            slot = request.slot
            assert slot is not None
            request.slot = None
            status = slot.view[slot.status_at]
            if request.kind == blk.T_GET_ID:
                request.answer = slot.read_id()
            self._free_slots.append(slot)
            del self._in_flight[request.order]
            self._load[index] -= 1
            self.requests += 1
            self._finish(request, status)
        if self._pending:
            self._place_pending()
        if self._unkicked:
            self.kick()

    def _place_pending(self) -> None:
        pending = self._pending
        while pending and self._transport is not None:
            request = pending.popleft()
            placed = False
            try:
                placed = self._place(request)
            finally:
                if not placed:
                    pending.appendleft(request)
            if not placed:
                break

    def _place(self, request: BlockRequest) -> bool:
        """Put a request into the least loaded ring that has room, or fail it; False when it has to wait."""
        if self._transport is None or not (self._free_slots or self._make_slot()):
            return False
        slot = self._free_slots[0]
        kind = request.kind
        if kind == blk.T_FLUSH and not self.needs_flush:
            self._finish(request, blk.S_OK)  # each write was stable when it completed
            return True
        self._header.pack_into(slot.view, slot.base, kind, 0, request.position // SECTOR)
        slot.view[slot.status_at] = NOT_WRITTEN
        readable: Sequence[BufferSlice] = slot.header
        writable: Sequence[BufferSlice] = slot.status
        if kind == blk.T_IN:
            writable = (*request.slices, *writable)
        elif kind == blk.T_OUT:
            readable = (*readable, *request.slices)
        elif kind == blk.T_GET_ID:
            writable = slot.answer
        elif kind != blk.T_FLUSH:
            # The range says what is meant; the header's own sector is 0 (virtio 1.4, 5.2.6.1).
            self._header.pack_into(slot.view, slot.base, kind, 0, 0)
            self._segment.pack_into(
                slot.view, slot.segment_at, request.position // SECTOR, request.length // SECTOR, request.flags
            )
            readable = slot.ranges
        code, reason = errno.E2BIG, "it does not fit into an empty queue"
        for index in self._by_load():
            try:
                placed = self._queues[index].add(readable, writable, request)
            except RemoteError:
                return False  # the ring is broken: the session is about to end, and the request is for the next one
            except LocalError as error:
                # No room in the window, perhaps: then it comes back with the requests that have it now.
                code, reason = errno.EINVAL, str(error)
                break
            if placed:
                self._free_slots.popleft()
                request.slot = slot
                self._in_flight[request.order] = request
                self._load[index] += 1
                self._unkicked.add(index)
                return True
        if self._in_flight:
            return False
        self._fail(request, code, reason)  # nothing will make more room than there is now
        return True

    def _by_load(self) -> Sequence[int]:
        if len(self._queues) == 1:
            return (0,)
        return sorted(range(len(self._queues)), key=self._load.__getitem__)

    def _finish(self, request: BlockRequest, status: int) -> None:
        request.status = status
        if status != blk.S_OK:
            self._fail(request, *meaning(status))
            return
        request.done = True
        if request.callback is not None:
            request.callback(request)

    def _fail(self, request: BlockRequest, code: int, reason: str) -> None:
        self.failed += 1
        request.error = failure(request, code, reason)
        request.done = True
        if request.callback is not None:
            request.callback(request)
