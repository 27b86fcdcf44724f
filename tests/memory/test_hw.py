"""The interpreted accessors that take host addresses; compiled modules meet them in the tests of their users."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from powervio.memory import hw


def table_of(*runs: tuple[memoryview, int, int]) -> memoryview:
    table = hw.pointer(bytearray(16 * len(runs)))
    for number, (memory, offset, length) in enumerate(runs):
        hw.st64(table, 16 * number, hw.address_of(memory, offset))
        hw.st64(table, 16 * number + 8, length)
    return table


def test_preadv_and_pwritev_move_between_a_file_and_the_runs_of_a_table(tmp_path: Path) -> None:
    first, second = hw.pointer(bytearray(b"....")), hw.pointer(bytearray(8))
    table = table_of((first, 1, 2), (second, 3, 4))
    path = tmp_path / "file"
    path.write_bytes(b"_abcdef_")
    with path.open("r+b") as file:
        assert hw.preadv(file.fileno(), table, 2, 1) == 6
        assert bytes(first) == b".ab."
        assert bytes(second) == b"\0\0\0cdef\0"
        assert hw.preadv(file.fileno(), table, 2, 5) == 3
        assert hw.pwritev(file.fileno(), hw.at(table, 16), 1, 0) == 4
    assert path.read_bytes() == b"_defdef_"


def test_what_the_kernel_refuses_is_a_negative_errno() -> None:
    table = table_of((hw.pointer(bytearray(8)), 0, 8))
    reader, writer = os.pipe()
    try:
        assert hw.preadv(reader, table, 1, 0) == -errno.ESPIPE
        assert hw.pwritev(reader, table, 1, 0) in (-errno.ESPIPE, -errno.EBADF)
    finally:
        os.close(reader)
        os.close(writer)


def test_event_is_signalled_waited_for_and_taken_once() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assert hw.wait_readable(fd, 0) == 0
        assert hw.event_take(fd) == 0
        assert hw.event_signal(fd) == hw.event_signal(fd) == 0
        assert hw.wait_readable(fd, 10_000) == 1
        assert [hw.event_take(fd), hw.event_take(fd)] == [1, 0]
        os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
        assert hw.event_signal(fd) == 0, "a full counter is a signal"
    finally:
        os.close(fd)
    assert hw.event_signal(fd) == hw.event_take(fd) == -errno.EBADF
