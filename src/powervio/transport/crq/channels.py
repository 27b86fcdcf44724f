# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The Sub-CRQs that carry KICK and USED of a session's queues, at either end (docs/protocol.md, P5.13, P5.15-P5.18).

Sub-CRQs are not ordered against the CRQ, on which sessions begin and end. What comes late is told from what is new by
three things, each of which is enough on this platform and none of which is relied on alone: the cookie, which is new
after each CHANNELS; the session number; and the queue's generation, which changes with QUEUE_RESET.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.vio.outbox import Notifier
from cython.cimports.powervio.vio.subcrq import ElementReceiver, SubCrqEnd

from powervio.papr.nodes import VdeviceNode
from powervio.transport.crq.protocol import Message
from powervio.vio.crq import CrqEnd
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel


@cython.cclass
class HintReceiver:
    """What takes KICK or USED of this session and of a queue's present generation."""

    @cython.ccall
    def hint(self, queue: cython.uint, index: cython.uint) -> cython.void:
        """A notification for a queue, and the index in it."""
        raise NotImplementedError

    @cython.ccall
    def hinted(self) -> cython.void:
        """No more of them are there now."""
        raise NotImplementedError


@cython.final
@cython.cclass
class Channels(ElementReceiver):
    """The Sub-CRQs of one adapter, and which queue of the session each carries."""

    rejected: cython.ulonglong
    _kernel: Any
    _node: Any
    _dma: Any
    _crq: Any
    _kind: cython.uint
    _receiver: HintReceiver
    _session: cython.uint
    _ends: list[SubCrqEnd]
    _carried: dict[int, SubCrqEnd]
    _generations: dict[int, int]

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        dma: DmaSpace,
        crq: CrqEnd,
        kind: Message,
        receiver: HintReceiver,
    ) -> None:
        """`kind` is what this end receives, KICK or USED; `receiver` gets those that are not too late."""
        self.rejected = 0
        """Elements of another session, generation or kind, or for a queue that this Sub-CRQ does not carry."""
        self._kernel = kernel
        self._node = node
        self._dma = dma
        self._crq = crq
        self._kind = kind
        self._receiver = receiver
        self._session = 0
        self._ends = []
        """All that were ever made; their memory is used again by later sessions."""
        self._carried = {}
        self._generations = {}

    def __len__(self) -> int:
        return len(self._carried)

    @property
    def ends(self) -> list[SubCrqEnd]:
        """Those that are registered."""
        return [end for end in self._ends if end.registered]

    def open(self) -> tuple[int, SubCrqEnd]:
        """Register one more; the return code says whether it is registered."""
        end = next((end for end in self._ends if not end.registered), None)
        if end is None:
            end = SubCrqEnd(self._kernel, self._node, self._dma, self._crq, self)
            self._ends.append(end)
        return end.register(), end

    def carry(self, queue: int, end: SubCrqEnd, session: int, generation: int) -> None:
        """From here on `queue` is carried by `end`."""
        self._session = session
        self._carried[queue] = end
        self._generations[queue] = generation

    def notifier(self, queue: int) -> Notifier:
        """Where this queue's notifications go."""
        end: SubCrqEnd | None = self._carried.get(queue)
        return self._crq.outbox if end is None else end

    def carrier(self, queue: int) -> SubCrqEnd | None:
        """What carries a queue; None for one on the CRQ."""
        return self._carried.get(queue)

    def generation(self, queue: int) -> int:
        """The number that this queue's notifications carry; 0 for a queue on the CRQ."""
        return self._generations.get(queue, 0)

    def queue_was_reset(self, queue: int) -> None:
        """QUEUE_RESET: what is still under way for this queue is void (P5.17)."""
        if queue in self._generations:
            self._generations[queue] = (self._generations[queue] + 1) & 0xFFFF

    def close(self) -> None:
        """The session or the device's life in it is over: free every Sub-CRQ."""
        self._carried.clear()
        self._generations.clear()
        for end in self._ends:
            end.free()

    def release(self) -> None:
        """Close, and give back the memory of all queues."""
        self.close()
        while self._ends:
            self._ends.pop().release()

    @cython.ccall
    def take(self, end: SubCrqEnd, high: cython.ulonglong, low: cython.ulonglong) -> cython.void:
        """An element came through one of the Sub-CRQs: if it is of now, its hint is passed on.

        What it says: bytes 6-7 and, above them, the round, bytes 10-11 (P6.2).
        """
        queue: cython.uint = (high >> 16) & 0xFFFF
        if (
            (high >> 48) & 0xFF != self._kind
            or (high >> 32) & 0xFFFF != self._session
            or self._carried.get(queue) is not end
            or low >> 48 != self._generations[queue]
        ):
            self.rejected += 1
            return
        self._receiver.hint(queue, (high & 0xFFFF) | ((low >> 16) & 0xFFFF_0000))

    @cython.ccall
    def drained(self) -> cython.void:
        """See `ElementReceiver`."""
        self._receiver.hinted()
