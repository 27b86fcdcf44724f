"""The driver's side of one virtqueue over CRQ: buffers are mapped through the TCE window for as long as the device
has them, and a kick is an H_SEND_CRQ (docs/protocol.md, P6).

Mapping is strict: a buffer is unmapped before its driver hears of the completion, unless the client was told to be
lazy. Buffers that stay mapped (headers, status bytes) cost nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from powervio.errors import RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.papr.codes import HcallError
from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.transport.crq.channels import Notifier
from powervio.transport.crq.protocol import Message, QueueAddresses, encode
from powervio.vio.crq import CrqEnd
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.vio.ranges import RangeExhausted
from powervio.virtio import features as feature
from powervio.virtio import packed_layout, split_layout
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.queue import BufferSlice, DriverQueue
from powervio.virtio.split_driver import SplitDriverRing

IndirectPolicy: TypeAlias = Literal["auto", "always", "never"]
"""When a chain goes into an indirect table: `auto` only where it saves a shortage of descriptors, because fetching a
table costs the server one more remote copy."""

_AUTO_SEGMENTS = 16
_LAZY = 64
"""Buffers that stay mapped after their use where unmapping is lazy, at most."""


class OwnRing(RingMemory):
    """Ring memory in the client's own partition: mapped for the device, plain memory for the driver."""

    def __init__(self, dma: DmaSpace, size: int, available_bytes: int, used_bytes: int) -> None:
        available_at = 16 * size
        used_at = (available_at + available_bytes + 7) & ~7
        self._dma = dma
        self._memory = dma.allocate(used_at + used_bytes)
        view = self._memory.view
        self.descriptors = view[:available_at]
        self.available = view[available_at : available_at + available_bytes]
        self.used = view[used_at : used_at + used_bytes]
        self._used_at = used_at

    def addresses(self, index: int, size: int) -> QueueAddresses:
        """The entry of FIND_VQS for this ring."""
        ioba = self._memory.ioba
        return QueueAddresses(index, size, ioba, ioba + 16 * size, ioba + self._used_at)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """A driver never fetches a table."""
        raise NotImplementedError

    def release(self) -> None:
        """Unmap and free; the ring is not used afterwards."""
        for area in (self.descriptors, self.available, self.used):
            area.release()
        self._dma.release(self._memory)


class _InFlight:
    """What has to be undone when a buffer comes back."""

    __slots__ = ("mappings", "table", "token")

    def __init__(self, token: object, mappings: list[tuple[int, int]], table: DmaMemory | None) -> None:
        self.token = token
        self.mappings = mappings
        self.table = table


