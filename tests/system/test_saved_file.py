"""The file of a saved partition: what is written is read, and what is damaged is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.memory.area import MappedArea
from powervio.phyp.saved import PartitionState, SavedAdapter, SavedQueue
from powervio.system.saved_file import Manifest, SavedDevice, SavedFile, SavedImage, check_free, partial_path, write

MIB = 1 << 20
SIZE = 8 * MIB


def manifest(size: int = SIZE) -> Manifest:
    adapter = SavedAdapter(2, 0x1000, 17, 0x1000_0000, 1 << 20, True, SavedQueue(4096, 4096, 16), {1: (1 << 63) | 3})
    return Manifest(
        powervio="1",
        system="s",
        saved_at="2026-01-02T03:04:05+00:00",
        lpar={"name": "c", "memory": size, "disk": [{"image": "/x", "size": None}]},
        partition=PartitionState("c", 2, size, 255, [0x1000], [], True, [adapter]),
        devices=[SavedDevice(2, "disk", {"writeback": True}, {}, SavedImage("/x", 512, 1 << 60))],
    )


@contextmanager
def memory(size: int = SIZE) -> Iterator[MappedArea]:
    area = MappedArea.create("test", size)
    yield area
    area.close()


@given(st.dictionaries(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=300), max_size=20))
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, marks: dict[int, bytes]) -> None:
    path = tmp_path_factory.mktemp("saved") / "x"
    with memory() as one, memory() as other:
        for position, data in marks.items():
            data = data[: SIZE - position]
            one.view[position : position + len(data)] = data
        written = write(path, manifest(), one.fd)
        assert path.stat().st_size == written
        with SavedFile(path) as file:
            assert file.manifest == manifest()
            file.read_memory(other.view)
        assert other.view == one.view


def test_memory_that_was_never_used_takes_no_room(tmp_path: Path) -> None:
    with memory(1 << 40) as area:
        area.view[1 << 39] = 1
        assert write(tmp_path / "x", manifest(1 << 40), area.fd) < MIB + 1000
        assert os.stat(area.fd).st_blocks * 512 <= 2 * MIB  # reading it has not made it used


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "x"
    with memory() as area:
        area.view[5 * MIB : 5 * MIB + 100] = bytes(range(100))
        write(path, manifest(), area.fd)
    return path.read_bytes()


def read(path: Path) -> bytes:
    with memory() as area:
        with SavedFile(path) as file:
            file.read_memory(area.view)
        return bytes(area.view[5 * MIB : 5 * MIB + 100])


def test_begins_with_its_magic_and_version(small: bytes) -> None:
    assert small[:20] == b"powervio saved\0\n\0\0\0\x01"


def test_file_that_is_cut_off_anywhere_is_told(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for length in [*range(0, 400), *range(400, len(small), 97)]:
        path.write_bytes(small[:length])
        with pytest.raises(LocalError, match=r"it ends in the middle|is not a saved partition"):
            read(path)


def test_any_flipped_bit_is_told(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    data = bytearray(small)
    for position in [*range(0, 600), *range(600, len(small) - 40, 1009), *range(len(small) - 40, len(small) - 4)]:
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(LocalError, match=r"is damaged: |is not a saved partition|of version"):
            read(path)
        data[position] = small[position]
    path.write_bytes(data)
    assert read(path) == bytes(range(100))


@given(st.binary(max_size=200))
def test_any_bytes_are_told(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    for start in (b"", b"powervio saved\0\n", b"powervio saved\0\n\0\0\0\x01"):
        path.write_bytes(start + data)
        with pytest.raises(LocalError):
            read(path)


def test_who_is_in_the_way_stays(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("precious")
    with memory() as area, pytest.raises(LocalError, match="there exists already"):
        write(there, manifest(), area.fd)
    assert there.read_text() == "precious"
    dangling = tmp_path / "dangling"
    dangling.symlink_to("/nowhere")
    with pytest.raises(LocalError, match="dangling exists already"):
        check_free(dangling)


def test_what_an_attempt_that_was_killed_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    partial_path(path).write_bytes(b"half")
    with memory() as area:
        write(path, manifest(), area.fd)
    assert not partial_path(path).exists()
    with SavedFile(path) as file:
        assert file.manifest == manifest()


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises(LocalError, match="no regular file"):
            SavedFile(path)


def test_folder_that_cannot_be_synced_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever saves goes on with the partition then: there must not be a second one to go on from."""

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("powervio.system.saved_file._sync_folder", fail)
    with memory() as area, pytest.raises(LocalError, match="cannot be written"):
        write(tmp_path / "x", manifest(), area.fd)
    assert list(tmp_path.iterdir()) == []
