"""The configuration handshake at the driver's end: each step is begun by the reply to the one before.

The steps are those of the slides, from PROBE to DRIVER_OK (docs/protocol.md, P5). What they find out of the device, and
the memory that they lend to the server for it, is kept here, through all sessions of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from powervio.papr.codes import ReturnCode
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.driver_queue import CrqDriverQueue, IndirectPolicy
from powervio.transport.crq.protocol import (
    CARRIED,
    FLAG_BIG_ENDIAN,
    HEADERS,
    ChannelEntry,
    DeviceHeader,
    Message,
    QueueAddresses,
)
from powervio.vio.crq import CrqEnd
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.vio.subcrq import SubCrqEnd
from powervio.virtio import features as feature
from powervio.virtio.driver import Driver
from powervio.virtio.queue import ByteOrder

_HEADER_AREA = 512
"""Bytes mapped for the header block, enough for every revision."""


class Request(Protocol):
    """Sends a message of the session."""

    def __call__(self, kind: Message, **values: int) -> None:
        """`values` are the message's fields; its reply begins the next step."""


class Fail(Protocol):
    """Ends the session."""

    def __call__(self, reason: str, *, final: bool = False) -> None:
        """`final`: another try with this server would end in the same way."""


class Handshake:
    """The handshakes of one client adapter, one after the other."""

    def __init__(
        self,
        driver: Driver,
        dma: DmaSpace,
        crq: CrqEnd,
        channels: Channels,
        *,
        revision: int,
        big_endian: bool,
        indirect: IndirectPolicy,
        event_idx: bool,
        packed: bool,
        in_order: bool,
        lazy_unmapping: bool,
        largest_queue: int,
        use_channels: bool | None,
        request: Request,
        fail: Fail,
        trace: Callable[[str], None],
    ) -> None:
        """`request` sends a message of this session, and its reply begins the next step; `fail` is told when what the
        server said cannot be lived with, and whether that is final. The others are as in `VirtioVio`.
        """
        self.revision: int | None = None
        """What was settled with the server; None while there is none."""
        self.number = 0
        """Of the session (P1.4)."""
        self.header = DeviceHeader()
        """What the server last said of its device."""
        self.features = 0
        self.config = b""
        """The device's config space as the server wrote it last."""
        self.config_stale = False
        """Set when the server said, before DRIVER_OK, that the config is another now."""
        self.queues: list[CrqDriverQueue] = []
        """Those of this session; they are ended by whoever ends the session."""
        self._driver = driver
        self._dma = dma
        self._crq = crq
        self._channels = channels
        self._proposal = revision
        self._big_endian = big_endian and revision == 0
        self._indirect = indirect
        # the ring features that are asked for where the server offers them
        self._rings = feature.EVENT_IDX if event_idx else 0
        self._rings |= feature.RING_PACKED if packed else 0
        self._rings |= feature.IN_ORDER if in_order else 0
        self._lazy = lazy_unmapping
        self._largest_queue = largest_queue
        self._use_channels = use_channels
        self._request = request
        self._fail = fail
        self._trace = trace
        self._generation = 0
        self._opened: list[SubCrqEnd] = []
        self.header_memory: DmaMemory = dma.allocate(_HEADER_AREA)
        self.config_memory: DmaMemory | None = None
        self.block_memory: DmaMemory | None = None

    def release(self) -> None:
        """Give all memory back; there is no other handshake after."""
        for memory in (self.header_memory, self.config_memory, self.block_memory):
            if memory is not None:
                self._dma.release(memory)

    def probe(self) -> None:
        """PROBE: where the header block is to be written, and what this end can do (P5.1)."""
        self.revision = None
        self.number = self.number % 0xFFFF + 1 if self._proposal else 0
        self.header_memory.view[:] = bytes(_HEADER_AREA)
        self._trace("PROBE")
        self._request(
            Message.PROBE,
            revision=self._proposal,
            flags=FLAG_BIG_ENDIAN if self._big_endian else 0,
            length=_HEADER_AREA,
            address=self.header_memory.ioba,
        )

    def _probed(self, reply: dict[str, int]) -> None:
        revision = reply["value"]
        if revision > self._proposal or revision not in HEADERS:
            self._fail(f"the server settled revision {revision}; {self._proposal} is the highest here", final=True)
            return
        self.revision = revision
        if revision == 0:
            self.number = 0
        codec = HEADERS[revision]
        self.header = header = codec.unpack(bytes(self.header_memory.view[: codec.size]))
        if header.device_type != self._driver.device_id:
            self._fail(f"the device is of type {header.device_type}; expected {self._driver.device_id}", final=True)
        elif not header.queue_count or not header.queue_size or header.queue_size & (header.queue_size - 1):
            self._fail(
                f"the device has {header.queue_count} queues of {header.queue_size} entries; expected a power of two",
                final=True,
            )
        else:
            self.acknowledge()

    def acknowledge(self) -> None:
        """ACKNOWLEDGE: the config space is allocated now that its size is known (P5.2)."""
        length = max(1, self.header.config_length)
        if self.config_memory is None or len(self.config_memory.view) < length:
            self.config_memory = self._larger(self.config_memory, length)
        self.config_stale = False
        self._trace("ACKNOWLEDGE")
        self._request(Message.ACKNOWLEDGE, length=self.header.config_length, address=self.config_memory.ioba)

    def _larger(self, memory: DmaMemory | None, length: int) -> DmaMemory:
        """Other memory instead of this, which stays what it is when there is not enough."""
        larger = self._dma.allocate(length)
        if memory is not None:
            self._dma.release(memory)
        return larger

    def take_config(self) -> None:
        """Copy what the server wrote; only between one of our requests and its reply does it write (P5.7)."""
        assert self.config_memory is not None
        self.config = bytes(self.config_memory.view[: self.header.config_length])

    def _acknowledged(self, reply: dict[str, int]) -> None:
        self.take_config()
        self._trace("DRIVER")
        self._request(Message.DRIVER)

    def _driver_found(self, reply: dict[str, int]) -> None:
        """finalize_features: what this end accepts goes into its own header block (P5.4)."""
        assert self.revision is not None
        codec = HEADERS[self.revision]
        offered = self.header.device_features
        wanted = self._driver.select_features(offered) & feature.DEVICE_BITS  # rings are the transport's matter
        if self._indirect != "never":
            wanted |= feature.INDIRECT_DESC
        wanted |= self._rings
        if self.revision:
            wanted |= feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.NOTIFICATION_DATA | feature.RING_RESET
            wanted |= feature.SUSPEND
        else:
            wanted |= feature.ANY_LAYOUT
        self.features = features = feature.choose(offered, wanted, self._driver.device_id)
        if self.revision and not (features & feature.VERSION_1 and features & feature.ACCESS_PLATFORM):
            self._fail("the device does not offer VERSION_1 and ACCESS_PLATFORM in revision 1", final=True)
            return
        at = codec.driver_features_offset
        self.header_memory.view[at : at + codec.driver_features_size] = codec.pack_driver_features(features)
        self._trace("FINALIZE_FEATURES")
        if self.revision:
            self._trace("FEATURES_OK")
            self._request(Message.FEATURES_OK)
        else:
            self._make_queues()

    def _features_accepted(self, reply: dict[str, int]) -> None:
        self._make_queues()

    @property
    def byteorder(self) -> ByteOrder:
        """Of rings, config space and device structures."""
        return "big" if self.revision == 0 and self._big_endian else "little"

    def _make_queues(self) -> None:
        """Allocate the rings and expose them by TCEs."""
        wanted = self._driver.queue_count(self.features, self.config, self.byteorder)
        count = max(1, min(wanted, self.header.queue_count))
        size = self.header.queue_size if self.revision == 0 else min(self.header.queue_size, self._largest_queue)
        for index in range(count):
            self.queues.append(
                CrqDriverQueue(
                    index,
                    size,
                    self._dma,
                    self._crq,
                    self.number,
                    big_endian=self.byteorder == "big",
                    features=self.features,
                    indirect=self._indirect,
                    lazy=self._lazy,
                )
            )
        self.find_vqs(self.queues)

    def find_vqs(self, queues: Sequence[CrqDriverQueue]) -> None:
        """FIND_VQS: say where the rings of these queues are (P5.5)."""
        address = self._block(b"".join(queue.addresses().pack() for queue in queues))
        self._trace("FIND_VQS")
        self._request(Message.FIND_VQS, count=len(queues), length=len(queues) * QueueAddresses.SIZE, address=address)

    def _block(self, content: bytes) -> int:
        """Put something into the block for the server to read; returns its I/O address."""
        if self.block_memory is None or len(self.block_memory.view) < len(content):
            self.block_memory = self._larger(self.block_memory, len(content))
        self.block_memory.view[: len(content)] = content
        return self.block_memory.ioba

    def _queues_found(self, reply: dict[str, int]) -> None:
        """CHANNELS, if queues are to be carried by Sub-CRQs and the platform has some (P5.13)."""
        wanted = len(self.queues) > 1 if self._use_channels is None else self._use_channels
        self._opened = []
        while wanted and self.revision and len(self._opened) < len(self.queues):
            code, end = self._channels.open()
            if code not in (ReturnCode.H_SUCCESS, ReturnCode.H_CLOSED):
                break  # no Sub-CRQs on this platform, or no more: the other queues stay on the CRQ
            self._opened.append(end)
        if not self._opened:
            self._driver_ok()
            return
        self._generation = (self._generation + 1) & 0xFFFF
        entries = [ChannelEntry(queue, self._generation, 0, end.cookie) for queue, end in enumerate(self._opened)]
        block = b"".join(entry.pack() for entry in entries)
        self._trace("CHANNELS")
        self._request(Message.CHANNELS, count=len(entries), length=len(block), address=self._block(block))

    def _channels_opened(self, reply: dict[str, int]) -> None:
        assert self.block_memory is not None
        for queue, end in enumerate(self._opened):
            at = queue * ChannelEntry.SIZE
            entry = ChannelEntry.unpack(bytes(self.block_memory.view[at : at + ChannelEntry.SIZE]))
            if entry.status == CARRIED:
                end.partner = entry.server
                self._channels.carry(queue, end, self.number, self._generation)
                self.queues[queue].use(end, self._generation)
            else:
                end.free()
        self._driver_ok()

    def channels_refused(self) -> None:
        """The server has no Sub-CRQs, or none now: all queues stay on the CRQ."""
        self._channels.close()
        self._driver_ok()

    def _driver_ok(self) -> None:
        self._trace("DRIVER_OK")
        self._request(Message.DRIVER_OK)


STEPS: dict[int, Callable[[Handshake, dict[str, int]], None]] = {
    Message.PROBE: Handshake._probed,
    Message.ACKNOWLEDGE: Handshake._acknowledged,
    Message.DRIVER: Handshake._driver_found,
    Message.FEATURES_OK: Handshake._features_accepted,
    Message.FIND_VQS: Handshake._queues_found,
    Message.CHANNELS: Handshake._channels_opened,
}
"""What follows the reply to each message. The reply to DRIVER_OK ends the handshake."""
