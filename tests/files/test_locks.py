"""Byte-range locks: against a plain model of POSIX's rules, and against other processes of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.files.locks import _FLOCK as FLOCK
from powervio.files.locks import _HOST_KINDS as HOST_KINDS
from powervio.files.locks import END, FILE_LIMIT, READ, UNLOCK, WRITE, LockOwner, LockTable

KEY = (1, 2)
ONE, TWO, THREE = (LockOwner("client", number) for number in (1, 2, 3))
OTHER = LockOwner("other client", 1)
BYTES = 20
"""More than the starts and lengths reach, so that the last one stands for all behind it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(bytes(100))
    return tmp_path / "f"


@pytest.fixture
def table() -> Iterator[LockTable]:
    locks = LockTable()
    yield locks
    locks.close()


def opener(path: Path, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def seen_by_host(path: Path) -> list[int]:
    """For each byte, what kind of lock another open file meets; -1 is none."""
    fd = opener(path)
    try:
        kinds: list[int] = []
        for at in range(BYTES):
            told = []
            for kind in (READ, WRITE):
                asked = FLOCK.pack(HOST_KINDS[kind], os.SEEK_SET, at, 1, 0)
                told.append(FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
            kinds.append(WRITE if told[0] else READ if told[1] else -1)
        return kinds
    finally:
        os.close(fd)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([READ, WRITE, UNLOCK]),
        st.integers(0, 11),
        st.integers(0, 6),
        st.sampled_from([ONE, TWO, THREE, OTHER]),
    ),
    max_size=25,
)


@given(steps=STEPS)
def test_locks_are_those_of_a_plain_model(steps: list[tuple[int, int, int, LockOwner]]) -> None:
    held: list[dict[LockOwner, int]] = [{} for _ in range(BYTES)]
    table = LockTable()
    with open_file() as path:
        try:
            for kind, start, length, owner in steps:
                bytes_ = range(start, min(BYTES, start + length) if length else BYTES)
                granted = kind == UNLOCK or not any(
                    other != owner and WRITE in (kind, has) for at in bytes_ for other, has in held[at].items()
                )
                other = table.conflict(KEY, -1, kind, start, length, owner) if kind != UNLOCK and any(held) else None
                assert (other is None) is granted or not any(held)
                assert table.lock(KEY, lambda: opener(path), kind, start, length, owner) is granted
                if granted:
                    for at in bytes_:
                        held[at].pop(owner, None)
                        if kind != UNLOCK:
                            held[at][owner] = kind
            assert seen_by_host(path) == [max(byte.values(), default=-1) for byte in held]
            table.release("client")
            for byte in held:
                for owner in (ONE, TWO, THREE):
                    byte.pop(owner, None)
            assert seen_by_host(path) == [max(byte.values(), default=-1) for byte in held]
        finally:
            table.close()
        assert table.count == 0
        assert seen_by_host(path) == [-1] * BYTES


class open_file:  # used like a function
    """A file in memory, by the path of its descriptor."""

    def __enter__(self) -> Path:
        self._fd = os.memfd_create("locks", os.MFD_CLOEXEC)
        return Path(f"/proc/self/fd/{self._fd}")

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def test_process_of_the_host_is_seen_and_sees(table: LockTable, path: Path) -> None:
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 50)\n"
        "except OSError as error:\n"
        "    print(error.errno, flush=True)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "locked\n"
        assert not table.lock(KEY, lambda: opener(path), READ, 0, 6, ONE)
        assert table.count == 0
        assert table.lock(KEY, lambda: opener(path), READ, 0, 5, ONE)
        fd = opener(path)
        met = table.conflict(KEY, fd, READ, 0, 0, TWO)
        os.close(fd)
        assert met is not None
        assert (met.kind, met.start, met.length, met.owner, met.process) == (WRITE, 5, 10, None, other.pid)
        # what is refused leaves what was there before
        assert not table.lock(KEY, lambda: opener(path), WRITE, 0, 6, ONE)
        assert seen_by_host(path)[:6] == [READ] * 5 + [WRITE]
        assert table.lock(KEY, lambda: opener(path), WRITE, 50, 1, ONE)
        other.stdin.write("\n")
        other.stdin.flush()
        assert int(other.stdout.readline()) in (errno.EAGAIN, errno.EACCES)
    finally:
        other.kill()
        other.wait(10)
        other.stdin.close()
        other.stdout.close()
    assert table.lock(KEY, lambda: opener(path), READ, 0, 6, ONE)


