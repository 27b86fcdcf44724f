# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The request path of a server adapter: from a kick to the used ring.

`QueueService` has the queues of one session. A kick is noted while the CRQ is drained; when it is empty each kicked
queue is served: ring copied in, requests handed to the device, completions copied out, client told.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import cython
from cython.cimports.powervio.vio.outbox import Notification, Notifier
from cython.cimports.powervio.virtio.device_queue import DeviceQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.transport.crq.batch import RdmaBatch
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.protocol import Message, QueueAddresses, encode
from powervio.transport.crq.redirect import RedirectedPayload, Redirector
from powervio.transport.crq.remote import RdmaPayload, RemoteWindow
from powervio.transport.crq.remote_ring import RemotePackedRing, RemoteRing, RemoteSplitRing
from powervio.transport.crq.staging import RdmaStaging
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import features as feature
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_layout import FIRST_POSITION
from powervio.virtio.split_device import SplitDeviceRing

_log = logging.getLogger(__name__)

_ROUNDS = cython.declare(cython.int, 16)
_PASS_BYTES = cython.declare(cython.int, 8 << 20)
"""Passes over one queue, and bytes of requests taken from it, before the adapter's other queues and the partition's
other adapters get a turn. A single request is bounded by its device."""


@cython.final
@cython.cclass
class UsedNotification(Notification):
    """USED of one queue, and where it goes."""

    notifier: Notifier
    _ring: DeviceRing
    _without_index: cython.ulonglong

    def __init__(self, key: int, high: int, low: int, ring: DeviceRing, notifier: Notifier) -> None:
        super().__init__(key, high, low)
        self.notifier = notifier
        self._ring = ring
        self._without_index = high

    @cython.ccall
    def build(self) -> cython.void:
        """See `Notification`."""
        self.high = self._without_index | self._ring.used_position()  # bytes 6-7 (P2.3)


