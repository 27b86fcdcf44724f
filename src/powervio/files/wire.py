"""Interpreted stand-in for `wire.h`: little-endian integers at any place, and streams of bytes.

Compiled modules call the inline C functions of `wire.h` through `wire.pxd`. Nothing here checks an offset.
"""

from __future__ import annotations

import errno
import os
import socket
from struct import Struct

from powervio.memory.hw import Pointer

_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")


def take8(base: Pointer, offset: int) -> int:
    """An unsigned integer of one byte."""
    return base[offset]


def take16(base: Pointer, offset: int) -> int:
    """Of two bytes."""
    return int(_U16.unpack_from(base, offset)[0])


def take32(base: Pointer, offset: int) -> int:
    """Of four bytes."""
    return int(_U32.unpack_from(base, offset)[0])


def take64(base: Pointer, offset: int) -> int:
    """Of eight bytes."""
    return int(_U64.unpack_from(base, offset)[0])


def put8(base: Pointer, offset: int, value: int) -> None:
    """Put an unsigned integer of one byte."""
    base[offset] = value & 0xFF


def put16(base: Pointer, offset: int, value: int) -> None:
    """Of two bytes."""
    _U16.pack_into(base, offset, value & 0xFFFF)


def put32(base: Pointer, offset: int, value: int) -> None:
    """Of four bytes."""
    _U32.pack_into(base, offset, value & 0xFFFF_FFFF)


def put64(base: Pointer, offset: int, value: int) -> None:
    """Of eight bytes."""
    _U64.pack_into(base, offset, value & 0xFFFF_FFFF_FFFF_FFFF)


def receive(fd: int, out: Pointer, offset: int, size: int) -> int:
    """recv(2); how many bytes, 0 at the end."""
    try:
        return os.readv(fd, [out[offset : offset + size]])
    except OSError as error:
        return -(error.errno or errno.EIO)


def send(fd: int, data: Pointer, offset: int, size: int) -> int:
    """Send all of it, or fail; without SIGPIPE."""
    line = socket.socket(fileno=os.dup(fd))
    sent = 0
    try:
        while sent < size:
            sent += line.send(data[offset + sent : offset + size], socket.MSG_NOSIGNAL)
    except OSError as error:
        return -(error.errno or errno.EIO)
    finally:
        line.close()
    return sent
