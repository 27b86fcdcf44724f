# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The hypervisor's side of a Command/Response Queue: it puts elements in, the owner takes them out (papr-vio 3.1).

The queue lies in the owner's memory and is named by I/O bus addresses, so the slot is translated through the owner's
first pane each time: what the owner does to its TCEs takes effect at once. No index is shared. The hypervisor keeps the
enqueue offset, the owner its own place, and a slot belongs to whoever its header byte says (0 = free).
The owner's side is `powervio.vio.slots`.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import be64, ld8_acquire, st8, st64, st64_release
from cython.cimports.powervio.phyp.tce import TceTable

H_CLOSED = cython.declare(cython.int, 2)
H_DROPPED = cython.declare(cython.int, -12)
ACCESS = cython.declare(cython.ulonglong, 3)
OVERLAID = cython.declare(cython.ulonglong, 0x20)
OVERLAID_SHIFT = cython.declare(cython.int, 32)


@cython.final
@cython.cclass
class ReceiveQueue:
    """One queue of one end. Unregistered while `length` is 0; `ioba` and `length` are in bytes.

    `slot` is the size of its elements: 16 bytes in a CRQ (`put`, `overlay`), 32 in a Sub-CRQ (`room`, `store`).
    """

    table: TceTable
    slot: cython.ulonglong
    ioba: cython.ulonglong
    length: cython.ulonglong
    enqueue: cython.ulonglong

    def __init__(self, table: TceTable, slot: int = 16) -> None:
        self.table = table
        self.slot = slot
        self.ioba = 0
        self.length = 0
        self.enqueue = 0

    @cython.ccall
    @cython.exceptval(check=False)
    def mapped(self, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.bint:
        """Whether the hypervisor could read and write every page of this range now."""
        found: cython.bint = self.table.allows(ioba, length, ACCESS)
        self.table.end_use()
        return found

    @cython.ccall
    @cython.exceptval(check=False)
    def register(self, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """Take over a range that was checked; the first element goes to its first slot. Nothing is cleared."""
        self.ioba = ioba
        self.length = length
        self.enqueue = 0

    @cython.ccall
    @cython.exceptval(check=False)
    def go_on_at(self, offset: cython.ulonglong) -> cython.void:
        """The next element goes to the slot at this offset in bytes, within the length."""
        self.enqueue = offset

    @cython.ccall
    @cython.exceptval(check=False)
    def release(self) -> cython.void:
        """Forget the range."""
        self.length = 0

    @cython.ccall
    @cython.exceptval(check=False)
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
        self.enqueue += self.slot
        if self.enqueue >= self.length:
            self.enqueue = 0
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def clear(self) -> cython.void:
        """Free every slot of a range that was just registered, as H_REG_SUB_CRQ does."""
        offset: cython.ulonglong = 0
        address: cython.longlong
        while offset < self.length:
            address = self.table.translate(self.ioba + offset, ACCESS)
            if address >= 0:
                st8(self.table.memory, address, 0)
            offset += self.slot

    @cython.ccall
    @cython.exceptval(check=False)
    def room(self, count: cython.ulonglong) -> cython.int:
        """Whether `count` elements fit now: 0, H_DROPPED, or H_CLOSED when a slot's page is not mapped."""
        offset: cython.ulonglong = self.enqueue
        address: cython.longlong
        if self.length == 0:
            return H_CLOSED
        if count > self.length // self.slot:
            return H_DROPPED
        while count > 0:
            address = self.table.translate(self.ioba + offset, ACCESS)
            if address < 0:
                return H_CLOSED
            if ld8_acquire(self.table.memory, address) != 0:
                return H_DROPPED
            offset += self.slot
            if offset >= self.length:
                offset = 0
            count -= 1
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def store(
        self, dw0: cython.ulonglong, dw1: cython.ulonglong, dw2: cython.ulonglong, dw3: cython.ulonglong
    ) -> cython.void:
        """Put an element of 32 bytes into the next slot, for which `room` was found under the same lock.

        The header is not looked at again: an owner that changes it behind our back loses an element of its own.
        """
        address: cython.longlong = self.table.translate(self.ioba + self.enqueue, ACCESS)
        if self.length == 0 or address < 0:
            return
        st64(self.table.memory, address + 8, be64(dw1))
        st64(self.table.memory, address + 16, be64(dw2))
        st64(self.table.memory, address + 24, be64(dw3))
        st64_release(self.table.memory, address, be64(dw0))
        self.enqueue += self.slot
        if self.enqueue >= self.length:
            self.enqueue = 0

    @cython.ccall
    @cython.exceptval(check=False)
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
        newest -= self.slot
        address = self.table.translate(self.ioba + newest, ACCESS)
        if address < 0:
            return H_CLOSED
        if ld8_acquire(self.table.memory, address) == 0:
            return self.put(high, 0)
        st64_release(self.table.memory, address, be64(high | (OVERLAID << OVERLAID_SHIFT)))
        return 0
