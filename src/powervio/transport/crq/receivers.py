# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Notifications that come over the CRQ, told from all other messages: KICK at the server, USED at the client.

They are noted while the CRQ is emptied, and acted on when it is empty, so that many that came together become one.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.transport.crq.channels import HintReceiver
from cython.cimports.powervio.transport.crq.service import QueueService
from cython.cimports.powervio.vio.inbox import Inbox

from powervio.transport.crq.protocol import Message
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import status as device_status

_KICK = cython.declare(cython.uint, int(Message.KICK))
_USED = cython.declare(cython.uint, int(Message.USED))
_STATUS = cython.declare(cython.uint, device_status.RUNNING_MASK)
_RUNNING = cython.declare(cython.uint, device_status.DRIVER_OK)


@cython.final
@cython.cclass
class KickReceiver(HintReceiver):
    """Of one server adapter."""

    refused: cython.ulonglong
    configuration: Any
    inbox: Inbox | None
    _kernel: Any
    _service: QueueService
    _other: Any

    def __init__(self, kernel: PartitionKernel, service: QueueService, other: Callable[[int, int], None]) -> None:
        """`other` gets all other messages."""
        self.refused = 0
        """Kicks of another session, or before DRIVER_OK: survived, not served (virtio 1.4, 3.1.1)."""
        self.configuration = None
        """Its `session` is what kicks have to belong to; set before the first message comes."""
        self.inbox = None
        """The CRQ's; set before the first kick through a Sub-CRQ comes."""
        self._kernel = kernel
        self._service = service
        self._other = other

    def message(self, high: cython.ulonglong, low: cython.ulonglong) -> None:
        """Take a message, as its halves."""
        number: cython.uint
        status: cython.uint
        if (high >> 48) & 0xFF != _KICK:
            self._other(high, low)
            return
        session = self.configuration.session
        if session is not None:
            number = session.number
            status = session.status.status
            if number == ((high >> 32) & 0xFFFF) and status & _STATUS == _RUNNING:
                # the index: bytes 6-7, above them the round, bytes 10-11 (P6.2)
                self._service.kick((high >> 16) & 0xFFFF, (high & 0xFFFF) | ((low >> 16) & 0xFFFF_0000))
                return
        self.refused += 1

    @cython.ccall
    def hint(self, queue: cython.uint, index: cython.uint) -> cython.void:
        """A kick of this session that came through a Sub-CRQ."""
        status: cython.uint
        session = self.configuration.session
        if session is not None:
            status = session.status.status
            if status & _STATUS == _RUNNING:
                self._service.kick(queue, index)
                return
        self.refused += 1

    @cython.ccall
    def hinted(self) -> cython.void:
        """Kicks came through a Sub-CRQ: what was sent on the CRQ before them counts first (P5.16)."""
        assert self.inbox is not None
        self.inbox.drain()
        if self.inbox.has_more():
            self._kernel.call_soon(self.hinted)
        else:
            self._service.serve()


@cython.final
@cython.cclass
class UsedReceiver(HintReceiver):
    """Of one client adapter."""

    live: cython.bint
    rejected: cython.ulonglong
    used: set[int]
    handshake: Any
    _completed: Any
    _other: Any
    _on_failure: Any

    def __init__(
        self,
        completed: Callable[[Any], None],
        other: Callable[[int, int], None],
        on_failure: Callable[[int, Exception], bool],
    ) -> None:
        """`completed(queue)` is the driver's; what it raises goes to `on_failure(index, error)`, which says whether the
        other queues are still to be looked at. `other` gets all other messages.
        """
        self.live = False
        """Whether there is a session: else nothing is handed up."""
        self.rejected = 0
        """Messages of the server that made no sense."""
        self.used = set()
        """Queues of which the device has used something."""
        self.handshake = None
        """Its `number` is that of the session, its `queues` are the session's; set before the first message comes."""
        self._completed = completed
        self._other = other
        self._on_failure = on_failure

    def message(self, high: cython.ulonglong, low: cython.ulonglong) -> None:
        """Take a message, as its halves."""
        number: cython.uint
        if (high >> 48) & 0xFF != _USED:
            self._other(high, low)
            return
        number = self.handshake.number
        if number == ((high >> 32) & 0xFFFF):
            self.used.add((high >> 16) & 0xFFFF)
        else:
            self.rejected += 1

    @cython.ccall
    def hint(self, queue: cython.uint, index: cython.uint) -> cython.void:
        """A notification of this session that came through a Sub-CRQ."""
        self.used.add(queue)

    @cython.ccall
    def hinted(self) -> cython.void:
        """See `drained`."""
        self.drained()

    @cython.ccall
    def drained(self) -> cython.void:
        """The CRQ is empty: hand up what the device has used, one call a queue however many notifications came."""
        used: set[int] = self.used
        index: cython.uint
        if not used:
            return
        self.used = set()
        if not self.live:
            return
        for index in used:
            queues = self.handshake.queues
            if index >= len(queues):
                self.rejected += 1
                continue
            try:
                self._completed(queues[index])
            except Exception as error:
                if not self._on_failure(index, error):
                    return
            if not self.handshake.queues:
                return  # a completion ended the session
