"""Requests that are served together: how many calls that takes, and that one of them cannot hurt the others."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.transport.test_crq_hostile_client import DATA, NOT_MAPPED, RINGS, WRITE, Client

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.storage.image import Image, open_image
from powervio.virtio import block as blk

pytestmark = pytest.mark.dual

BLOCK = 4096
COUNT = 16
HEADERS, STATUSES, PAGES = DATA, DATA + 0x4000, DATA + 0x10000
SECTORS = BLOCK // 512

Connected = Callable[..., "Rig"]


class Rig:
    """A client that lays out requests as it likes, on an image whose blocks differ."""

    def __init__(self, image: Image, *, redirect: bool, options: BlockOptions | None = None) -> None:
        self.device = BlockDevice(image, options)
        self.client = Client(self.device, redirect=redirect)
        self.client.negotiate(size=64)
        self.image = image

    def header(self, number: int, kind: int, block: int, at: int = HEADERS) -> int:
        place = at + 16 * number
        self.client.view[place : place + 16] = struct.pack("<IIQ", kind, 0, block * SECTORS)
        return place

    def read(self, number: int, block: int, *, page: int | None = None, status: int | None = None) -> None:
        """Make a read available; by default each has a page of its own, and a status byte behind the one before."""
        place = PAGES + BLOCK * (number if page is None else page)
        status = STATUSES + number if status is None else status
        header = self.header(number, blk.T_IN, block)
        self.client.put((header, 16, 0), (place, BLOCK, WRITE), (status, 1, WRITE), head=3 * number)

    def write(self, number: int, block: int, data: bytes) -> None:
        place = PAGES + BLOCK * number
        self.client.view[place : place + len(data)] = data
        header = self.header(number, blk.T_OUT, block)
        self.client.put((header, 16, 0), (place, len(data), 0), (STATUSES + number, 1, WRITE), head=3 * number)

    def kick(self) -> dict[str, int]:
        """Serve what is available; the server's calls that took."""
        self.client.view[STATUSES : STATUSES + 64] = b"\xff" * 64
        ledger = self.client.pair.server_adapter.ledger
        before = ledger.snapshot()
        self.client.kick()
        calls: dict[str, int] = (ledger.snapshot() - before)["hcalls"]
        return {name: count for name, count in calls.items() if count}

    def page(self, number: int) -> bytes:
        place = PAGES + BLOCK * number
        return bytes(self.client.view[place : place + BLOCK])

    def statuses(self, count: int = COUNT) -> list[int]:
        return list(self.client.view[STATUSES : STATUSES + count])