def test_conflict_names_the_owner(table: LockTable, path: Path) -> None:
    assert table.lock(KEY, lambda: opener(path), WRITE, 10, 0, OTHER)
    met = table.conflict(KEY, -1, READ, 0, 0, ONE)
    assert met is not None
    assert (met.kind, met.start, met.length, met.owner) == (WRITE, 10, 0, OTHER)
    assert table.conflict(KEY, -1, READ, 0, 0, OTHER) is None


def test_who_waits_is_told_once_of_what_is_released(table: LockTable, path: Path) -> None:
    assert table.lock(KEY, lambda: opener(path), WRITE, 0, 0, ONE)
    told: list[str] = []
    table.when_released(KEY, lambda: told.append("first"))
    withdraw = table.when_released(KEY, lambda: told.append("second"))
    withdraw()
    withdraw()
    assert not table.lock(KEY, lambda: opener(path), READ, 0, 1, TWO)
    assert told == []
    table.lock(KEY, lambda: opener(path), READ, 0, 0, ONE)  # less than it was
    assert told == ["first"]
    table.release("client", 1)
    assert told == ["first"]
    table.when_released(KEY, lambda: told.append("at once"))  # nothing is locked
    assert told == ["first", "at once"]


@pytest.mark.parametrize(
    ("start", "length", "code"),
    [(-1, 1, errno.EINVAL), (0, -1, errno.EINVAL), (END, 2, errno.EOVERFLOW), (END + 1, 1, errno.EOVERFLOW)],
)
def test_ranges_that_are_none(table: LockTable, path: Path, start: int, length: int, code: int) -> None:
    with pytest.raises(OSError, check=lambda error: error.errno == code):
        table.lock(KEY, lambda: opener(path), READ, start, length, ONE)


def test_threads_do_not_both_get_what_one_of_them_asked_for_first(table: LockTable, path: Path) -> None:
    granted: list[bool] = []
    opened = threading.Event()

    def open_second() -> int:
        opened.set()
        return opener(path)

    def second() -> None:
        granted.append(table.lock(KEY, open_second, WRITE, 0, 0, TWO))

    other = threading.Thread(target=second)

    def open_slowly() -> int:
        other.start()
        opened.wait(0.2)
        return opener(path)

    assert table.lock(KEY, open_slowly, WRITE, 0, 0, ONE)
    other.join(10)
    assert granted == [False]
    assert not opened.is_set()
    assert table.count == 1


def test_several_clients_go_at_once(table: LockTable, path: Path) -> None:
    told: list[str] = []
    for at, owner in enumerate((ONE, TWO, OTHER)):
        assert table.lock(KEY, lambda: opener(path), WRITE, at, 1, owner)
    table.when_released(KEY, lambda: told.append("told"))
    assert table.holds(KEY, OTHER)
    assert not table.holds((3, 4), OTHER)
    table.release_all({"nobody"})
    assert (table.count, told) == (3, [])
    table.release_all({"client", "nobody"})
    assert (table.count, told) == (1, ["told"])
    assert not table.holds(KEY, ONE)
    table.release_all({"other client"})
    assert table.count == 0


def test_last_byte_of_all(table: LockTable, path: Path) -> None:
    assert table.lock(KEY, lambda: opener(path), WRITE, END, 1, ONE)
    assert not table.lock(KEY, lambda: opener(path), READ, 5, 0, TWO)
    assert table.lock(KEY, lambda: opener(path), READ, 5, END - 5, TWO)


def test_there_are_limits(path: Path) -> None:
    table = LockTable()
    for number in range(FILE_LIMIT):
        assert table.lock(KEY, lambda: opener(path), READ, 2 * number, 1, ONE)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOLCK):
        table.lock(KEY, lambda: opener(path), READ, 2 * FILE_LIMIT, 1, ONE)
    assert table.lock(KEY, lambda: opener(path), UNLOCK, 0, 0, ONE)
    assert table.count == 0
    small = LockTable(limit=1)
    assert small.lock(KEY, lambda: opener(path), READ, 0, 1, ONE)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOLCK):
        small.lock((3, 4), lambda: opener(path), READ, 0, 1, ONE)
    small.close()
