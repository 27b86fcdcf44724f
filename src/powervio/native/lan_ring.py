# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver's part of a logical LAN adapter that runs for each frame: its receive queue, buffers, transmit buffer.

All of it is the partition's own memory, mapped once. A buffer's handle is its number, written before it is added for
the first time and left alone by the hypervisor. One thread uses it.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    address_of,
    at,
    be16,
    be32,
    be64,
    bytes_at,
    copy,
    get16,
    get32,
    get64,
    ld8_acquire,
    ld32,
    ld64,
    pointer,
    pointer_to_read,
    st8,
    st32,
    st64,
)
from cython.cimports.powervio.native.lan_frame import TcpView
from cython.cimports.powervio.network.frame import Frame

from powervio.papr import lan

_ENTRY = cython.declare(cython.ulonglong, lan.ENTRY_SIZE)
_MESSAGE = cython.declare(cython.uint, lan.ENTRY_MESSAGE)
_VALID = cython.declare(cython.ulonglong, lan.VALID)
_LARGE_SEND = cython.declare(cython.uint, lan.LARGE_SEND)
_NO_CHECKSUM = cython.declare(cython.uint, lan.NO_CHECKSUM)
_GOOD = cython.declare(cython.uint, lan.CHECKSUM_GOOD)
_OFFSET = cython.declare(cython.ulonglong, lan.MESSAGE_OFFSET)
_OFFSET_MSS = cython.declare(cython.ulonglong, lan.MESSAGE_OFFSET_MSS)
_IPV4 = cython.declare(cython.uint, int(lan.Attribute.CHECKSUM_IPV4))
_IPV6 = cython.declare(cython.uint, int(lan.Attribute.CHECKSUM_IPV6))
_LARGE = cython.declare(cython.uint, int(lan.Attribute.LARGE))
_NONZERO = cython.declare(cython.uint, int(lan.Attribute.NONZERO_CHECKSUM))
_CHECKSUM = cython.declare(cython.ulonglong, 16)
_TCPV4 = cython.declare(cython.int, 1)
_TCPV6 = cython.declare(cython.int, 4)
_ECN = cython.declare(cython.int, 0x80)
_MAX_MSS = cython.declare(cython.ulonglong, 0xFFFF)

EMPTY, BAD = 0, 1
"""What `next` says when there is no frame: nothing is there, or an entry that no hypervisor makes."""
_EMPTY = cython.declare(cython.int, EMPTY)
_BAD = cython.declare(cython.int, BAD)
CANNOT = 0
"""What `fill` says of a frame that the hypervisor does not take as it is."""


