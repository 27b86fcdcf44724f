"""The driver's side of one virtqueue over CRQ: buffers are mapped through the TCE window for as long as the device
has them, and a kick is an H_SEND_CRQ (docs/protocol.md, P6).

Mapping is strict: a buffer is unmapped before its driver hears of the completion. Buffers that stay mapped (headers,
status bytes) cost nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from powervio.errors import RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.papr.codes import HcallError
from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.transport.crq.channels import Notifier
from powervio.transport.crq.protocol import Message, QueueAddresses, encode
from powervio.vio.crq import CrqEnd
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.virtio.queue import BufferSlice, DriverQueue
from powervio.virtio.split_driver import SplitDriverRing

IndirectPolicy: TypeAlias = Literal["auto", "always", "never"]
"""When a chain goes into an indirect table: `auto` only where it saves a shortage of descriptors, because fetching a
table costs the server one more remote copy."""

_AUTO_SEGMENTS = 16


class OwnRing(RingMemory):
    """Ring memory in the client's own partition: mapped for the device, plain memory for the driver."""

    def __init__(self, dma: DmaSpace, size: int) -> None:
        available_at = 16 * size
        used_at = (available_at + 6 + 2 * size + 7) & ~7
        self._dma = dma
        self._memory = dma.allocate(used_at + 6 + 8 * size)
        view = self._memory.view
        self.descriptors = view[:available_at]
        self.available = view[available_at : available_at + 6 + 2 * size]
        self.used = view[used_at : used_at + 6 + 8 * size]
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
        event_idx: bool,
        indirect: IndirectPolicy,
    ) -> None:
        self.index = index
        self.size = size
        self.memory = OwnRing(dma, size)
        self._make_ring = partial(
            SplitDriverRing, size, big_endian=big_endian, event_idx=event_idx, indirect=indirect != "never"
        )
        self.ring = self._make_ring(self.memory)
        self.ending = False
        """Set while the last completions are taken: nothing is added any more."""
        self.held = False
        """Set while the device is not to look at the queue: what is added is not published."""
        self._dma = dma
        self._notifier: Notifier = crq
        self._indirect = indirect
        self._tables: list[DmaMemory] = []
        self._kick_high, self._kick_low = encode(Message.KICK, session, queue=index)
        self._build: Callable[[], tuple[int, int]] = self._kick_message

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
                        ioba = self._dma.map(buffer.address + offset, length, access)
                        mappings.append((ioba, length))
                        segments.append((ioba, length))
            if indirect:
                table = self._take_table()
            place = None if table is None else (table.view, table.ioba)
            added = self.ring.add(segments, len(readable), _InFlight(token, mappings, table), place) >= 0
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
        """See `DriverQueue`: this is where a kick becomes an H_SEND_CRQ, or an H_SEND_SUB_CRQ."""
        if not self.ending and not self.held and self.ring.publish():
            self._notifier.signal(self.index, self._build)

    def _kick_message(self) -> tuple[int, int]:
        return self._kick_high | self.ring.published_index, self._kick_low  # bytes 6-7 are the index (P2.3)

    def reap(self) -> tuple[object, int] | None:
        """See `DriverQueue`. Raises `RemoteError` when the device broke the ring."""
        result = self.ring.reap()
        if result is None:
            return None
        entry, written = result
        assert isinstance(entry, _InFlight)
        if entry.mappings or entry.table is not None:
            self._give_back(entry.mappings, entry.table)
        return entry.token, written

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
        memory = OwnRing(self._dma, self.size)
        tokens = self._take_back()
        self.memory.release()
        self.memory = memory
        self.ring = self._make_ring(memory)
        self.use(notifier, generation)
        return tokens

    def _take_back(self) -> list[object]:
        tokens: list[object] = []
        for entry in self.ring.drain():
            assert isinstance(entry, _InFlight)
            self._give_back(entry.mappings, entry.table)
            tokens.append(entry.token)
        return tokens

    def _give_back(self, mappings: list[tuple[int, int]], table: DmaMemory | None) -> None:
        for ioba, length in mappings:
            self._dma.unmap(ioba, length)
        if table is not None:
            self._tables.append(table)

    def _take_table(self) -> DmaMemory:
        """A mapped piece for one indirect table of up to `size` entries; a pool that grows with the need."""
        if not self._tables:
            self._tables.append(self._dma.allocate(16 * self.size))
        return self._tables.pop()
