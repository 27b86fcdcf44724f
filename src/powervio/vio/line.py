# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A partition's external interrupts: taking them from the line by H_XIRR, handing them to handlers, H_EOI.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import cython
from cython.cimports.powervio.memory.hw import event_take

from powervio.papr.port import HcallPort

_SOURCE_MASK = cython.declare(cython.uint, 0x00FF_FFFF)
_log = logging.getLogger(__name__)


@cython.final
@cython.cclass
class InterruptLine:
    """The line of one partition, and who is called for which source."""

    handlers: dict[int, Callable[[], None]]
    fd: cython.int
    _port: HcallPort

    def __init__(self, port: HcallPort, fd: int) -> None:
        """`fd` is a duplicate of the port's `interrupt_fd`, and stays the caller's to close."""
        self.handlers = {}
        """By interrupt source."""
        self.fd = fd
        self._port = port

    def take(self, limit: cython.uint) -> bool:
        """Take up to `limit` interrupts; False when there was none.

        A handler is called once before and once after H_EOI, because a pulse that comes while the interrupt is pending
        leaves no trace (papr-vio 3.4). Raises `OSError` when the line is closed.
        """
        taken: cython.int
        xirr: cython.uint
        worked: cython.bint = False
        while limit != 0:
            limit -= 1
            with cython.nogil:
                taken = event_take(self.fd)
            if taken < 0:
                raise OSError(-taken, f"the interrupt line of partition {self._port.partition_name}")
            if taken == 0:
                break
            worked = True
            xirr = self._port.xirr()
            if xirr & _SOURCE_MASK == 0:
                continue
            handler = self.handlers.get(xirr & _SOURCE_MASK)
            if handler is not None:
                self._call(handler)
            self._port.eoi(xirr)
            if handler is not None:
                self._call(handler)
        return worked

    @cython.cfunc
    def _call(self, handler: Callable[[], None]) -> cython.void:
        """A fault of ours in one adapter must not stop the others of the partition."""
        try:
            handler()
        except Exception:
            _log.exception("partition %s: a handler failed", self._port.partition_name)