class CrqDriverQueue(DriverQueue):
    """See `DriverQueue`. Lives for one session; `end` takes every mapping back."""

    def __init__(
        self,
        index: int,
        size: int,
        dma: DmaSpace,
        crq: CrqEnd,
        session: int,
        *,
        big_endian: bool,
        features: int,
        indirect: IndirectPolicy,
        lazy: bool = False,
    ) -> None:
        """`features` are those that were negotiated: they decide over the kind of ring. `lazy`: see `VirtioVio`."""
        self.index = index
        self.size = size
        if not features & feature.INDIRECT_DESC:
            indirect = "never"
        self._dma = dma
        self._features = features if indirect != "never" else features & ~feature.INDIRECT_DESC
        self._big_endian = big_endian
        self.memory = self._make_memory()
        self.ring = self._make_ring()
        self.ending = False
        """Set while the last completions are taken: nothing is added any more."""
        self.held = False
        """Set while the device is not to look at the queue: what is added is not published."""
        self._notifier: Notifier = crq
        self._indirect = indirect
        self._tables: list[DmaMemory] = []
        self._keep = _LAZY if lazy else 0
        self._reaped: deque[tuple[object, int]] = deque()
        """What the device has used and the driver has not taken yet."""
        self._used: list[tuple[object, int]] = []
        """What the device has used, as long as not all of it is unmapped."""
        self._mapped: list[tuple[int, int]] = []
        """The mappings of these."""
        self._kick_high, self._kick_low = encode(Message.KICK, session, queue=index)
        self._build: Callable[[], tuple[int, int]] = self._kick_message

    def _make_memory(self) -> OwnRing:
        if self._features & feature.RING_PACKED:
            return OwnRing(self._dma, self.size, packed_layout.EVENT_BYTES, packed_layout.EVENT_BYTES)
        lengths = split_layout.available_bytes(self.size), split_layout.used_bytes(self.size)
        return OwnRing(self._dma, self.size, *lengths)

    def _make_ring(self) -> DriverRing:
        """An empty ring in `memory`."""
        event_idx = bool(self._features & feature.EVENT_IDX)
        indirect = bool(self._features & feature.INDIRECT_DESC)
        in_order = bool(self._features & feature.IN_ORDER)
        if self._features & feature.RING_PACKED:
            return PackedDriverRing(self.size, self.memory, event_idx=event_idx, indirect=indirect, in_order=in_order)
        return SplitDriverRing(
            self.size,
            self.memory,
            big_endian=self._big_endian,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
        )

    def addresses(self) -> QueueAddresses:
        """Where the device finds the ring."""
        return self.memory.addresses(self.index, self.size)

    def use(self, notifier: Notifier, generation: int) -> None:
        """Kick through a Sub-CRQ; the kick carries the queue's generation (P5.16)."""
        self._notifier = notifier
        self._kick_low = generation << 48

    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> bool:
        """See `DriverQueue`: descriptors carry I/O addresses; what is not mapped yet is mapped here."""
        if self.ending:
            # nothing is mapped for a server that has lost its connection (P1.5)
            raise RemoteError("the session is over", Verdict.CLOSE)
        count = len(readable) + len(writable)
        indirect = self._indirect == "always" and count > 1
        free = self.ring.free_descriptors
        if self._indirect == "auto" and (count > _AUTO_SEGMENTS or count > free):
            indirect = True
        if free < (1 if indirect else count):
            return False
        segments: list[tuple[int, int]] = []
        mappings: list[tuple[int, int]] = []
        table: DmaMemory | None = None
        try:
            for slices, access in ((readable, TCE_READ), (writable, TCE_ACCESS)):
                for buffer, offset, length in slices:
                    if buffer.device_address is not None:
                        segments.append((buffer.device_address + offset, length))
                    else:
                        ioba = self._dma.plan(buffer.address + offset, length, access)
                        mappings.append((ioba, length))
                        segments.append((ioba, length))
            if indirect:
                table = self._take_table()
            place = None if table is None else (table.view, table.ioba)
            added = self.ring.add(segments, len(readable), _InFlight(token, mappings, table), place) >= 0
        except RangeExhausted:
            self._give_back(mappings, table)
            if not self._mapped:
                raise
            self._unmap()  # what was left mapped out of laziness is in the way
            return self.add(readable, writable, token)
        except HcallError as error:
            self._give_back(mappings, table)
            if self._dma.gone:
                raise RemoteError("the adapter was unplugged") from error
            raise
        except BaseException:
            self._give_back(mappings, table)
            raise
        if not added:
            self._give_back(mappings, table)
        return added

    def kick(self) -> None:
        """See `DriverQueue`: this is where a kick becomes an H_SEND_CRQ, or an H_SEND_SUB_CRQ.

        Everything that was added is mapped before the device can see it.
        """
        if self.ending or self.held:
            return
        try:
            self._dma.commit()
        except HcallError:
            if self._dma.gone:
                return  # the device tree tells the driver
            raise
        if self.ring.publish():
            self._notifier.signal(self.index, self._build)

    def _kick_message(self) -> tuple[int, int]:
        index = self.ring.published_index  # bytes 6-7, and the round of a packed ring in bytes 10-11 (P6.2)
        return self._kick_high | index & 0xFFFF, self._kick_low | (index >> 16) << 32

    def reap(self) -> tuple[object, int] | None:
        """See `DriverQueue`. Raises `RemoteError` when the device broke the ring.

        All that the device has used by now is unmapped together, before the first of it is handed out. Raises
        `HcallError` when that is not possible, for a DMA engine works there still perhaps: the next call tries again.
        """
        if not self._reaped:
            self._collect()
            if not self._reaped:
                return None
        return self._reaped.popleft()

    def _collect(self) -> None:
        reap = self.ring.reap
        try:
            while (result := reap()) is not None:
                entry, written = result
                assert isinstance(entry, _InFlight)
                self._mapped += entry.mappings
                if entry.table is not None:
                    self._tables.append(entry.table)
                self._used.append((entry.token, written))
        except RemoteError:
            if not self._used:
                raise  # else it is raised again when what came before is handed out: a broken ring stays so
        if len(self._mapped) > self._keep:
            self._unmap()
        self._reaped.extend(self._used)
        self._used.clear()

    def _unmap(self) -> None:
        self._dma.unmap_all(self._mapped)
        self._mapped = []

    def end(self) -> None:
        """The session is over: take every mapping back and free the ring. Buffers are the driver's again."""
        self._take_back()
        for table in self._tables:
            self._dma.release(table)
        self._tables.clear()
        self.memory.release()

    def renew(self, notifier: Notifier, generation: int) -> list[object]:
        """The device has forgotten the queue: begin with an empty ring elsewhere; returns the tokens of what was in it.

        Raises `LocalError` when there is no memory for another ring.
        """
        memory = self._make_memory()
        tokens = self._take_back()
        self.memory.release()
        self.memory = memory
        self.ring = self._make_ring()
        self.use(notifier, generation)
        return tokens

    def _take_back(self) -> list[object]:
        tokens: list[object] = [token for token, _ in (*self._reaped, *self._used)]
        self._reaped.clear()
        self._used.clear()
        mappings, self._mapped = self._mapped, []
        for entry in self.ring.drain():
            assert isinstance(entry, _InFlight)
            mappings += entry.mappings
            if entry.table is not None:
                self._tables.append(entry.table)
            tokens.append(entry.token)
        self._dma.unmap_all(mappings)
        return tokens

    def _give_back(self, mappings: list[tuple[int, int]], table: DmaMemory | None) -> None:
        self._dma.unmap_all(mappings)
        if table is not None:
            self._tables.append(table)

    def _take_table(self) -> DmaMemory:
        """A mapped piece for one indirect table of up to `size` entries; a pool that grows with the need."""
        if not self._tables:
            self._tables.append(self._dma.allocate(16 * self.size))
        return self._tables.pop()
