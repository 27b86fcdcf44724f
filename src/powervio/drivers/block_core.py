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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter

from powervio.drivers.block_limits import SECTOR
from powervio.drivers.block_request import BlockRequest, Slot, slot_bytes
from powervio.drivers.block_rings import BlockRings, Ring
from powervio.errors import LocalError, RemoteError
from powervio.virtio import block as blk
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverTransport


class BlockCore(BlockRings, Driver):
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
        super().__init__(numbers)
        self.max_queues = max_queues
        self._slot_room = 0
        self._slot_memory: list[Buffer] = []

    # What the disk is

    @property
    def connected(self) -> bool:
        """Whether a session is on."""
        return self._transport is not None

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
        self._big_endian = transport.byteorder == "big"
        self._rings = [Ring(queue) for queue in transport.queues]
        self._make_slots(transport, sum(queue.size for queue in transport.queues))
        self._read_config(transport)
        self._transport = transport
        self.started = True
        self._place_pending()
        self.kick()

    def stop(self) -> None:
        """The session is lost: what the device had is pending again, in front and in its old order."""
        self._transport = None
        self._rings = []
        self._unkicked = False
        self._put_back(self._free_all())

    def reset_queue(self, index: int) -> None:
        """Take back what the device has in one queue, and submit it again, but for what was withdrawn.

        This is the way to a request that the device holds for too long: withdraw it, then reset its queue; the session
        and the other queues go on. Raises `LocalError` when there is no session or the device cannot do it.
        """
        if self._transport is None:
            raise LocalError("there is no session, and so no queue to reset")
        self._transport.reset_queue(self._rings[index].queue, partial(self._came_back, index))

    def _came_back(self, index: int, tokens: list[object]) -> None:
        self._put_back(self._came_out(index, tokens))
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
        self._free_slots()
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
        room = min(ring.queue.size for ring in self._rings) - 2
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
        self._free_slots()
