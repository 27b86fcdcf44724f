"""Interpreted stand-in for `hw.h`: the same accessors, with memoryviews as pointers.

Compiled modules call the inline C functions of `hw.h` through `hw.pxd`; where there is no compiler the same sources
run interpreted on these. A "pointer" is a writable byte `memoryview`; offsets and lengths are bytes. Loads and stores
are single interpreter operations; ordering between threads comes from the interpreter lock. The `fence` is therefore
not a store-load fence towards another *process*: an interpreted end re-checks by polling where that matters.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import threading
import time
from struct import Struct
from typing import Protocol, TypeAlias


class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


Pointer: TypeAlias = memoryview

_U16 = Struct("=H")
_U32 = Struct("=I")
_U64 = Struct("=Q")
_ONE_AT_A_TIME = threading.Lock()
_LITTLE = sys.byteorder == "little"


def pointer(buffer: _Buffer) -> Pointer:
    """The address of a buffer; the caller keeps a memoryview of the same object while it uses it."""
    return memoryview(buffer).cast("B")


def pointer_to_read(buffer: _Buffer) -> Pointer:
    """The same of a buffer that may be read-only, to read from."""
    return memoryview(buffer).cast("B")


def at(base: Pointer, offset: int) -> Pointer:
    """The address `offset` bytes after `base`."""
    return base[offset:]


def address_of(base: Pointer, offset: int) -> int:
    """The same as a number, for tables of {u64 host address, u64 length}; whoever has it keeps the memory there."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(base)) + offset


def preadv(fd: int, table: Pointer, count: int, position: int) -> int:
    """Read into the memory that `count` (at most 1024) entries {u64 host address, u64 length} name.

    Returns the bytes read, which may be fewer, or the negative errno.
    """
    try:
        return os.preadv(fd, _memory_of(table, count), position)
    except OSError as error:
        return -(error.errno or errno.EIO)


def pwritev(fd: int, table: Pointer, count: int, position: int) -> int:
    """Write from the memory that such entries name; returns as `preadv`."""
    try:
        return os.pwritev(fd, _memory_of(table, count), position)
    except OSError as error:
        return -(error.errno or errno.EIO)


def preadv_at_once(fd: int, table: Pointer, count: int, position: int) -> int:
    """As `preadv`, but only what can be done without waiting for a medium (-EAGAIN, -EOPNOTSUPP otherwise)."""
    try:
        return os.preadv(fd, _memory_of(table, count), position, os.RWF_NOWAIT)
    except OSError as error:
        return -(error.errno or errno.EIO)


def pwritev_at_once(fd: int, table: Pointer, count: int, position: int) -> int:
    """As `pwritev`, but only what can be done without waiting: nothing, as Python has no such call."""
    return -errno.EOPNOTSUPP


_HUGETLBFS = 0x958458F6
_FILE_SYSTEMS_IN_MEMORY = (0x01021994, 0x858458F6, _HUGETLBFS)  # tmpfs, ramfs


def is_in_memory(fd: int) -> int:
    """Whether a file's bytes are in memory and nowhere else: then no access to it waits for a medium."""
    return int(_file_system(fd) in _FILE_SYSTEMS_IN_MEMORY)


def is_in_huge_pages(fd: int) -> int:
    """Whether these are in huge pages (hugetlbfs)."""
    return int(_file_system(fd) == _HUGETLBFS)


def _file_system(fd: int) -> int:
    status = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, status):
        return 0
    return int(struct.unpack_from("@L", status)[0] & 0xFFFF_FFFF)


def bytes_at(address: int, length: int) -> bytes:
    """Bytes at an address of this process, as an object."""
    return ctypes.string_at(address, length)


def put8(address: int, value: int) -> None:
    """One byte at an address of this process."""
    ctypes.c_ubyte.from_address(address).value = value & 0xFF


def file_end(fd: int) -> int:
    """Bytes of a file or block device, or the negative errno."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        return -(error.errno or errno.EIO)


def next_data(fd: int, position: int) -> int:
    """Where in a file there are data from a position on, or the negative errno."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        return -(error.errno or errno.EIO)


def fill(base: Pointer, offset: int, length: int, value: int) -> None:
    """Set every byte of a range."""
    base[offset : offset + length] = bytes([value]) * length


def all_set(base: Pointer, offset: int, length: int) -> int:
    """Whether no byte of a range is 0."""
    return int(all(base[offset : offset + length]))


def holds_data(address: int, length: int) -> int:
    """Whether any byte at an address of this process is not 0."""
    return int(any(ctypes.string_at(address, length)))


def _memory_of(table: Pointer, count: int) -> list[ctypes.Array[ctypes.c_ubyte]]:
    entries = struct.iter_unpack("=QQ", table[: 16 * count])
    return [(ctypes.c_ubyte * length).from_address(address) for address, length in entries]


def ld8(base: Pointer, offset: int) -> int:
    """Load one byte."""
    return base[offset]


def ld16(base: Pointer, offset: int) -> int:
    """Load 16 bits in host order."""
    value: int = _U16.unpack_from(base, offset)[0]
    return value


def ld32(base: Pointer, offset: int) -> int:
    """Load 32 bits in host order."""
    value: int = _U32.unpack_from(base, offset)[0]
    return value


def ld64(base: Pointer, offset: int) -> int:
    """Load 64 bits in host order."""
    value: int = _U64.unpack_from(base, offset)[0]
    return value


def st8(base: Pointer, offset: int, value: int) -> None:
    """Store one byte."""
    base[offset] = value & 0xFF