def numbered(block: int) -> bytes:
    return block.to_bytes(8, "little") * (BLOCK // 8)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(numbered(block) for block in range(256)))
    with open_image(path) as opened:
        yield opened


@pytest.fixture
def connect(image: Image) -> Iterator[Connected]:
    made: list[Rig] = []

    def make(*, redirect: bool = True, options: BlockOptions | None = None) -> Rig:
        made.append(Rig(image, redirect=redirect, options=options))
        return made[-1]

    yield make
    for rig in made:
        rig.client.pair.close()


def test_reads_of_a_batch_share_every_call_but_the_copies_of_their_data(connect: Connected) -> None:
    rig = connect(redirect=False)
    for number in range(COUNT):
        rig.read(number, 3 * number)
    calls = rig.kick()
    assert [rig.page(number) for number in range(COUNT)] == [numbered(3 * number) for number in range(COUNT)]
    assert rig.statuses() == [0] * COUNT
    # the ring, the headers, data, used elements and index; 16 statuses go in registers
    assert calls == {"H_COPY_RDMA": 1 + 1 + COUNT + 2, "H_WRITE_RDMA": 1, "H_SEND_CRQ": 1, "H_XIRR": 1, "H_EOI": 1}
    assert (rig.device.counters.reads, rig.device.counters.bytes_read) == (COUNT, COUNT * BLOCK)


def test_redirected_data_of_a_batch_are_two_calls(connect: Connected) -> None:
    rig = connect()
    for number in range(COUNT):
        rig.read(number, 255 - number)
    calls = rig.kick()
    assert [rig.page(number) for number in range(COUNT)] == [numbered(255 - number) for number in range(COUNT)]
    assert (calls["H_PUT_RTCE"], calls["H_REMOVE_RTCE"], calls["H_COPY_RDMA"]) == (1, 1, 4)


def test_pages_that_do_not_follow_one_another_are_redirected_by_a_list(connect: Connected) -> None:
    rig = connect()
    for number in range(COUNT):
        rig.read(number, number, page=5 * number % 32)
    calls = rig.kick()
    assert [rig.page(5 * number % 32) for number in range(COUNT)] == [numbered(number) for number in range(COUNT)]
    assert (calls["H_PUT_RTCE_INDIRECT"], calls["H_REMOVE_RTCE"]) == (1, 1)


def test_page_that_two_requests_share_is_redirected_once_and_copied_once(connect: Connected) -> None:
    rig = connect()
    for number in range(COUNT):
        rig.write(number, 100 + number, bytes([number]) * 512)
        if number % 2:  # the second half of the page of the one before
            place = PAGES + BLOCK * (number - 1) + 2048
            rig.client.view[place : place + 512] = bytes([number]) * 512
            rig.client._available[0] -= 1
            header = rig.header(number, blk.T_OUT, 100 + number)
            rig.client.put((header, 16, 0), (place, 512, 0), (STATUSES + number, 1, WRITE), head=3 * number)
    calls = rig.kick()
    assert rig.statuses() == [0] * COUNT
    back = bytearray(512)
    for number in range(COUNT):
        rig.image.read_into((100 + number) * BLOCK, memoryview(back))
        assert bytes(back) == bytes([number]) * 512
    assert calls["H_COPY_RDMA"] == 4 + COUNT // 2


def test_request_whose_data_cannot_be_reached_fails_alone(connect: Connected) -> None:
    for redirect in (False, True):
        rig = connect(redirect=redirect)
        rig.client.unmap(PAGES + 4 * BLOCK)
        for number in range(COUNT):
            rig.read(number, number)
        rig.kick()
        assert rig.statuses() == [blk.S_IOERR if number == 4 else 0 for number in range(COUNT)]
        assert [rig.page(number) for number in range(COUNT) if number != 4] == [
            numbered(number) for number in range(COUNT) if number != 4
        ]
        assert rig.device.counters.errors == {"memory": 1}
        assert rig.client.used() == COUNT


def test_request_that_the_image_refuses_fails_alone(connect: Connected, image: Image) -> None:
    os.truncate(image.path, 255 * BLOCK)  # its last block is lost
    for redirect in (False, True):
        rig = connect(redirect=redirect)
        for number in range(COUNT):
            rig.read(number, 255 if number == 4 else number)
        rig.kick()
        assert rig.statuses() == [blk.S_IOERR if number == 4 else 0 for number in range(COUNT)]
        assert [rig.page(number) for number in range(COUNT) if number != 4] == [
            numbered(number) for number in range(COUNT) if number != 4
        ]
        assert rig.device.counters.errors == {"backing": 1}
        assert rig.device.counters.bytes_read == (COUNT - 1) * BLOCK


def test_redirected_write_does_not_cover_up_what_an_image_lost(connect: Connected, image: Image) -> None:
    os.truncate(image.path, 255 * BLOCK)
    rig = connect()
    for number in range(COUNT):
        rig.write(number, number, bytes(BLOCK))
    rig.kick()
    assert rig.statuses() == [blk.S_IOERR] * COUNT
    assert rig.device.counters.errors == {"backing": COUNT}


def test_header_that_is_not_mapped_fails_its_request_alone(connect: Connected) -> None:
    rig = connect()
    rig.client.unmap(HEADERS + 0x1000)
    for number in range(COUNT):
        place = PAGES + BLOCK * number
        header = rig.header(number, blk.T_IN, number, HEADERS + (0x1000 if number == 4 else 0))
        rig.client.put((header, 16, 0), (place, BLOCK, WRITE), (STATUSES + number, 1, WRITE), head=3 * number)
    rig.kick()
    assert rig.statuses() == [blk.S_IOERR if number == 4 else 0 for number in range(COUNT)]


def test_status_that_cannot_be_written_is_that_requests_loss(connect: Connected) -> None:
    rig = connect()
    for number in range(COUNT):
        rig.read(number, number, status=NOT_MAPPED if number == 4 else None)
    rig.kick()
    assert rig.statuses() == [0xFF if number == 4 else 0 for number in range(COUNT)]
    assert rig.device.counters.errors == {"no status": 1}
    assert rig.client.used() == COUNT


class Noting(Image):
    """An image that notes what is done to it."""

    done: list[str]

    def write_from(self, position: int, buffer: memoryview) -> None:
        self.done.append(f"write {position // BLOCK}")
        super().write_from(position, buffer)

    def flush(self) -> None:
        self.done.append("flush")
        super().flush()


@pytest.mark.parametrize("redirect", [False, True], ids=["copied", "redirected"])
def test_flush_among_writes_follows_what_was_before_it(connect: Connected, image: Image, redirect: bool) -> None:
    image.__class__ = Noting
    done: list[str] = []
    image.done = done  # type: ignore[attr-defined]
    rig = connect(redirect=redirect)
    rig.write(0, 0, bytes(BLOCK))
    rig.write(1, 1, bytes(BLOCK))
    rig.client.put((rig.header(2, blk.T_FLUSH, 0), 16, 0), (STATUSES + 2, 1, WRITE), head=6)
    rig.write(3, 3, bytes(BLOCK))
    rig.kick()
    assert done == ["write 0", "write 1", "flush", "write 3"]
    assert rig.statuses(4) == [0] * 4


def test_writes_of_a_batch_without_a_cache_share_one_flush(connect: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[Image] = []
    monkeypatch.setattr(Image, "flush", lambda image: flushes.append(image))  # noqa: PLW0108 - a list.append is no method
    rig = connect(options=BlockOptions(writeback=False))
    for number in range(COUNT):
        rig.write(number, number, bytes([number + 1]) * BLOCK)
    rig.kick()
    assert rig.statuses() == [0] * COUNT
    assert len(flushes) == 1


def test_flush_that_fails_fails_every_write_that_it_was_for(
    connect: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Image, "flush", fail)
    rig = connect(options=BlockOptions(writeback=False))
    for number in range(COUNT):
        if number % 2:
            rig.write(number, number, bytes(BLOCK))
        else:
            rig.read(number, number)
    rig.kick()
    assert rig.statuses() == [blk.S_IOERR if number % 2 else 0 for number in range(COUNT)]


def test_header_of_a_lone_request_comes_with_its_descriptors(connect: Connected) -> None:
    """And never from before it was available: the client changes it each time."""
    rig = connect(redirect=False)
    base = rig.client.entry(0)
    assert base.available == base.descriptors + 16 * 64
    for step in range(20):
        header = rig.header(0, blk.T_IN, step, at=RINGS + 0x1000)  # just behind the ring
        place = PAGES
        rig.client.put((header, 16, 0), (place, BLOCK, WRITE), (STATUSES, 1, WRITE), head=0)
        calls = rig.kick()
        assert rig.page(0) == numbered(step)
        if step:
            assert "H_READ_RDMA" not in calls


def test_more_pages_than_a_list_holds_are_redirected_in_two_groups(connect: Connected) -> None:
    rig = connect()
    pages = 40  # of each request: 12 of them fill a list of 512
    for number in range(COUNT):
        place = DATA + 0x80000 + number * pages * BLOCK
        header = rig.header(number, blk.T_IN, 2 * number)
        rig.client.put((header, 16, 0), (place, pages * BLOCK, WRITE), (STATUSES + number, 1, WRITE), head=3 * number)
    calls = rig.kick()
    assert rig.statuses() == [0] * COUNT
    for number in range(COUNT):
        place = DATA + 0x80000 + number * pages * BLOCK
        found = bytes(rig.client.view[place : place + pages * BLOCK])
        assert found == b"".join(numbered(2 * number + page) for page in range(pages))
    assert (calls["H_PUT_RTCE"], calls["H_REMOVE_RTCE"]) == (2, 2)
    assert rig.client.pair.client_adapter.ledger.snapshot()["redirected_pages"] == COUNT * pages


def test_request_that_names_a_page_twice_or_no_page_at_all_is_copied_or_fails_alone(connect: Connected) -> None:
    rig = connect()
    beyond = {5: (1 << 64) - BLOCK, 6: (1 << 64) - 100, 7: 1 << 62}
    for number in range(COUNT):
        header, status = rig.header(number, blk.T_IN, number), (STATUSES + number, 1, WRITE)
        place = PAGES + BLOCK * number
        data = [(place, BLOCK, WRITE)]
        if number == 4:
            data = [(place + 2048, 2048, WRITE), (place, 2048, WRITE)]
        if number in beyond:
            data = [(beyond[number] - rig.client.address(0), BLOCK, WRITE)]
        rig.client.put((header, 16, 0), *data, status, head=4 * number)
    calls = rig.kick()
    assert rig.statuses() == [blk.S_IOERR if number in beyond else 0 for number in range(COUNT)]
    halves = numbered(4)
    assert rig.page(4) == halves[2048:] + halves[:2048]
    assert rig.page(8) == numbered(8)
    assert rig.device.counters.errors == {"memory": 3}
    assert calls["H_PUT_RTCE_INDIRECT"] == calls["H_REMOVE_RTCE"] == 1


def test_header_in_pieces_and_data_in_many_are_served_with_the_others(connect: Connected) -> None:
    for redirect in (False, True):
        rig = connect(redirect=redirect)
        for number in range(8):
            header = rig.header(number, blk.T_IN, number)
            place = PAGES + BLOCK * number
            parts = [
                (place + 3 * piece * 512, 512, WRITE) for piece in range(2)
            ]  # of which neither continues the other
            chain = [(header, 7, 0), (HEADERS + 0x800 + 16 * number, 9, 0), *parts, (STATUSES + number, 1, WRITE)]
            rest = HEADERS + 0x800 + 16 * number
            rig.client.view[rest : rest + 9] = rig.client.view[header + 7 : header + 16]
            rig.client.view[header + 7 : header + 16] = b"\xee" * 9
            rig.client.put(*chain, head=8 * number)
        rig.kick()
        assert rig.statuses(8) == [0] * 8
        for number in range(8):
            page = rig.page(number)
            assert page[:512] + page[1536:2048] == numbered(number)[:1024]


def test_queue_full_of_requests_with_indirect_tables_is_served_in_one_pass(connect: Connected) -> None:
    """More segments than a table of requests has room for at first."""
    rig = connect()
    tables = DATA + 0x200000
    for number in range(64):
        table, header, place = tables + 1024 * number, rig.header(number, blk.T_IN, number), PAGES + BLOCK * number
        parts = [(header, 16, 1), *((place + 256 * piece, 128, 3) for piece in range(32)), (STATUSES + number, 1, 2)]
        for index, (at, length, flags) in enumerate(parts):
            entry = struct.pack("<QIHH", rig.client.address(at), length, flags, index + 1 if flags & 1 else 0)
            rig.client.view[table + 16 * index : table + 16 * index + 16] = entry
        rig.client.put((table, 16 * len(parts), 4), head=number)
    rig.kick()
    assert rig.statuses(64) == [0] * 64
    assert rig.device.counters.bytes_read == 64 * 4096
    for number in range(64):
        page = rig.page(number)
        assert b"".join(page[256 * piece : 256 * piece + 128] for piece in range(8)) == numbered(number)[:1024]