@cython.final
@cython.cclass
class LanRing:
    """Of one adapter, while it is registered."""

    spare: cython.uint
    count: cython.uint
    _memory: cython.p_uchar
    _queue: cython.ulonglong
    _entries: cython.ulonglong
    _next: cython.ulonglong
    _control: cython.uint
    _buffers: cython.p_uchar
    _spares: cython.p_uchar
    _lent: cython.p_uchar
    _transmit: cython.ulonglong
    _transmit_ioba: cython.ulonglong
    _room: cython.ulonglong
    _attributes: cython.uint
    _tcp: TcpView
    _views: Any

    def __init__(
        self,
        memory: memoryview,
        queue: int,
        entries: int,
        buffers: list[tuple[int, int, int]],
        transmit: tuple[int, int, int],
        attributes: int,
    ) -> None:
        """`queue`: logical address of the receive queue of so many entries, zeroed; `buffers`: logical address, I/O
        address and size of each; `transmit`: of the buffer that frames are sent from; `attributes`: the adapter's.
        """
        number: cython.uint = 0
        table = bytearray(16 * len(buffers) + 16)
        spares = bytearray(4 * len(buffers) + 4)
        lent = bytearray(len(buffers) + 1)
        self._views = (memory, table, spares, lent)
        self._memory = pointer(memory)
        self._buffers = pointer(table)
        self._spares = pointer(spares)
        self._lent = pointer(lent)
        self._queue = queue
        self._entries = entries
        self._next = 0
        self._control = cython.cast(cython.uint, _VALID)
        self._transmit, self._transmit_ioba, self._room = transmit
        self._attributes = attributes
        self._tcp = TcpView()
        self.count = len(buffers)
        self.spare = 0
        """Buffers that the hypervisor does not have."""
        for address, ioba, size in buffers:
            st64(self._buffers, 16 * number, address)
            st64(self._buffers, 16 * number + 8, _VALID << 56 | size << 32 | ioba)
            st64(self._memory, address, be64(number))
            number += 1
        while number != 0:
            number -= 1
            self._put_back(number)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _put_back(self, number: cython.uint) -> cython.void:
        st8(self._lent, number, 0)
        st32(self._spares, 4 * cython.cast(cython.ulonglong, self.spare), number)
        self.spare += 1

    def lend(self) -> int:
        """The descriptor of a spare buffer, which the hypervisor gets; 0 when there is none."""
        number: cython.ulonglong
        if self.spare == 0:
            return 0
        self.spare -= 1
        number = ld32(self._spares, 4 * cython.cast(cython.ulonglong, self.spare))
        st8(self._lent, number, 1)
        return ld64(self._buffers, 16 * number + 8)

    def take_back(self, descriptor: cython.ulonglong) -> None:
        """The hypervisor did not take the one that was lent last, or before it."""
        number: cython.uint
        for number in range(self.count):
            if ld64(self._buffers, 16 * cython.cast(cython.ulonglong, number) + 8) == descriptor:
                if ld8_acquire(self._lent, number) != 0:
                    self._put_back(number)
                return

    # -- receiving

    def waits(self) -> bool:
        """Whether there is an entry."""
        return bool(self._waits())

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _waits(self) -> cython.bint:
        return ld8_acquire(self._memory, self._queue + self._next * _ENTRY) & 0x80 == self._control

    def next(self) -> object:
        """The frame of the next entry of the receive queue, or EMPTY or BAD; its buffer is spare then.

        A frame whose checksum was left out has a partial one, as everybody else has it.
        """
        place: cython.ulonglong
        control: cython.uint
        offset: cython.ulonglong
        length: cython.ulonglong
        handle: cython.ulonglong
        address: cython.ulonglong
        size: cython.ulonglong
        while self._waits():
            place = self._queue + self._next * _ENTRY
            control = ld8_acquire(self._memory, place)
            offset = be16(get16(self._memory, place + 2))
            length = be32(get32(self._memory, place + 4))
            handle = be64(ld64(self._memory, place + 8))
            self._next += 1
            if self._next == self._entries:
                self._next = 0
                self._control ^= cython.cast(cython.uint, _VALID)
            if handle >= self.count or ld8_acquire(self._lent, handle) == 0:
                return _BAD
            self._put_back(cython.cast(cython.uint, handle))
            if control & _MESSAGE == 0:
                continue
            address = ld64(self._buffers, 16 * handle)
            size = ld64(self._buffers, 16 * handle + 8) >> 32 & 0xFF_FFFF
            if offset < _OFFSET or offset > size or length > size - offset:
                return _BAD
            return self._frame(control, address, address + offset, length)
        return _EMPTY

    @cython.cfunc
    def _frame(
        self, control: cython.uint, buffer: cython.ulonglong, address: cython.ulonglong, length: cython.ulonglong
    ) -> object:
        tcp: TcpView = self._tcp
        data: object
        size: cython.ulonglong = 0
        kind: cython.int
        if control & _NO_CHECKSUM == 0:
            data = bytes_at(address_of(self._memory, address), length)
            return Frame(data, None, control & _GOOD != 0)
        if not tcp.look(at(self._memory, address), length):
            return _BAD
        tcp.make_partial()
        data = bytes_at(address_of(self._memory, address), length)
        if control & _LARGE_SEND != 0 and address - buffer >= _OFFSET_MSS:
            size = be64(get64(self._memory, buffer + _OFFSET))
        if size == 0 or size > _MAX_MSS:
            return Frame(data, (tcp.transport, _CHECKSUM))
        kind = _TCPV4 if tcp.version == 4 else _TCPV6
        if tcp.congested:
            kind |= _ECN
        return Frame(data, (tcp.transport, _CHECKSUM), False, kind, size, tcp.payload)

    # -- sending

    def fill(self, frame: Frame) -> int:
        """Put a frame into the transmit buffer: its descriptor; CANNOT for one that has to be finished before.

        What it says of itself is believed as far as its headers say the same.
        """
        length: cython.ulonglong = len(frame.data)
        data: cython.p_uchar = pointer_to_read(frame.data)
        control: cython.ulonglong = _VALID
        tcp: TcpView = self._tcp
        if length > self._room:
            return CANNOT
        if frame.partial is not None:
            if not tcp.look(data, length) or frame.partial != (tcp.transport, _CHECKSUM) or tcp.end != length:
                return CANNOT
            if self._attributes & (_IPV4 if tcp.version == 4 else _IPV6) == 0:
                return CANNOT
            control |= _NO_CHECKSUM | _GOOD
            if frame.gso != 0:
                if self._attributes & _LARGE == 0 or frame.gso & 0x7F != (_TCPV4 if tcp.version == 4 else _TCPV6):
                    return CANNOT
                control |= _LARGE_SEND
        elif frame.valid and self._attributes & (_IPV4 | _IPV6) != 0 and tcp.look(data, length):
            if self._attributes & (_IPV4 if tcp.version == 4 else _IPV6) != 0:
                control |= _GOOD
        copy(self._memory, self._transmit, data, 0, length)
        if control & _NO_CHECKSUM != 0 and self._attributes & _NONZERO == 0:
            st8(self._memory, self._transmit + tcp.transport + _CHECKSUM, 0)
            st8(self._memory, self._transmit + tcp.transport + _CHECKSUM + 1, 0)
        return control << 56 | length << 32 | self._transmit_ioba
