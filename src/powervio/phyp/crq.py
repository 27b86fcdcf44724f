# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The hypervisor's side of a Command/Response Queue: it puts elements in, the owner takes them out (papr-vio 3.1).

The queue lies in the owner's memory and is named by I/O bus addresses, so the slot is translated through the owner's
first pane each time: what the owner does to its TCEs takes effect at once. No index is shared. The hypervisor keeps the
enqueue offset, the owner its own place, and a slot belongs to whoever its header byte says (0 = free).
The owner's side is `powervio.vio.slots`.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import be64, ld8_acquire, st64, st64_release
from cython.cimports.powervio.phyp.tce import TceTable

H_CLOSED = cython.declare(cython.int, 2)
H_DROPPED = cython.declare(cython.int, -12)
ACCESS = cython.declare(cython.ulonglong, 3)
SLOT = cython.declare(cython.ulonglong, 16)
OVERLAID = cython.declare(cython.ulonglong, 0x20)
OVERLAID_SHIFT = cython.declare(cython.int, 32)


@cython.final
@cython.cclass
class ReceiveQueue:
    """One end's queue. Unregistered while `length` is 0; `ioba` and `length` are in bytes."""

    table: TceTable
    ioba: cython.ulonglong
    length: cython.ulonglong
    enqueue: cython.ulonglong

    def __init__(self, table: TceTable) -> None:
        self.table = table
        self.ioba = 0
        self.length = 0
        self.enqueue = 0

    @cython.ccall
    def mapped(self, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.bint:
        """Whether the hypervisor could read and write every page of this range now."""
        return self.table.allows(ioba, length, ACCESS)

    @cython.ccall
    def register(self, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """Take over a range that was checked; the first element goes to its first slot. Nothing is cleared."""
        self.ioba = ioba
        self.length = length
        self.enqueue = 0

    @cython.ccall
    def release(self) -> cython.void:
        """Forget the range."""
        self.length = 0

    @cython.ccall
    def put(self, high: cython.ulonglong, low: cython.ulonglong) -> cython.int:
        """Store an element in the next slot.

        H_DROPPED if the owner has not freed that slot. H_CLOSED if the owner has unmapped it: then this end cannot
        receive, which is what H_CLOSED tells the sender.
        """
        address: cython.longlong
        if self.length == 0:
            return H_CLOSED
        address = self.table.translate(self.ioba + self.enqueue, ACCESS)
        if address < 0:
            return H_CLOSED
        if ld8_acquire(self.table.memory, address) != 0:
            return H_DROPPED
        st64(self.table.memory, address + 8, be64(low))
        st64_release(self.table.memory, address, be64(high))
        self.enqueue += SLOT
        if self.enqueue >= self.length:
            self.enqueue = 0
        return 0

    @cython.ccall
    def overlay(self, high: cython.ulonglong) -> cython.int:
        """Replace the newest element of a full queue by an event, marked with 0x20 in byte 3 (papr-vio 3.3).

        Only the first half is replaced, in one store: an owner that is just reading the slot sees the old element or
        the event. If the newest is free by now the owner has drained the queue meanwhile, and the next slot is free.
        """
        address: cython.longlong
        newest: cython.ulonglong = self.enqueue
        if self.length == 0:
            return H_CLOSED
        if newest == 0:
            newest = self.length
        newest -= SLOT
        address = self.table.translate(self.ioba + newest, ACCESS)
        if address < 0:
            return H_CLOSED
        if ld8_acquire(self.table.memory, address) == 0:
            return self.put(high, 0)
        st64_release(self.table.memory, address, be64(high | (OVERLAID << OVERLAID_SHIFT)))
        return 0
