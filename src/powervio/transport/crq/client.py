"""The driver's end of virtio over CRQ (virtio_vio): one `VirtioVio` brings one driver to one client adapter.

It walks the configuration handshake of the slides step by step, each step begun by the reply to the one before, sets
up the queues, and starts the driver. When the connection or the server goes away it stops the driver, waits for the
server, and walks again; requests that were in flight are the driver's to submit anew.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum

from powervio.errors import LocalError, PowervioError, RemoteError, Verdict
from powervio.papr.codes import ReturnCode
from powervio.papr.nodes import VdeviceNode
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.driver_queue import CrqDriverQueue, IndirectPolicy
from powervio.transport.crq.protocol import (
    CARRIED,
    FLAG_BIG_ENDIAN,
    HEADERS,
    HIGHEST_REVISION,
    REPLY,
    ChannelEntry,
    DeviceHeader,
    Message,
    QueueAddresses,
    Status,
    decode,
    encode,
)
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.vio.kernel import PartitionKernel, Timer
from powervio.vio.subcrq import SubCrqEnd
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverTransport

_log = logging.getLogger(__name__)

_HEADER_AREA = 512
"""Bytes mapped for the header block, enough for every revision."""
_REPLY_LIMIT = 10.0
"""Seconds for the server to answer a configuration message."""
_QUIET = 5.0
"""Seconds without trouble after which earlier failures are forgotten."""
_FAILURE_LIMIT = 8


class ClientState(Enum):
    """Where a client end stands, for people and tests."""

    CLOSED = "closed"
    WAITING = "waiting"
    """For the server, or for the end of a pause after a failure."""
    NEGOTIATING = "negotiating"
    RUNNING = "running"
    RESETTING = "resetting"
    FAILED = "failed"
    """Negotiation cannot succeed; a server that starts anew gets another try."""
    GONE = "gone"
    """The adapter was unplugged; nothing brings it back."""


class ClientSession(DriverTransport):
    """See `DriverTransport`: what the driver has between DRIVER_OK and the end of the session."""

    def __init__(self, client: VirtioVio, features: int, byteorder: ByteOrder, queues: list[CrqDriverQueue]) -> None:
        self._client = client
        self.features = features
        self.byteorder = byteorder
        self.queues = queues

    def config(self) -> bytes:
        """See `DriverTransport`: what the server wrote last, between one of our requests and its reply (P5.7)."""
        return self._client.config_snapshot

    def write_config(self, offset: int, data: bytes) -> None:
        """See `DriverTransport`."""
        self._client.write_config(offset, data)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        """See `DriverTransport`."""
        return self._client.allocate(length, mapped=mapped)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport`."""
        self._client.release(buffer)


