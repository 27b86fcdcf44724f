# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The device's side of a ring in shared guest memory, with what a predecessor had in flight and the dirty log.

What is in flight is on the record of the ring (`DeviceRing.keep_record`). The dirty log is Python's: while it is kept,
no compiled loop serves a queue.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.memory.hw import ld16, pointer, st16
from cython.cimports.powervio.memory.space import AddressSpace
from cython.cimports.powervio.transport.vhost_user.payload import payload_of
from cython.cimports.powervio.virtio.device_queue import DeviceQueue, MappedQueue, Request
from cython.cimports.powervio.virtio.device_ring import DeviceRing

from powervio.errors import RemoteError, Verdict

if TYPE_CHECKING:
    from powervio.memory.abstract import Payload
    from powervio.transport.vhost_user.memory import GuestMemory
    from powervio.transport.vhost_user.vring import Vring
    from powervio.virtio.queue import Segment


def _no_payload(queue: DeviceQueue, segments: list[Segment]) -> Payload:
    raise NotImplementedError


@cython.final
@cython.cclass
class VhostQueue(MappedQueue):
    """See `DeviceQueue` and `MappedQueue`."""

    vring: Any
    left: cython.uint
    _memory: Any
    _map: AddressSpace
    _ring_failed: Any
    _features: Any
    _heads: bytearray
    _head_table: cython.p_uchar
    _again: cython.uint
    _again_end: cython.uint

    def __init__(
        self,
        vring: Vring,
        ring: DeviceRing,
        memory: GuestMemory,
        features: int,
        again: list[int],
        broken: Callable[[int, RemoteError], None],
        wake: Callable[[DeviceQueue], None],
    ) -> None:
        """`again` is what `retake` is to be given first, oldest first; it is on the record."""
        number: cython.uint
        MappedQueue.__init__(self, vring.index, ring, _no_payload, broken, wake, memory.space)
        self.vring = vring
        self.left = 0
        """Buffers that the device left in the ring when it had its last turn."""
        self.kick = vring.kick
        self.call = vring.call
        self._memory = memory
        self._map = memory.map
        self._features = features
        self._ring_failed = broken
        self._heads = bytearray(2 * len(again) + 2)
        self._again = 0
        self._again_end = len(again)
        self._head_table = pointer(self._heads)
        for number in range(self._again_end):
            st16(self._head_table, 2 * number, again[number])

    @property
    def available(self) -> int:
        """See `DeviceQueue`."""
        return self.owed + self.ring.pending

    @property
    def owed(self) -> int:
        """Buffers that a predecessor had in flight and the device was not given yet."""
        return self._again_end - self._again

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take(self) -> cython.int:
        """See `DeviceQueue`. What is found in memory that is gone is nothing."""
        found: cython.int = 1
        if self._again >= self._again_end or not self._take_again():
            found = self.ring.take()
        self._map.check()
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _take_again(self) -> cython.int:
        """A buffer that a predecessor had."""
        while self._again < self._again_end:
            self._again += 1
            if self.ring.take_again(ld16(self._head_table, 2 * (self._again - 1))):
                return 1
        return 0

    @cython.ccall
    def request(self) -> Request:
        """See `DeviceQueue`."""
        ring: DeviceRing = self.ring
        request: Request = Request.__new__(Request)
        request.queue = self
        request.head = ring.head
        request.readable = payload_of(self._memory, self.space, ring, False)
        request.writable = payload_of(self._memory, self.space, ring, True)
        return request

    def flush(self) -> bool:
        """See `DeviceQueue`."""
        if not self.live:
            return False
        if self._memory.logging:
            try:
                self.vring.log_used(self._memory, self._features)
            except RemoteError as error:
                self._ring_failed(self.index, RemoteError(str(error), Verdict.NEEDS_RESET))
                return False
        self.settle()
        return True