def st16(base: Pointer, offset: int, value: int) -> None:
    """Store 16 bits in host order."""
    _U16.pack_into(base, offset, value & 0xFFFF)


def st32(base: Pointer, offset: int, value: int) -> None:
    """Store 32 bits in host order."""
    _U32.pack_into(base, offset, value & 0xFFFF_FFFF)


def st64(base: Pointer, offset: int, value: int) -> None:
    """Store 64 bits in host order."""
    _U64.pack_into(base, offset, value & 0xFFFF_FFFF_FFFF_FFFF)


def or8(base: Pointer, offset: int, bits: int) -> None:
    """Set bits of one byte; another process that changes it at the same moment may lose to an interpreted end."""
    base[offset] |= bits & 0xFF


ld8_acquire = ld8
ld16_acquire = ld16
ld64_acquire = ld64
st8_release = st8
st16_release = st16
st64_release = st64
get16 = ld16
get32 = ld32
get64 = ld64


def fence() -> None:
    """Order all earlier loads and stores before all later ones (see the module's text)."""


def fence_loads() -> None:
    """Loads before this are done before those after it; so they are under the interpreter lock."""


def copy(to: Pointer, to_offset: int, source: Pointer, from_offset: int, length: int) -> None:
    """Copy bytes; the areas may overlap."""
    to[to_offset : to_offset + length] = source[from_offset : from_offset + length]


def word_at(address: int) -> int:
    """Eight bytes at an address of this process, in one piece."""
    return ctypes.c_uint64.from_address(address).value


def fetch(to: Pointer, to_offset: int, address: int, length: int) -> None:
    """Copy from memory that is named by its address."""
    to[to_offset : to_offset + length] = ctypes.string_at(address, length)


def store(address: int, source: Pointer, from_offset: int, length: int) -> None:
    """Copy to memory that is named by its address."""
    ctypes.memmove(address, bytes(source[from_offset : from_offset + length]), length)


def transfer(to: int, source: int, length: int) -> None:
    """Copy between two places that are both named by their address, and may overlap."""
    ctypes.memmove(to, source, length)


def zero(base: Pointer, offset: int, length: int) -> None:
    """Fill with zero bytes."""
    base[offset : offset + length] = bytes(length)


def event_signal(fd: int) -> int:
    """Wake whoever sleeps on an eventfd; 0 or the negative errno. A counter that is full wakes as well."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return 0
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 0


def event_take(fd: int) -> int:
    """Take what was signalled on a non-blocking eventfd: 1, 0 when there was nothing, or the negative errno."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return 0
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 1


def wait_readable(fd: int, milliseconds: int) -> int:
    """Sleep until a descriptor can be read, at most so long: 1, 0 when the time is up, or the negative errno."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    try:
        return len(poller.poll(milliseconds))
    except OSError as error:
        return -(error.errno or errno.EIO)


def wait_any(first: int, second: int, third: int, milliseconds: int) -> int:
    """Sleep until one of three descriptors (-1: none) can be read, at most so many milliseconds (-1: for ever).

    A bit for each that can, 0 when the time is up, or the negative errno.
    """
    poller = select.poll()
    bits: dict[int, int] = {}
    for number, fd in enumerate((first, second, third)):
        if fd >= 0:
            bits[fd] = bits.get(fd, 0) | 1 << number
            poller.register(fd, select.POLLIN)
    try:
        return sum(bits[fd] for fd, _ in poller.poll(milliseconds))
    except OSError as error:
        return -(error.errno or errno.EIO)


def clock_ns() -> int:
    """Monotonic time in nanoseconds."""
    return time.monotonic_ns()


def relax() -> None:
    """In a loop that waits for another processor: interpreted, let another thread have the lock."""
    time.sleep(0)


def prefetch(base: Pointer, offset: int) -> None:
    """Bring a cache line near."""


def prefetch_at(address: int) -> None:
    """The same of two lines at an address of this process."""


def prefetch_to_write(address: int) -> None:
    """The same, for they will be written."""


def yield_cpu() -> None:
    """Let others run on this processor."""
    os.sched_yield()


def mutex_try(word: Pointer) -> int:
    """Take a lock in a word of 4 bytes (0: free) if it is free: whether it was."""
    with _ONE_AT_A_TIME:
        if ld32(word, 0):
            return 0
        st32(word, 0, 1)
    return 1


def mutex_wait(word: Pointer) -> int:
    """Take it after a wait: 0. Not for the hot path: interpreted, whoever waits looks now and then."""
    while not mutex_try(word):
        time.sleep(0.0002)
    return 0


def mutex_give(word: Pointer) -> None:
    """Give it back."""
    st32(word, 0, 0)


def low64(value: int) -> int:
    """The low 64 bits of an integer of any size and sign, as a register has them."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def check_signals() -> int:
    """Run the handlers of signals that came: the interpreter has done so."""
    return 0


def _swap16(value: int) -> int:
    return int.from_bytes((value & 0xFFFF).to_bytes(2, "little"), "big")


def _swap32(value: int) -> int:
    return int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")


def _swap64(value: int) -> int:
    return int.from_bytes((value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"), "big")


def _same(value: int) -> int:
    return value


le16 = _same if _LITTLE else _swap16
le32 = _same if _LITTLE else _swap32
le64 = _same if _LITTLE else _swap64
be16 = _swap16 if _LITTLE else _same
be32 = _swap32 if _LITTLE else _same
be64 = _swap64 if _LITTLE else _same