@cython.final
@cython.cclass
class QueueService:
    """The live queues of one device and one session."""

    paused: cython.bint
    frozen: cython.bint
    touched: cython.bint
    on_idle: Any
    on_frozen: Any
    rejected: cython.ulonglong
    device: Any
    _kernel: Any
    _dma: Any
    _window: Any
    _on_broken: Any
    _redirector: Any
    _staging: Any
    _rings: dict[int, RemoteRing]
    _queues: dict[int, DeviceQueue]
    _kicked: dict[int, int | None]
    _told: dict[int, UsedNotification]

    def __init__(
        self,
        kernel: PartitionKernel,
        dma: DmaSpace,
        window: RemoteWindow,
        device: Device,
        on_broken: Callable[[str], None],
        redirector: Redirector | None = None,
    ) -> None:
        """`on_broken` is called, with the reason, when the client broke a ring and only a reset can help. `redirector`
        moves large payloads past this partition.
        """
        self.paused = False
        """Set while the device is suspended: kicks are dropped (P5.12)."""
        self.frozen = False
        """Set from FF09 to FF0A, while the client's partition is being suspended: kicks are dropped (P1.8)."""
        self.on_idle = None
        """Called once when the device has nothing in hand any more."""
        self.on_frozen = None
        """The same for whoever froze the service."""
        self.rejected = 0
        """Kicks without a queue, and requests that failed alone."""
        self._kernel = kernel
        self._dma = dma
        self._window = window
        self.device = device
        """What is served."""
        self.touched = False
        """Whether the device has something of this session, so that it has to be reset with it."""
        self._on_broken = on_broken
        self._redirector = redirector
        self._staging = RdmaStaging(window)
        self._rings = {}
        self._queues = {}
        self._kicked = {}
        self._told = {}

    def __contains__(self, index: int) -> bool:
        return index in self._queues

    @property
    def queues(self) -> Mapping[int, DeviceQueue]:
        """By number; a view that follows resets of single queues."""
        return MappingProxyType(self._queues)

    @property
    def in_hand(self) -> int:
        """Requests that were popped and are not told to the client as used."""
        return sum(queue.ring.in_hand for queue in self._queues.values())

    def start(self, session: DeviceSession) -> None:
        """Start the device on the queues that were added."""
        self.touched = True
        self.device.start(session)

    def add(
        self,
        entry: QueueAddresses,
        session: int,
        features: int,
        *,
        channels: Channels,
        big_endian: bool,
        reached: tuple[int, int] | None = None,
    ) -> None:
        """Set up a queue; `reached` is what `indices` gave for a ring that is taken over in the middle."""
        memory, ring = self._open(entry, features, big_endian, reached)
        self._rings[entry.index] = memory
        batch = RdmaBatch(self._window, memory.shadow, self._redirector)
        self._queues[entry.index] = DeviceQueue(
            entry.index, ring, self._payload, self._notify, self._broken, self._wake, batch
        )
        self._queues[entry.index].staging = self._staging
        high, low = encode(Message.USED, session, queue=entry.index, generation=channels.generation(entry.index))
        self._told[entry.index] = UsedNotification(entry.index, high, low, ring, channels.notifier(entry.index))

    def _open(
        self, entry: QueueAddresses, features: int, big_endian: bool, reached: tuple[int, int] | None
    ) -> tuple[RemoteRing, DeviceRing]:
        """The ring that was negotiated, and its memory."""
        event_idx = bool(features & feature.EVENT_IDX)
        indirect = bool(features & feature.INDIRECT_DESC)
        in_order = bool(features & feature.IN_ORDER)
        if features & feature.RING_PACKED:
            packed = RemotePackedRing(self._window, self._dma, entry)
            available, used = reached or (FIRST_POSITION, FIRST_POSITION)
            return packed, PackedDeviceRing(
                entry.size,
                packed,
                event_idx=event_idx,
                indirect=indirect,
                in_order=in_order,
                last_available=available,
                used_index=used,
            )
        split = RemoteSplitRing(self._window, self._dma, entry, fresh=reached is None)
        available, used = reached or (0, 0)
        return split, SplitDeviceRing(
            entry.size,
            split,
            big_endian=big_endian,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            last_available=available,
            used_index=used,
        )

    def _payload(self, queue: DeviceQueue, segments: list[tuple[int, int]]) -> RdmaPayload:
        if self._redirector is not None:
            return RedirectedPayload(self._window, queue, segments, self._redirector)
        return RdmaPayload(self._window, queue, segments)

    def reset(self, index: int) -> None:
        """The client reset one queue: the device forgets its requests, and nothing of it is touched any more."""
        self._remove(index)
        self.device.queue_reset(index)

    def _remove(self, index: int) -> None:
        queue = self._queues.pop(index)
        queue.live = False
        self.rejected += queue.ring.rejected
        self._rings.pop(index).release()
        self._kicked.pop(index, None)
        self._told.pop(index).notifier.forget_signal(index)

    def end(self) -> None:
        """Forget all queues; nothing of them is touched any more, whatever the device still has in hand."""
        for queue in self._queues.values():
            queue.live = False
        if self.touched:
            self.touched = False
            try:
                self.device.reset()
            except Exception:
                _log.exception("the device failed to reset")
        for index in list(self._queues):
            self._remove(index)
        self._kicked.clear()
        self.paused = self.frozen = False
        self.on_idle = None
        frozen, self.on_frozen = self.on_frozen, None
        if frozen is not None:
            frozen()  # there is nothing in hand any more

    def indices(self) -> dict[int, tuple[int, int]]:
        """For each queue how far it is: `(last_available, used_index)`.

        Raises `LocalError` while a request is in the device's hands: then the two do not say everything.
        """
        for queue in self._queues.values():
            count = queue.ring.in_hand
            if count:
                raise LocalError(f"queue {queue.index} has {count} requests in the device's hands; suspend it first")
        return {index: (queue.ring.last_available, queue.ring.used_index) for index, queue in self._queues.items()}

    @cython.ccall
    def kick(self, index: Any, known: Any) -> cython.void:
        """The client made buffers available up to `known`, what its KICK said (P6.2); None when it did not say.

        Of two kicks the one that is further ahead counts: one may come late, through the other kind of queue (P5.16).
        """
        queue = self._queues.get(index)
        if index in self._kicked and queue is not None:
            before = self._kicked[index]
            known = None if before is None or known is None else max(before, known, key=queue.ring.ahead)
        self._kicked[index] = known

    def kick_all(self) -> None:
        """Look at every queue."""
        for index in self._queues:
            self._kicked[index] = None

    @cython.ccall
    def serve(self) -> cython.void:
        """Serve every queue that was kicked."""
        kicked: dict[int, int | None] = self._kicked
        if not kicked:
            return
        self._kicked = {}
        if self.paused or self.frozen:
            return
        for index, known in kicked.items():
            queue = self._queues.get(index)
            if queue is None:
                self.rejected += 1
            else:
                self._give_turn(queue, True, known)

    @cython.cfunc
    def _give_turn(self, queue: DeviceQueue, kicked: cython.bint, known: Any) -> cython.void:
        """Give the device a turn. `kicked`: the client may have made buffers available, up to `known`."""
        try:
            if kicked:
                self._serve(queue, known)
            else:
                self._turn(queue)
        except RemoteError as error:
            self._broken(queue.index, error)
        except Exception:
            # a fault of the device here; what it did not complete is lost with the session, not for ever
            _log.exception("queue %d: the device failed", queue.index)
            self._on_broken(f"queue {queue.index}: the device failed")

    def _wake(self, queue: DeviceQueue) -> None:
        self._kernel.call_soon_threadsafe(partial(self._woken, queue))

    def _woken(self, queue: DeviceQueue) -> None:
        """The device asked for a turn. What is known of the ring is enough: the client kicks when there is more."""
        if queue.woken() and not self.paused and not self.frozen:
            queue.allowance = _PASS_BYTES
            self._give_turn(queue, False, None)
            if queue.live and queue.allowance <= 0 and queue.available:
                queue.wake()

    @cython.cfunc
    def _turn(self, queue: DeviceQueue) -> cython.void:
        self.device.process(queue)
        queue.flush()

    @cython.cfunc
    def _serve(self, queue: DeviceQueue, known: Any) -> cython.void:
        ring: DeviceRing = queue.ring
        queue.allowance = _PASS_BYTES
        for _ in range(_ROUNDS):
            ring.refresh(known)
            self._turn(queue)
            if not queue.live:
                return
            if queue.allowance <= 0:
                break
            # what the device left in the ring although it may take it waits for a `wake` of its own
            if not ring.enable_notifications():
                return
            known = None
        self._kicked.setdefault(queue.index, None)
        self._kernel.call_soon(self.serve)

    def _broken(self, index: int, error: RemoteError) -> None:
        self.rejected += 1
        if error.verdict is Verdict.REJECT:
            _log.info("queue %d: %s", index, error)
        else:
            self._on_broken(f"queue {index}: {error}")

    def _notify(self, index: int) -> None:
        told: UsedNotification = self._told[index]
        told.notifier.signal(told)
        if (self.on_idle is None and self.on_frozen is None) or self.in_hand:
            return
        calls = self.on_frozen, self.on_idle
        self.on_idle = self.on_frozen = None
        for call in calls:
            if call is not None:
                call()

    def freeze(self, when_done: Callable[[], None]) -> None:
        """Serve what was kicked, then nothing more; call `when_done` when the device has nothing in hand."""
        self.serve()
        self.frozen = True
        self.device.suspend()
        if self.in_hand:
            self.on_frozen = when_done
        else:
            when_done()

    def thaw(self) -> None:
        """Serve again, starting with what was made available meanwhile."""
        self.frozen = False
        self.on_frozen = None
        self.kick_all()
        self._kernel.call_soon(self.serve)
