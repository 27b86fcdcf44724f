# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The sending half of a CRQ connection: messages and notifications in order, kept while the partner's queue is full.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import cython

from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.vio.kernel import PartitionKernel

_log = logging.getLogger(__name__)

_LIMIT = cython.declare(cython.int, 256)
"""Posts kept for a partner whose queue is full; one that never empties its queue is cut off beyond this."""
RETRY_FIRST = 0.001
RETRY_LAST = 0.1
"""Seconds after which what was kept is tried again: first, and at most."""
_DROPPED = cython.declare(cython.longlong, int(ReturnCode.H_DROPPED))
_BUSY = cython.declare(cython.longlong, int(ReturnCode.H_BUSY))
"""A hypervisor in another process did not answer, and will not carry it out."""
_CLOSED = cython.declare(cython.longlong, int(ReturnCode.H_CLOSED))


@cython.cclass
class Notification:
    """Something to be said, and its number `key`: bytes 0-7 (`high`) and 8-15 (`low`) of an element.

    `build` is called when it is sent, so that a delayed one tells the newest state.
    """

    key: cython.longlong
    high: cython.ulonglong
    low: cython.ulonglong

    def __init__(self, key: int, high: int = 0, low: int = 0) -> None:
        self.key = key
        self.high = high
        self.low = low

    @cython.ccall
    def build(self) -> cython.void:
        """Set `high` and `low` to what is to be said now."""


@cython.cclass
class Notifier:
    """Where the notifications of a queue go: the CRQ, or the queue's Sub-CRQ."""

    @cython.ccall
    def signal(self, notification: Notification) -> cython.void:
        """Send a notification, now or as soon as there is room; see `Outbox.signal`."""
        raise NotImplementedError

    @cython.ccall
    def forget_signal(self, key: cython.longlong) -> cython.void:
        """Drop the one with this key that waits for room."""
        raise NotImplementedError


@cython.final
@cython.cclass
class Outbox(Notifier):
    """In its partition's thread.

    What waits for room in the partner's queue is kept oldest first: notifications under their keys, messages under
    negative ones. One order for both, because a request may rely on a message before it (P5.8) and a reply may say that
    everything was told (P5.12).
    """

    _kernel: Any
    _port: Any
    _unit_address: Any
    _is_gone: Any
    _on_overflow: Any
    _kept: dict[int, Notification]
    _kept_messages: cython.int
    _posts: cython.longlong
    _retry: Any
    _delay: cython.double

    def __init__(
        self,
        kernel: PartitionKernel,
        unit_address: int,
        is_gone: Callable[[], bool],
        on_overflow: Callable[[], None],
    ) -> None:
        """`is_gone` says whether the adapter was unplugged; `on_overflow` is called when the partner is cut off."""
        self._kernel = kernel
        self._port = kernel.port
        self._unit_address = unit_address
        self._is_gone = is_gone
        self._on_overflow = on_overflow
        self._kept = {}
        self._kept_messages = 0
        self._posts = 0
        self._retry = None
        self._delay = RETRY_FIRST

    @property
    def backlogged(self) -> bool:
        """Whether messages are kept back because the partner's queue is full."""
        return self.is_backlogged()

    @cython.cfunc
    @cython.exceptval(check=False)
    def is_backlogged(self) -> cython.bint:
        """See `backlogged`."""
        return len(self._kept) != 0

    def post(self, high: int, low: int) -> None:
        """Send a message, now or as soon as the partner's queue has room, in order.

        When the connection is gone the message is forgotten: an event tells of it, or the device tree when the adapter
        was unplugged. A partner that lets more than 256 messages pile up is cut off (the connection is reset).
        """
        if not self._kept and self._sent(high, low):
            return
        self._posts += 1
        self._kept[-self._posts] = Notification(-self._posts, high, low)
        self._kept_messages += 1
        if self._kept_messages > _LIMIT:
            _log.warning("CRQ %#x: the partner does not empty its queue; connection reset", self._unit_address)
            self.forget()
            self._on_overflow()
        else:
            self._retry_later()

    @cython.ccall
    def signal(self, notification: Notification) -> cython.void:
        """Send a notification, its key 0 or more; while the partner's queue is full only one for each key is kept.

        It is sent after everything that was posted before the newest call.
        """
        if not self._kept:
            notification.build()
            if self._sent(notification.high, notification.low):
                return
        self._kept.pop(notification.key, None)
        self._kept[notification.key] = notification
        self._retry_later()

    def forget_signals(self) -> None:
        """Drop notifications that wait for room: what they tell of is over."""
        self._kept = {key: kept for key, kept in self._kept.items() if key < 0}

    @cython.ccall
    def forget_signal(self, key: cython.longlong) -> cython.void:
        """Drop the notification for `key` that waits for room."""
        self._kept.pop(key, None)

    def forget(self) -> None:
        """Drop all that waits for room."""
        self._kept.clear()
        self._kept_messages = 0
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    @cython.cfunc
    @cython.exceptval(-1)
    def _sent(self, high: cython.ulonglong, low: cython.ulonglong) -> cython.int:
        """Whether the message is off our hands; not when the partner's queue is full or the hypervisor busy."""
        code: cython.longlong = self._port.send_crq(self._unit_address, high, low)
        if code == 0:
            return 1
        if code == _DROPPED or code == _BUSY:
            return 0
        if code == _CLOSED or self._is_gone():
            return 1
        raise HcallError(Hcall.H_SEND_CRQ, code)

    @cython.cfunc
    def _retry_later(self) -> cython.void:
        if self._retry is None:
            self._retry = self._kernel.call_later(self._delay, self._send_kept)

    def _send_kept(self) -> None:
        kept: Notification
        self._retry = None
        while self._kept:
            key = next(iter(self._kept))
            kept = self._kept[key]
            kept.build()
            if not self._sent(kept.high, kept.low):
                self._delay = min(self._delay * 2, RETRY_LAST)
                self._retry_later()
                return
            del self._kept[key]
            self._kept_messages -= key < 0
        self._delay = RETRY_FIRST