class VirtioVio:
    """A virtio driver behind one client adapter, in the thread of its partition."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        driver: Driver,
        *,
        revision: int = HIGHEST_REVISION,
        big_endian: bool = False,
        indirect: IndirectPolicy = "auto",
        event_idx: bool = False,
        largest_queue: int = 1024,
        channels: bool | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`revision` is the highest that is proposed; `big_endian` is the ring byte order of revision 0.

        EVENT_IDX is off by default: over remote DMA arming it costs the server two calls a batch, more than the kicks
        it saves (docs/architecture.md, Cost). In revision 1 a queue of the device that has more than `largest_queue`
        entries (a power of two) is used with so many: its rings take this partition's memory. `channels` says whether
        queues are to be carried by Sub-CRQs where both ends and the platform can (P5.13): by default when there is more
        than one. `trace` is told of each handshake step as it happens.
        """
        self.node = node
        self.driver = driver
        self.state = ClientState.CLOSED
        self.failure = ""
        """Why the last session could not be made or ended, in words."""
        self.revision: int | None = None
        """What was settled with the server; None while there is none."""
        self.rejected = 0
        """Messages of the server that made no sense."""
        self.sessions = 0
        """Sessions that came to DRIVER_OK."""
        self.config_snapshot = b""
        self._retired = False
        self.on_state: Callable[[ClientState], None] | None = None
        self._kernel = kernel
        self._proposal = revision
        self._big_endian = big_endian and revision == 0
        self._indirect = indirect
        self._event_idx = event_idx
        self._largest_queue = largest_queue
        self._use_channels = channels
        self._generation = 0
        self._trace = trace or (lambda step: None)
        self._dma = DmaSpace(kernel.port, kernel.pages, node.windows[0])
        self._header_memory: DmaMemory = self._dma.allocate(_HEADER_AREA)
        self._config_memory: DmaMemory | None = None
        self._block_memory: DmaMemory | None = None
        self._header = DeviceHeader()
        self._number = 0
        self._session: ClientSession | None = None
        self._queues: list[CrqDriverQueue] = []
        self._features = 0
        self._config_stale = False
        self._awaited: deque[int] = deque()
        self._watchdog: Timer | None = None
        self._pause: Timer | None = None
        self._failures = 0
        self._last_failure = 0.0
        self.crq = CrqEnd(
            kernel,
            node,
            self._dma,
            on_message=self._message,
            on_open=self._probe,
            on_lost=self._lost,
            on_gone=self._gone,
            on_drained=self._completed,
        )
        self._used: set[int] = set()
        self._channels = Channels(
            kernel,
            node,
            self._dma,
            self.crq,
            Message.USED,
            on_hint=lambda queue, index: self._used.add(queue),
            on_drained=self._completed,
        )
        self._opened: list[SubCrqEnd] = []

    # -- life

    def start(self) -> None:
        """Register with the hypervisor and negotiate as soon as the server is there."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._kernel.watch_tree(self._tree_changed)
        self._enter(ClientState.WAITING)
        self.crq.register()
        self._tree_changed()

    def stop(self) -> None:
        """End the session and close the CRQ; the driver is stopped, its requests stay its own."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._close()
        if self.state is not ClientState.GONE:
            self._enter(ClientState.CLOSED)

    def retire(self) -> None:
        """Stop for good and give all memory back, the driver's too; the adapter may be unplugged then, or was before.

        Harmless when it was done already.
        """
        if self._retired:
            return
        self.stop()  # may raise while the hypervisor is busy with the CRQ; after unplugging it does not
        self._retired = True
        self.driver.release(self.release)
        for memory in (self._header_memory, self._config_memory, self._block_memory):
            if memory is not None:
                self._dma.release(memory)
        self.crq.release()
        self._dma.close()

    def _tree_changed(self) -> None:
        """A server that is away may come back as long as our node is there; without it nobody ever will."""
        if self.state is ClientState.GONE or not self.crq.gone:
            return
        self.failure = "the adapter was unplugged"
        _log.info("adapter %s: %s", self.node.location_code, self.failure)
        self._kernel.unwatch_tree(self._tree_changed)
        self._cancel_timers()
        self.crq.abandon()
        self.driver.removed(self.failure)
        self._end_session()
        self._enter(ClientState.GONE)

    def reset(self) -> None:
        """Start anew from this side: close and register the CRQ again, then negotiate."""
        if self.state is ClientState.GONE:
            return
        self._close()
        self._enter(ClientState.WAITING)
        self.crq.register()

    def _close(self) -> None:
        self._cancel_timers()
        self.crq.close()
        self._end_session()  # no-op when the connection was open: then its loss did it

    @property
    def running(self) -> bool:
        """Whether the driver is started."""
        return self.state is ClientState.RUNNING

    @property
    def channels(self) -> int:
        """How many queues are carried by Sub-CRQs."""
        return len(self._channels)

    @property
    def header(self) -> DeviceHeader:
        """What the server last said of its device."""
        return self._header

    def _enter(self, state: ClientState) -> None:
        if state is not self.state:
            self.state = state
            if self.on_state is not None:
                self.on_state(state)

    def _cancel_timers(self) -> None:
        for timer in (self._watchdog, self._pause):
            if timer is not None:
                timer.cancel()
        self._watchdog = self._pause = None

    def _lost(self) -> None:
        """The connection is gone. What the device completed before is still completed, then the driver is stopped."""
        self._cancel_timers()
        self._end_session()
        if self.state is not ClientState.CLOSED:
            self._enter(ClientState.WAITING)

    def _gone(self) -> None:
        """The server has ended its work and left (P1.9). One that could not be lived with makes room for the next."""
        if not self.crq.suspended:
            self.driver.fenced()
        if self.state is ClientState.FAILED:
            self._enter(ClientState.WAITING)

    def _end_session(self) -> None:
        self._awaited.clear()
        self._used.clear()
        session, self._session = self._session, None
        queues, self._queues = self._queues, []
        for queue in queues:
            queue.ending = True
        try:
            if session is not None:
                for queue in queues:
                    self._last_completions(queue)
        finally:
            self.crq.forget_signals()
            self._channels.close()
            for queue in queues:
                queue.end()
            if session is not None:
                self.driver.stop()

    def _last_completions(self, queue: CrqDriverQueue) -> None:
        """What the device has used and told in the ring is completed, whatever happened to the session (P1.6)."""
        try:
            self.driver.completed(queue)
        except PowervioError as error:
            _log.info("adapter %s: at the end of the session: %s", self.node.location_code, error)
        except Exception:
            _log.exception("adapter %s: the driver failed at the end of the session", self.node.location_code)

    def _fail(self, reason: str, *, final: bool = False) -> None:
        """Something of the server's was wrong: try again after a pause that grows, or wait for another server."""
        self._count_failure(reason)
        self._leave(final=final)

    def _leave(self, *, final: bool) -> None:
        self._close()
        if final or self._failures > _FAILURE_LIMIT:
            self._enter(ClientState.FAILED)
            self.crq.register()  # only to hear of another server
            if self.crq.state is CrqState.WAITING:
                self._enter(ClientState.WAITING)  # this one is not there any more
        else:
            self._enter(ClientState.WAITING)
            self._pause = self._kernel.call_later(0.01 * 2**self._failures, self.crq.register)

    def _count_failure(self, reason: str) -> int:
        """Remember why; how many failures came close after one another."""
        now = self._kernel.clock()
        self._failures = self._failures + 1 if now - self._last_failure < _QUIET else 1
        self._last_failure = now
        self.failure = reason
        _log.warning("adapter %s: %s", self.node.location_code, reason)
        return self._failures

    # -- the handshake: each step is begun by the reply to the one before

    def _request(self, kind: Message, **values: int) -> None:
        self._awaited.append(kind)
        self.crq.post(*encode(kind, self._number, **values))
        if self._watchdog is None:
            self._watchdog = self._kernel.call_later(_REPLY_LIMIT, self._overdue)

    def _overdue(self) -> None:
        self._watchdog = None
        if self._awaited:
            waiting = Message(self._awaited[0]).name
            self._fail(f"the server did not answer {waiting} within {_REPLY_LIMIT:.0f} s")

    def _probe(self) -> None:
        """PROBE: where the header block is to be written, and what this end can do (P5.1)."""
        self.driver.fenced()  # the connection is open, so the server has ended what it did before (P1.5, P1.9)
        if self.state is ClientState.FAILED:
            return  # the same server would give the same answers
        self._enter(ClientState.NEGOTIATING)
        self.revision = None
        self._number = self._number % 0xFFFF + 1 if self._proposal else 0
        self._header_memory.view[:] = bytes(_HEADER_AREA)
        self._trace("PROBE")
        self._request(
            Message.PROBE,
            revision=self._proposal,
            flags=FLAG_BIG_ENDIAN if self._big_endian else 0,
            length=_HEADER_AREA,
            address=self._header_memory.ioba,
        )

    def _probed(self, reply: dict[str, int]) -> None:
        revision = reply["value"]
        if revision > self._proposal or revision not in HEADERS:
            self._fail(f"the server settled revision {revision}; {self._proposal} is the highest here", final=True)
            return
        self.revision = revision
        if revision == 0:
            self._number = 0
        codec = HEADERS[revision]
        self._header = header = codec.unpack(bytes(self._header_memory.view[: codec.size]))
        if header.device_type != self.driver.device_id:
            self._fail(f"the device is of type {header.device_type}; expected {self.driver.device_id}", final=True)
        elif not header.queue_count or not header.queue_size or header.queue_size & (header.queue_size - 1):
            self._fail(
                f"the device has {header.queue_count} queues of {header.queue_size} entries; expected a power of two",
                final=True,
            )
        else:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """ACKNOWLEDGE: the config space is allocated now that its size is known (P5.2)."""
        length = max(1, self._header.config_length)
        if self._config_memory is None or len(self._config_memory.view) < length:
            self._config_memory = self._larger(self._config_memory, length)
        self._config_stale = False
        self._trace("ACKNOWLEDGE")
        self._request(Message.ACKNOWLEDGE, length=self._header.config_length, address=self._config_memory.ioba)

    def _larger(self, memory: DmaMemory | None, length: int) -> DmaMemory:
        """Other memory instead of this, which stays what it is when there is not enough."""
        larger = self._dma.allocate(length)
        if memory is not None:
            self._dma.release(memory)
        return larger

    def _take_config(self) -> None:
        assert self._config_memory is not None
        self.config_snapshot = bytes(self._config_memory.view[: self._header.config_length])

    def _acknowledged(self, reply: dict[str, int]) -> None:
        self._take_config()
        self._trace("DRIVER")
        self._request(Message.DRIVER)

    def _driver_found(self, reply: dict[str, int]) -> None:
        """finalize_features: what this end accepts goes into its own header block (P5.4)."""
        assert self.revision is not None
        codec = HEADERS[self.revision]
        offered = self._header.device_features
        wanted = self.driver.select_features(offered)
        if self._indirect != "never":
            wanted |= feature.INDIRECT_DESC
        if self._event_idx:
            wanted |= feature.EVENT_IDX
        if self.revision:
            wanted |= feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.NOTIFICATION_DATA | feature.RING_RESET
            wanted |= feature.SUSPEND
        else:
            wanted |= feature.ANY_LAYOUT
        self._features = features = feature.choose(offered, wanted, self.driver.device_id)
        if self.revision and not (features & feature.VERSION_1 and features & feature.ACCESS_PLATFORM):
            self._fail("the device does not offer VERSION_1 and ACCESS_PLATFORM in revision 1", final=True)
            return
        at = codec.driver_features_offset
        self._header_memory.view[at : at + codec.driver_features_size] = codec.pack_driver_features(features)
        self._trace("FINALIZE_FEATURES")
        if self.revision:
            self._trace("FEATURES_OK")
            self._request(Message.FEATURES_OK)
        else:
            self._find_vqs()

    def _features_accepted(self, reply: dict[str, int]) -> None:
        self._find_vqs()

    def _byteorder(self) -> ByteOrder:
        return "big" if self.revision == 0 and self._big_endian else "little"

    def _find_vqs(self) -> None:
        """FIND_VQS: allocate the rings, expose them by TCEs and say where they are (P5.5)."""
        wanted = self.driver.queue_count(self._features, self.config_snapshot, self._byteorder())
        count = max(1, min(wanted, self._header.queue_count))
        size = self._header.queue_size if self.revision == 0 else min(self._header.queue_size, self._largest_queue)
        for index in range(count):
            self._queues.append(
                CrqDriverQueue(
                    index,
                    size,
                    self._dma,
                    self.crq,
                    self._number,
                    big_endian=self._byteorder() == "big",
                    event_idx=bool(self._features & feature.EVENT_IDX),
                    indirect=self._indirect if self._features & feature.INDIRECT_DESC else "never",
                )
            )
        address = self._block(b"".join(queue.addresses().pack() for queue in self._queues))
        self._trace("FIND_VQS")
        self._request(Message.FIND_VQS, count=count, length=count * QueueAddresses.SIZE, address=address)

    def _block(self, content: bytes) -> int:
        """Put something into the block for the server to read; returns its I/O address."""
        if self._block_memory is None or len(self._block_memory.view) < len(content):
            self._block_memory = self._larger(self._block_memory, len(content))
        self._block_memory.view[: len(content)] = content
        return self._block_memory.ioba

    def _queues_found(self, reply: dict[str, int]) -> None:
        """CHANNELS, if queues are to be carried by Sub-CRQs and the platform has some (P5.13)."""
        wanted = len(self._queues) > 1 if self._use_channels is None else self._use_channels
        self._opened = []
        while wanted and self.revision and len(self._opened) < len(self._queues):
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
        assert self._block_memory is not None
        for queue, end in enumerate(self._opened):
            at = queue * ChannelEntry.SIZE
            entry = ChannelEntry.unpack(bytes(self._block_memory.view[at : at + ChannelEntry.SIZE]))
            if entry.status == CARRIED:
                end.partner = entry.server
                self._channels.carry(queue, end, self._number, self._generation)
                self._queues[queue].use(end, self._generation)
            else:
                end.free()
        self._driver_ok()

    def _channels_refused(self) -> None:
        """The server has no Sub-CRQs, or none now: all queues stay on the CRQ."""
        self._channels.close()
        self._driver_ok()

    def _driver_ok(self) -> None:
        self._trace("DRIVER_OK")
        self._request(Message.DRIVER_OK)

    def _live(self, reply: dict[str, int]) -> None:
        self._session = ClientSession(self, self._features, self._byteorder(), self._queues)
        self.sessions += 1
        self._enter(ClientState.RUNNING)
        self.driver.start(self._session)
        if self._config_stale and self._session is not None:
            self._request(Message.CONFIG_READ)  # it changed after ACKNOWLEDGE

    # -- while it runs

    def write_config(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of config (P5.8). Raises `LocalError` when there is no session."""
        if self._session is None:
            raise LocalError(f"adapter {self.node.location_code} has no session ({self.state.value})")
        self.config_snapshot = self.config_snapshot[:offset] + data + self.config_snapshot[offset + len(data) :]
        value = int.from_bytes(data.ljust(8, b"\0"), "big")
        self._request(Message.CONFIG_WRITE, offset=offset, length=len(data), data=value)

    def _config_written(self, reply: dict[str, int]) -> None:
        pass

    def _config_was_read(self, reply: dict[str, int]) -> None:
        self._take_config()
        if self._session is not None:
            self.driver.config_changed()

    def _config_event(self, event: dict[str, int]) -> None:
        if self.state is not ClientState.RUNNING:
            self._config_stale = True
            return
        if event["device_status"] & device_status.NEEDS_RESET:
            if self._count_failure("the device asked for a reset") > 1:
                self._leave(final=False)  # again: not at once, and not for ever
            else:
                self.device_reset()
        elif Message.CONFIG_READ not in self._awaited:
            # a read that is under way is answered after this event, so it brings what the event tells of
            self._request(Message.CONFIG_READ)

    def device_reset(self) -> None:
        """Reset the device inside the session and negotiate again from ACKNOWLEDGE on (P5.9)."""
        if self.state is ClientState.RUNNING:
            self._enter(ClientState.RESETTING)
            self._request(Message.RESET)

    def _was_reset(self, reply: dict[str, int]) -> None:
        """Only now nothing of the old life is touched any more, so only now the driver gets its buffers back."""
        self._end_session()
        self.driver.fenced()
        self._enter(ClientState.NEGOTIATING)
        self._acknowledge()

    def allocate(self, length: int, *, mapped: bool) -> Buffer:
        """See `DriverTransport.allocate`."""
        if mapped:
            if self._session is None:
                # nothing is mapped for a server that has lost its connection (P1.5)
                raise RemoteError("the session is over", Verdict.CLOSE)
            memory = self._dma.allocate(length)
            return Buffer(memory.view, memory.address, memory.ioba)
        address = self._kernel.pages.allocate(length)
        return Buffer(self._kernel.pages.memory[address : address + length], address, None)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport.release`."""
        if buffer.device_address is not None:
            self._dma.release(DmaMemory(buffer.address, buffer.device_address, buffer.view))
        else:
            self._kernel.pages.free(buffer.address, buffer.length)

    # -- messages of the server

    def _message(self, high: int, low: int) -> None:
        kind = (high >> 48) & 0xFF
        number = (high >> 32) & 0xFFFF
        if kind == Message.USED:
            if number == self._number:
                self._used.add((high >> 16) & 0xFFFF)
            else:
                self.rejected += 1
            return
        try:
            message = decode(high, low)
        except RemoteError as error:
            self.rejected += 1
            _log.info("adapter %s: %s", self.node.location_code, error)
            return
        # the answer to a PROBE that settled revision 0 comes with session 0
        if number != self._number and not (kind == Message.PROBE | REPLY and number == 0):
            self.rejected += 1
        elif kind == Message.CONFIG_CHANGED:
            self._config_event(message)
        elif self._awaited and kind == self._awaited[0] | REPLY:
            self._answered(self._awaited.popleft(), message)
        else:
            self.rejected += 1

    def _answered(self, kind: int, reply: dict[str, int]) -> None:
        if self._watchdog is not None and not self._awaited:
            self._watchdog.cancel()
            self._watchdog = None
        code = reply["status"]
        if code == Status.OK:
            try:
                _NEXT[kind](self, reply)
            except PowervioError as error:
                # no memory or window for what the device asks for, or a device that the driver cannot live with
                self._fail(f"after {Message(kind).name}: {error}")
            except Exception as error:
                _log.exception("adapter %s: the driver failed", self.node.location_code)
                self._fail(f"after {Message(kind).name}: the driver failed: {error!r}")
        elif kind == Message.CHANNELS:
            self._channels_refused()
        elif kind == Message.CONFIG_WRITE:
            _log.warning("adapter %s: the device refused a config write", self.node.location_code)
        else:
            name = Status(code).name if code in Status._value2member_map_ else str(code)
            self._fail(f"the server answered {Message(kind).name} with {name}", final=code != Status.DEVICE_ERROR)

    def _completed(self) -> None:
        """The CRQ is empty: hand up what the device has used, one call a queue however many notifications came."""
        if not self._used or self._session is None:
            self._used.clear()
            return
        used, self._used = self._used, set()
        for index in used:
            if index >= len(self._queues):
                self.rejected += 1
                continue
            try:
                self.driver.completed(self._queues[index])
            except RemoteError as error:
                self._fail(f"queue {index}: the device broke the ring: {error}")
                return
            except Exception:
                _log.exception("adapter %s: completing queue %d failed", self.node.location_code, index)
            if not self._queues:
                return  # a completion ended the session


_NEXT: dict[int, Callable[[VirtioVio, dict[str, int]], None]] = {
    Message.PROBE: VirtioVio._probed,
    Message.ACKNOWLEDGE: VirtioVio._acknowledged,
    Message.DRIVER: VirtioVio._driver_found,
    Message.FEATURES_OK: VirtioVio._features_accepted,
    Message.FIND_VQS: VirtioVio._queues_found,
    Message.CHANNELS: VirtioVio._channels_opened,
    Message.DRIVER_OK: VirtioVio._live,
    Message.CONFIG_WRITE: VirtioVio._config_written,
    Message.CONFIG_READ: VirtioVio._config_was_read,
    Message.RESET: VirtioVio._was_reset,
}
