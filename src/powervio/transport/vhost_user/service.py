"""The request path of a back end: from a kick to the used ring, for all queues of a device.

`QueueService` runs the rings that `back_end` says may run. What it needs of a ring is its `Vring`; what it needs of the
world is the loop. There are two ways to serve a ring, and it may go from one to the other at any time (`update`):

- The device has a compiled loop for it (`Device.loop`): a thread of its own serves the queue, kicks and all, and nobody
  else touches ring or queue until it has been stopped.
- Else the device is called in the one thread of all: also while a dirty log is kept, while addresses have to be asked
  for (IOTLB), and for rings without kicks.

A queue that is found empty is looked at for `spin` seconds more before kicks are asked for and the loop sleeps. One
front end's queues share that: it is the thread that spins.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType

from powervio.errors import RemoteError, Verdict
from powervio.transport.vhost_user.inflight_area import InflightRecord
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.memory import GuestMemory, GuestRing
from powervio.transport.vhost_user.queue import VhostQueue
from powervio.transport.vhost_user.queue_thread import QueueThread
from powervio.transport.vhost_user.translate import LOST
from powervio.transport.vhost_user.vring import Vring, base_of, make_ring
from powervio.virtio import features as feature
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue

_log = logging.getLogger(__name__)

_ROUNDS = 16
_PASS_BYTES = 8 << 20
"""Passes over one queue, and bytes of requests taken from it, before the others and the messages get a turn."""
_POLL_PAUSE = 0.0002
"""Seconds between two looks at a ring that has no kicks."""


class QueueService:
    """The started rings of one device and one front end."""

    def __init__(
        self,
        loop: Loop,
        device: Device,
        memory: GuestMemory,
        on_broken: Callable[[Vring, str], None],
        spin: float = 0.0,
    ) -> None:
        """`on_broken` is told of a ring that must not be served any more. `spin` is seconds."""
        self.features = 0
        """Negotiated; set before the first `start`."""
        self.inflight: InflightRecord | None = None
        self.resubmitted = 0
        """Requests that a predecessor had in flight."""
        self._loop = loop
        self._device = device
        self._memory = memory
        self._on_broken = on_broken
        self._spin = spin
        self._spin_until = 0.0
        self._asleep = True
        self._vrings: dict[int, Vring] = {}
        self._queues: dict[int, VhostQueue] = {}
        self._again: set[int] = set()
        self._polling = False
        self._threads: dict[int, QueueThread] = {}
        loop.before_sleep = self.before_sleep

    @property
    def running(self) -> bool:
        """Whether the device has a session."""
        return bool(self._queues)

    def start(self, vring: Vring) -> None:
        """Let the device have a ring; serving begins. Raises `RemoteError` for a ring that cannot be."""
        assert vring.queue is None
        areas = vring.areas(self.features)
        memory = GuestRing(self._memory, areas)
        record = None
        if self.inflight is not None:
            record = self.inflight.queue(vring.index, vring.size, packed=bool(self.features & feature.RING_PACKED))
        ring, again = make_ring(vring.size, memory, self.features, vring.base, record, vring.forgotten)
        vring.forgotten = False
        self.resubmitted += len(again)
        if again:
            _log.warning("ring %d: %d requests that were in flight before are served again", vring.index, len(again))
        queue = VhostQueue(vring, ring, self._memory, self.features, again, self._queue_broken, self._wake)
        vring.queue = queue
        vring.places = self._places(vring)
        self._vrings[vring.index] = vring
        self._queues[vring.index] = queue
        if self._device.session is None:
            order: ByteOrder = "little"  # of a legacy guest too: only little-endian machines run those here
            try:
                self._device.start(DeviceSession(self.features, order, MappingProxyType(self._queues)))
            except BaseException:
                self._forget(vring, queue)
                raise
        if record is not None:
            vring.signal("call")  # what a predecessor showed before it died the driver may not have been told
        self.update(vring)

    def update(self, vring: Vring) -> None:
        """Serve a started ring in the way that suits it now."""
        queue = vring.queue
        if queue is None:
            return
        queue.kick, queue.call = vring.kick, vring.call
        queue.enabled = vring.phase.enabled
        if vring.index in self._threads:
            if self._suits_a_thread(vring, queue):
                return
            self._end_thread(vring)
        elif self._suits_a_thread(vring, queue):
            loop = self._device.loop(queue, self._spin)
            if loop is not None:
                self._loop.remove_reader(vring.kick)
                self._again.discard(vring.index)
                name = f"queue {vring.index}"
                self._threads[vring.index] = QueueThread(name, loop, partial(self._thread_ended, vring, queue))
                return
        if vring.kick >= 0:
            self._loop.add_reader(vring.kick, partial(self._kicked, vring))
        self._poll()
        self.serve(vring)

    def _suits_a_thread(self, vring: Vring, queue: VhostQueue) -> bool:
        return bool(
            vring.phase.enabled
            and not vring.broken
            and vring.kick >= 0
            and queue.space is not None
            and self._memory.iotlb is None
            and not self._memory.logging
        )

    def _end_thread(self, vring: Vring) -> bool:
        thread = self._threads.pop(vring.index, None)
        if thread is None:
            return False
        thread.stop()
        self._device.loop_ended(thread.loop)
        return True

    def _thread_ended(self, vring: Vring, queue: VhostQueue, error: BaseException) -> None:
        """In the queue's thread: it cannot go on."""
        self._loop.call_soon_threadsafe(partial(self._thread_failed, vring, queue, error))

    def _thread_failed(self, vring: Vring, queue: VhostQueue, error: BaseException) -> None:
        if vring.queue is not queue or not self._end_thread(vring):
            return
        if isinstance(error, RemoteError):
            self._queue_broken(vring.index, error)
        elif isinstance(error, OSError):
            _log.error("ring %d: no kicks any more: %s", vring.index, error.strerror)
        else:
            _log.error("ring %d: the device failed", vring.index, exc_info=error)
            self._on_broken(vring, "the device failed")

    @contextmanager
    def still(self, vrings: Iterable[Vring] | None = None) -> Iterator[None]:
        """No thread serves these rings (by default none of them) meanwhile: what they use is about to change."""
        halted = [vring for vring in (self._vrings.values() if vrings is None else vrings) if self._end_thread(vring)]
        try:
            yield
        finally:
            for vring in halted:
                self.update(vring)

    def _places(self, vring: Vring) -> list[object]:
        return [self._memory.identity(address, length) for address, length, _, _ in vring.areas(self.features)]

    def moved(self, vring: Vring) -> bool:
        """Whether the addresses of a started ring are other bytes by now, after a change of regions."""
        return self._memory.iotlb is None and vring.places != self._places(vring)

    def stop(self, vring: Vring) -> None:
        """Take a ring away from the device, which completes what it has in hand, however long that takes; nothing of it
        is touched afterwards, and `base` tells where it stands."""
        queue = self._halt(vring)
        if queue is None:
            return
        if queue.ring.in_hand and not vring.broken:
            self._guarded(vring, self._device.drain)
            self._guarded(vring, queue.flush)
        self._end(vring, queue)

    def abandon(self, vring: Vring) -> None:
        """The same, but nobody wants what is in hand any more: the driver has reset the device, or has gone."""
        queue = self._halt(vring)
        if queue is not None:
            self._end(vring, queue)

    def _halt(self, vring: Vring) -> VhostQueue | None:
        queue = vring.queue
        if queue is None:
            return None
        self._end_thread(vring)
        if vring.kick >= 0:
            self._loop.remove_reader(vring.kick)
            with suppress(OSError):  # a kick of before must not start it again
                os.read(vring.kick, 8)
        if queue.ring.in_hand and not vring.broken:
            self._guarded(vring, self._device.suspend)
            self._guarded(vring, queue.flush)
        return queue

    def _end(self, vring: Vring, queue: VhostQueue) -> None:
        if queue.ring.in_hand:
            _log.warning("ring %d: stopped with %d requests in the device's hands", vring.index, queue.ring.in_hand)
        vring.base = base_of(queue.ring, self.features)
        vring.forgotten = not queue.ring.in_hand and not queue.owed
        self._forget(vring, queue)

    def _forget(self, vring: Vring, queue: VhostQueue) -> None:
        queue.live = False
        vring.queue = None
        del self._queues[vring.index]
        del self._vrings[vring.index]
        self._again.discard(vring.index)
        if self._device.session is not None:
            if self._queues:
                self._device.queue_reset(vring.index)
            else:
                self._device.reset()

    def watch(self, vring: Vring, call: Callable[[], None]) -> None:
        """Call at each kick of a ring that is not started."""
        self._loop.add_reader(vring.kick, call)

    def unwatch(self, vring: Vring) -> None:
        """End that."""
        self._loop.remove_reader(vring.kick)

    def pause(self, vring: Vring) -> None:
        """Do not serve a ring: kicks are not even read. `update` ends that."""
        if not self._end_thread(vring) and vring.kick >= 0 and vring.queue is not None:
            self._loop.remove_reader(vring.kick)

    # -- turns

    def _kicked(self, vring: Vring) -> None:
        try:
            if os.read(vring.kick, 8):
                self.serve(vring)
                return
            why = "the other end closed it"
        except BlockingIOError:
            return
        except OSError as error:
            why = error.strerror or "failed"
        _log.error("ring %d: no kicks any more: %s", vring.index, why)
        self._loop.remove_reader(vring.kick)

    def serve(self, vring: Vring) -> None:
        """Give the device turns with a queue while there is something in it, within limits."""
        queue = vring.queue
        if queue is None or vring.broken or vring.index in self._threads:
            return
        if vring.phase.enabled:
            self._spin_until = self._loop.clock() + self._spin
        elif not self._device.discards:
            return
        if self._guarded(vring, partial(self._rounds, vring, queue)):
            self._again.discard(vring.index)
        else:
            self._again.add(vring.index)

    def _rounds(self, vring: Vring, queue: VhostQueue) -> bool:
        """True when the ring is empty, as far as this pass is concerned."""
        ring = queue.ring
        queue.allowance = _PASS_BYTES
        for _ in range(_ROUNDS):
            ring.refresh()
            self._turn(queue)
            if not queue.live or vring.queue is not queue:
                return True
            if queue.allowance <= 0:
                return False
            # while the thread spins it looks by itself; before it sleeps it asks for kicks
            if self._spin:
                ring.disable_notifications()
                self._asleep = False
                return True
            if not ring.enable_notifications():
                return True
        return False

    def _turn(self, queue: VhostQueue) -> None:
        if queue.vring.phase.enabled:
            self._device.process(queue)
        else:
            self._device.discard(queue)
        queue.flush()
        queue.left = queue.available

    def _guarded(self, vring: Vring, turn: Callable[[], object]) -> object:
        """Give the device a turn; what goes wrong with the ring stays with the ring. The turn's result, else True."""
        try:
            return turn()
        except RemoteError as error:
            self._queue_broken(vring.index, error)
        except Exception:
            _log.exception("ring %d: the device failed", vring.index)
            self._on_broken(vring, "the device failed")
        return True

    def _queue_broken(self, index: int, error: RemoteError) -> None:
        vring = self._vrings.get(index)
        if vring is None or vring.broken:
            return
        if self._memory.lost:
            self._on_broken(vring, LOST)  # whatever is wrong with what was read there
        elif error.verdict is Verdict.REJECT:
            _log.info("ring %d: %s", index, error)
        else:
            self._on_broken(vring, str(error))

    def _wake(self, queue: DeviceQueue) -> None:
        self._loop.call_soon_threadsafe(partial(self._woken, queue))

    def _woken(self, queue: DeviceQueue) -> None:
        vring = self._vrings.get(queue.index)
        is_live = queue.woken()
        if vring is None or vring.index in self._threads:
            return  # a queue that a loop serves wakes for nobody
        if is_live and not vring.broken and vring.phase.enabled:
            queue.allowance = _PASS_BYTES
            assert isinstance(queue, VhostQueue)
            self._guarded(vring, partial(self._turn, queue))
            if queue.live and queue.allowance <= 0 and queue.available:
                queue.wake()

    def before_sleep(self) -> bool:
        """Serve what was left, and spin. False when the loop may sleep: every ring will be kicked for what comes."""
        again, self._again = self._again, set()  # one that may not be served now is looked at when it may
        for index in again:
            vring = self._vrings.get(index)
            if vring is not None:
                self.serve(vring)
        if self._again:
            return True
        if self._asleep:
            return False
        vrings = [vring for index, vring in self._vrings.items() if index not in self._threads]
        for vring in vrings:
            queue = vring.queue
            if queue is not None and not vring.broken and self._guarded(vring, queue.ring.refresh) != queue.left:
                self.serve(vring)
        if self._loop.clock() < self._spin_until:
            return True
        self._asleep = True
        for vring in vrings:
            queue = vring.queue
            if queue is not None and not vring.broken:
                more = self._guarded(vring, queue.ring.enable_notifications)
                if more and not vring.broken:
                    self.serve(vring)
        return not self._asleep

    def _poll(self) -> None:
        """Look at rings without kicks, for as long as there are some."""
        if not self._polling and any(vring.polled for vring in self._vrings.values()):
            self._polling = True
            self._loop.call_later(_POLL_PAUSE, self._look)

    def _look(self) -> None:
        self._polling = False
        for vring in list(self._vrings.values()):
            if vring.polled:
                self.serve(vring)
        self._poll()
