# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""One end's side of a Sub-CRQ beside a CRQ connection: receiving elements of 32 bytes, and notifying the partner.

A Sub-CRQ lives inside a CRQ connection and has no handshake of its own: each end registers its own, and the cookies
travel over the CRQ. It is ordered within itself and not against the CRQ. What is sent here are notifications, of which
the newest replaces an older one that still waits for room; where the partner's Sub-CRQ is gone, or messages of this
end wait in front of the CRQ, they take the way of the CRQ.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.vio.outbox import Notification, Notifier, Outbox
from cython.cimports.powervio.vio.slots import CrqSlots

from powervio.memory.area import PAGE_SIZE
from powervio.papr.codes import ReturnCode
from powervio.papr.crq import VALID_MESSAGE
from powervio.papr.nodes import VdeviceNode
from powervio.papr.vioctl import Vioctl
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel

_DRAIN_LIMIT = cython.declare(cython.int, 128)
_MESSAGE = cython.declare(cython.ulonglong, VALID_MESSAGE)
_HEADER_SHIFT = cython.declare(cython.int, 56)
_SUCCESS = cython.declare(cython.longlong, int(ReturnCode.H_SUCCESS))
_CLOSED = cython.declare(cython.longlong, int(ReturnCode.H_CLOSED))
_DROPPED = cython.declare(cython.longlong, int(ReturnCode.H_DROPPED))
_FREE_ATTEMPTS = 100
_RETRY_FIRST = 0.001
_RETRY_LAST = 0.1


@cython.cclass
class ElementReceiver:
    """What takes the elements of Sub-CRQs."""

    @cython.ccall
    def take(self, end: SubCrqEnd, high: cython.ulonglong, low: cython.ulonglong) -> cython.void:
        """The first half of an element that came through `end`; nothing is said in the other."""
        raise NotImplementedError

    @cython.ccall
    def drained(self) -> cython.void:
        """A batch of them was handed up."""
        raise NotImplementedError


@cython.final
@cython.cclass
class SubCrqEnd(Notifier):
    """One Sub-CRQ of this end, in its partition's thread. May be registered and freed any number of times."""

    cookie: Any
    partner: Any
    registered: cython.bint
    strays: cython.ulonglong
    undeliverable: cython.ulonglong
    _kernel: Any
    _port: Any
    _unit_address: Any
    _crq: Any
    _outbox: Outbox
    _receiver: ElementReceiver
    _dma: Any
    _memory: Any
    _slots: CrqSlots
    _interrupt: Any
    _signals: dict[int, Notification]
    _retry: Any
    _retry_delay: cython.double

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        dma: DmaSpace,
        crq: CrqEnd,
        receiver: ElementReceiver,
        length: int = PAGE_SIZE,
    ) -> None:
        """`length` is bytes, a multiple of 4096."""
        self.cookie = 0
        """What the partner has to be told; it changes with each registration."""
        self.partner = 0
        """The cookie of the partner's Sub-CRQ."""
        self.registered = False
        self.strays = 0
        """Elements with a header that does not exist."""
        self.undeliverable = 0
        """Notifications that found no Sub-CRQ of the partner and took the way of the CRQ."""
        self._kernel = kernel
        self._port = kernel.port
        self._unit_address = node.unit_address
        self._crq = crq
        self._outbox = crq.outbox
        self._receiver = receiver
        self._dma = dma
        self._memory = dma.allocate(length)
        self._slots = CrqSlots(self._memory.view, 32)
        self._interrupt = 0
        self._signals = {}
        self._retry = None
        self._retry_delay = _RETRY_FIRST

    def register(self) -> int:
        """Register and enable the interrupt; the return code, of which H_SUCCESS and H_CLOSED mean registered."""
        answer: tuple[int, int, int]
        answer = self._port.reg_sub_crq(self._unit_address, self._memory.ioba, len(self._memory.view))
        code, cookie, interrupt = answer
        if code not in (ReturnCode.H_SUCCESS, ReturnCode.H_CLOSED):
            return code
        self._slots = CrqSlots(self._memory.view, 32)
        self.registered = True
        self.cookie, self._interrupt = cookie, interrupt
        self._kernel.request_interrupt(interrupt, self.drain)
        self._port.vioctl(self._unit_address, Vioctl.ENABLE_VIO_INTERRUPT, interrupt)
        return code

    def free(self) -> None:
        """Nothing is received or sent any more; harmless when the CRQ was freed, which has freed this too."""
        if not self.registered:
            return
        self.registered = False
        self.partner = 0
        self._signals.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._kernel.free_interrupt(self._interrupt)
        if self._crq.state is CrqState.CLOSED:
            return  # H_FREE_CRQ has freed it
        for _ in range(_FREE_ATTEMPTS):
            if self._port.free_sub_crq(self._unit_address, self.cookie) <= 0:
                return
            self._kernel.wait(0.01)

    def release(self) -> None:
        """Free, and give back the queue's memory; the end is not used afterwards."""
        self.free()
        self._dma.release(self._memory)

    def drain(self) -> None:
        """Take the elements out of the queue and hand them up."""
        handed_up: cython.bint = False
        left: cython.int = _DRAIN_LIMIT
        while left > 0 and self.registered and self._slots.take_wide():
            left -= 1
            if self._slots.high >> _HEADER_SHIFT == _MESSAGE:
                handed_up = True
                self._receiver.take(self, self._slots.high, self._slots.low)
            else:
                self.strays += 1
        if left == 0:
            self._kernel.call_soon(self.drain)
        if handed_up:
            self._receiver.drained()

    @cython.ccall
    def signal(self, notification: Notification) -> cython.void:
        """Send a notification; while the partner's queue is full only one for each key is kept.

        Bytes 16-31 are zero. While older messages wait in front of the CRQ, it goes behind them: the two queues are not
        ordered against each other.
        """
        if not self.registered:
            return  # the session is over
        if self._outbox.is_backlogged():
            self._outbox.signal(notification)
        elif self._signals or not self._send(notification):
            self._signals[notification.key] = notification
            self._retry_later()

    @cython.ccall
    def forget_signal(self, key: cython.longlong) -> cython.void:
        """Drop the notification for `key` that waits for room, here or in front of the CRQ."""
        self._signals.pop(key, None)
        self._outbox.forget_signal(key)

    @cython.cfunc
    @cython.exceptval(-1)
    def _send(self, notification: Notification) -> cython.int:
        """0 when there is no room now."""
        code: cython.longlong
        notification.build()
        code = self._port.send_sub_crq(self._unit_address, self.partner, notification.high, notification.low, 0, 0)
        if code == _DROPPED:
            return 0
        if code != _SUCCESS and code != _CLOSED:
            self.undeliverable += 1
            self._outbox.signal(notification)
        return 1  # when the connection is closed, an event tells of it

    @cython.cfunc
    def _retry_later(self) -> cython.void:
        if self._retry is None:
            self._retry = self._kernel.call_later(self._retry_delay, self._send_kept)

    def _send_kept(self) -> None:
        self._retry = None
        for key, notification in list(self._signals.items()):
            if not self._send(notification):
                self._retry_delay = min(self._retry_delay * 2, _RETRY_LAST)
                self._retry_later()
                return
            self._signals.pop(key, None)
        self._retry_delay = _RETRY_FIRST
