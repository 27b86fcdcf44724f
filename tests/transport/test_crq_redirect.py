"""Payloads by redirected DMA: the same bytes as by copying, and copying whenever something stands in the way."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.errors import RemoteError
from powervio.memory.abstract import Backing
from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.ledger import Costs
from powervio.phyp.policy import Policy
from powervio.storage.image import Image, open_image
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.redirect import REDIRECT_MIN, Redirector
from powervio.virtio import block as blk
from powervio.virtio.queue import BufferSlice

PAGE = 4096
MIB = 1 << 20
LONGEST = 256 * 1024
"""Of one data segment, here; the device has a limit too (SIZE_MAX)."""

MakeDisk = Callable[..., "Disk"]


class Opaque(Image):
    """An image that is not to be given another partition's memory."""

    vectored = False


class Disk:
    """A disk over CRQ whose server redirects what has a page or more."""

    def __init__(self, image: Image, *, policy: Policy | None = None, redirect: bool = True, least: int = PAGE) -> None:
        self.image = image
        self.device = BlockDevice(image)
        self.driver = BlockDriver(buffers=8, buffer_size=PAGE)
        self.pair = PartitionPair(
            self.device,
            self.driver,
            redirect=redirect,
            redirect_min=least,
            hypervisor=Hypervisor(policy or Policy()),
            memory=32 << 20,
        ).start()
        self.tracked: list[int] = []

    def request(self, kind: int, position: int, slices: list[BufferSlice]) -> BlockRequest:
        """One request to its end; whether the engine still had pages of the client then is noted."""
        table = self.pair.client_adapter.table
        assert table is not None
        length = sum(length for _, _, length in slices)
        slices = [
            (buffer, offset + at, min(LONGEST, size - at))
            for buffer, offset, size in slices
            for at in range(0, size, LONGEST)
        ]
        request = BlockRequest(
            kind, position, length, tuple(slices), lambda done: self.tracked.append(table.copies.tracked)
        )
        self.driver.submit(request)
        self.driver.kick()
        self.pair.settle()
        return request

    def buffer(self, length: int, data: bytes = b"") -> BufferSlice:
        buffer = self.pair.client.allocate(length + 2 * PAGE, mapped=False)
        buffer.view[100 : 100 + len(data)] = data
        return buffer, 100, length

    @staticmethod
    def data(piece: BufferSlice) -> bytes:
        buffer, offset, length = piece
        return bytes(buffer.view[offset : offset + length])

    def costs(self) -> Costs:
        return self.pair.server_adapter.ledger.snapshot()

    @property
    def redirector(self) -> Redirector:
        found: Redirector | None = self.pair.server._service._redirector
        assert found is not None
        return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeDisk]:
    disks: list[Disk] = []

    def made(**options: object) -> Disk:
        image = open_image(tmp_path / f"{len(disks)}.img", create_size=16 * MIB)
        disks.append(Disk(image, **options))  # type: ignore[arg-type]
        return disks[-1]

    yield made
    for disk in disks:
        disk.pair.close()
        disk.image.close()


def calls(disk: Disk, before: Costs) -> dict[str, int]:
    spent = (disk.costs() - before)["hcalls"]
    return {name: count for name, count in spent.items() if "RTCE" in name or name == "H_COPY_RDMA"}


@pytest.mark.parametrize("length", [PAGE, PAGE + 512, 15 * 512, 64 * 1024, 256 * 1024, MIB, 3 * MIB + 512])
def test_bytes_are_the_same_there_and_back(make: MakeDisk, length: int) -> None:
    disk = make()
    data = os.urandom(length)
    assert disk.request(blk.T_OUT, 512, [disk.buffer(length, data)]).error is None
    back = memoryview(bytearray(length))
    disk.image.read_into(512, back)
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    target = disk.buffer(length)
    assert disk.request(blk.T_IN, 512, [target]).error is None
    assert disk.data(target) == data
    assert bytes(target[0].view[:100]) == bytes(100)
    assert bytes(target[0].view[100 + length : 100 + length + PAGE]) == bytes(PAGE)
    for adapter in (disk.pair.server_adapter, disk.pair.client_adapter):
        assert adapter.ledger.redirected_bytes == 2 * length
    assert disk.tracked == [0, 0]


def test_large_request_is_one_put_one_operation_one_remove(make: MakeDisk) -> None:
    disk = make()
    target = disk.buffer(64 * 1024)
    before = disk.costs()
    assert disk.request(blk.T_IN, 0, [target]).error is None
    assert calls(disk, before) == {"H_PUT_RTCE": 1, "H_REMOVE_RTCE": 1, "H_COPY_RDMA": 3}


def test_scattered_request_is_one_indirect_call(make: MakeDisk) -> None:
    disk = make()
    data = os.urandom(5 * PAGE)
    pieces = [disk.buffer(PAGE, data[at : at + PAGE]) for at in range(0, 5 * PAGE, PAGE)]
    pieces.reverse()
    hole = disk.pair.client.allocate(PAGE, mapped=True)  # so that I/O addresses are not in a row
    before = disk.costs()
    assert disk.request(blk.T_OUT, 0, pieces).error is None
    assert disk.request(blk.T_IN, 0, pieces).error is None
    assert calls(disk, before)["H_REMOVE_RTCE"] == 2
    spent = calls(disk, before)
    assert spent.get("H_PUT_RTCE", 0) + spent.get("H_PUT_RTCE_INDIRECT", 0) == 2
    assert b"".join(disk.data(piece) for piece in reversed(pieces)) == data
    disk.pair.client.release(hole)


def test_pieces_in_any_order_come_by_a_list(make: MakeDisk) -> None:
    """What the driver's own mapping seldom makes: pages of the window backwards, with partial ones at both ends."""
    disk = make()
    memory, base = mapped(disk, 6)
    content = os.urandom(3 * PAGE)
    disk.image.write_from(0, memoryview(content))
    pieces = [(base + 4 * PAGE + 5, 100), (base + 2 * PAGE, PAGE), (base + 3 * PAGE, 50), (base + PAGE - 10, 20)]
    before = disk.costs()
    assert disk.redirector.move(pieces, disk.image, 7, to_memory=True)
    assert calls(disk, before) == {"H_PUT_RTCE_INDIRECT": 1, "H_REMOVE_RTCE": 1}
    position = 7
    for address, length in pieces:
        start = address - base
        assert bytes(memory[start : start + length]) == content[position : position + length]
        position += length
    assert memory[4 * PAGE + 4] == memory[4 * PAGE + 105] == memory[PAGE - 11] == 0


def mapped(disk: Disk, pages: int) -> tuple[memoryview, int]:
    """Memory of the client that stays mapped, and its I/O address."""
    buffer = disk.pair.client.allocate(pages * PAGE, mapped=True)
    assert buffer.device_address is not None
    return buffer.view, buffer.device_address


# falling back


@pytest.mark.parametrize("least", [PAGE, REDIRECT_MIN])
def test_small_transfer_is_copied(make: MakeDisk, least: int) -> None:
    disk = make(least=least)
    before = disk.costs()
    assert disk.request(blk.T_IN, 0, [disk.buffer(least - 512)]).error is None
    assert calls(disk, before) == {"H_COPY_RDMA": 4}


def test_without_a_physical_adapter_all_is_copied(make: MakeDisk) -> None:
    disk = make(redirect=False)
    before = disk.costs()
    assert disk.request(blk.T_IN, 0, [disk.buffer(64 * 1024)]).error is None
    assert calls(disk, before) == {"H_COPY_RDMA": 4}


def test_backing_that_is_no_plain_file_is_copied(make: MakeDisk) -> None:
    disk = make()
    disk.image.__class__ = Opaque
    before = disk.costs()
    assert disk.request(blk.T_IN, 0, [disk.buffer(64 * 1024)]).error is None
    assert calls(disk, before) == {"H_COPY_RDMA": 4}


def test_no_mapping_left_is_copied(make: MakeDisk) -> None:
    """H_RESOURCE on the first page."""
    disk = make(policy=Policy(max_redirected_mappings=0))
    data = os.urandom(64 * 1024)
    before = disk.costs()
    assert disk.request(blk.T_OUT, 0, [disk.buffer(len(data), data)]).error is None
    target = disk.buffer(len(data))
    assert disk.request(blk.T_IN, 0, [target]).error is None
    assert disk.data(target) == data
    spent = calls(disk, before)
    assert (spent["H_PUT_RTCE"], spent.get("H_REMOVE_RTCE", 0)) == (2, 0)
    assert disk.redirector.copied == 2


def test_page_named_twice_is_taken_out_again_and_copied(make: MakeDisk) -> None:
    disk = make()
    _, base = mapped(disk, 3)
    pieces = [(base + PAGE, 100), (base + 2 * PAGE, 100), (base + PAGE + 200, 100)]
    before = disk.costs()
    assert not disk.redirector.move(pieces, disk.image, 0, to_memory=True)
    assert calls(disk, before) == {"H_PUT_RTCE_INDIRECT": 1, "H_REMOVE_RTCE": 1}
    table = disk.pair.client_adapter.table
    assert table is not None
    assert table.copies.tracked == 0


def test_neighbours_within_a_page_are_one_piece(make: MakeDisk) -> None:
    disk = make()
    memory, base = mapped(disk, 3)
    disk.image.write_from(0, memoryview(b"x" * 600))
    before = disk.costs()
    pieces = [(base + 100, 100), (base + 200, 400), (base + 600, 100)]
    assert disk.redirector.move(pieces, disk.image, 0, to_memory=True)
    assert calls(disk, before) == {"H_PUT_RTCE": 1, "H_REMOVE_RTCE": 1}
    assert bytes(memory[99:701]) == b"\0" + b"x" * 600 + b"\0"


@pytest.mark.parametrize("address", [1 << 40, (1 << 64) - PAGE, 1 << 64])
def test_addresses_that_are_none_map_nothing(make: MakeDisk, address: int) -> None:
    disk = make()
    assert not disk.redirector.move([(address, 100), (0, 100)], disk.image, 0, to_memory=True)
    assert not disk.redirector.move([(address, 100)], disk.image, 0, to_memory=False)


def test_more_pages_than_a_list_holds_are_copied(make: MakeDisk) -> None:
    disk = make()
    assert not disk.redirector.move([(page * 2 * PAGE, 8) for page in range(513)], disk.image, 0, to_memory=True)


def test_window_that_is_used_up_is_copied(make: MakeDisk) -> None:
    disk = make()
    engine = disk.pair.server_kernel.engine
    assert engine is not None
    engine.allocate(engine.engine.node.window.size // PAGE)
    assert disk.request(blk.T_IN, 0, [disk.buffer(64 * 1024)]).error is None
    assert disk.redirector.copied == 1


# errors


def test_page_that_the_client_unmapped_fails_the_request_alone(make: MakeDisk) -> None:
    disk = make()
    target = disk.buffer(64 * 1024)
    port, pane = disk.pair.client_partition.port, disk.pair.client_adapter.window
    request = BlockRequest(blk.T_IN, 0, 64 * 1024, (target,), lambda done: None)
    disk.driver.submit(request)
    disk.driver.kick()
    for page in range(pane.size // PAGE):  # whatever else: the pages of the buffer
        code, tce = port.get_tce(pane.liobn, page * PAGE)
        if code == ReturnCode.H_SUCCESS and tce & 3 and tce // PAGE == target[0].address // PAGE + 5:
            assert port.put_tce(pane.liobn, page * PAGE, 0) == ReturnCode.H_SUCCESS
    disk.pair.settle()
    assert request.done
    assert request.status == blk.S_IOERR
    assert disk.device.counters.errors == {"memory": 1}
    assert disk.request(blk.T_IN, 0, [disk.buffer(64 * 1024)]).error is None


def test_page_without_the_access_that_is_needed_is_an_error_of_the_client(make: MakeDisk) -> None:
    disk = make()
    _, base = mapped(disk, 2)
    port, pane = disk.pair.client_partition.port, disk.pair.client_adapter.window
    _, tce = port.get_tce(pane.liobn, base + PAGE)
    port.put_tce(pane.liobn, base + PAGE, tce & ~2)
    with pytest.raises(RemoteError, match="redirected DMA"):
        disk.redirector.move([(base, 2 * PAGE)], disk.image, 0, to_memory=True)
    assert disk.redirector.move([(base, 2 * PAGE)], disk.image, 0, to_memory=False)


class Failing(Image):
    def read_into(self, position: int, buffer: memoryview) -> None:
        raise OSError(5, "broken")


def test_error_of_the_medium_is_a_status_and_leaves_nothing_mapped(make: MakeDisk) -> None:
    disk = make()
    engine = disk.pair.server_kernel.engine
    assert engine is not None
    free = engine._range.free_pages
    disk.image.__class__ = Failing
    for _ in range(3):
        assert disk.request(blk.T_IN, 0, [disk.buffer(64 * 1024)]).status == blk.S_IOERR
    assert disk.device.counters.errors == {"backing": 3}
    assert engine._range.free_pages == free
    assert disk.tracked == [0, 0, 0]


def test_default_reads_of_the_vector_methods_go_buffer_by_buffer(make: MakeDisk) -> None:
    disk = make()
    disk.image.write_from(0, memoryview(b"abcdef"))
    first, second = bytearray(2), bytearray(3)
    Backing.read_vector(disk.image, 1, [memoryview(first), memoryview(second)])
    assert (bytes(first), bytes(second)) == (b"bc", b"def")
    Backing.write_vector(disk.image, 0, [memoryview(second), memoryview(first)])
    disk.image.read_vector(0, [memoryview(first), memoryview(second)])
    assert bytes(first + second) == b"defbc"
    disk.image.write_vector(16 * MIB - 4, [memoryview(b"12"), memoryview(b"34")])
    disk.image.read_vector(16 * MIB - 4, [memoryview(first), memoryview(first)])
    assert first == b"34"


def test_reset_of_the_server_in_the_middle_loses_nothing(make: MakeDisk) -> None:
    disk = make()
    data = os.urandom(256 * 1024)
    requests = []
    for index in range(8):
        piece = disk.buffer(len(data), data)
        requests.append(BlockRequest(blk.T_OUT, index * len(data), len(data), (piece,), lambda done: None))
    disk.driver.submit_many(requests)
    disk.driver.kick()
    disk.pair.server.reset()
    disk.pair.advance(20)
    assert [request.error for request in requests] == [None] * 8
    back = memoryview(bytearray(len(data)))
    for index in range(8):
        disk.image.read_into(index * len(data), back)
        assert bytes(back) == data


class Hole(Image):
    """An image with a bad place."""

    bad = range(0)

    def read_into(self, position: int, buffer: memoryview) -> None:
        if position in self.bad:
            raise OSError(errno.EIO, "bad place")
        super().read_into(position, buffer)


def test_requests_that_fail_among_others_are_not_on_the_ledgers_and_the_others_are(make: MakeDisk) -> None:
    disk = make(least=REDIRECT_MIN)
    disk.image.__class__ = Hole
    disk.image.bad = range(3 * PAGE, 5 * PAGE)  # type: ignore[attr-defined]
    before = disk.pair.client_adapter.ledger.snapshot()
    requests = []
    for number in range(16):
        slices = ((disk.pair.client.allocate(PAGE, mapped=False), 0, PAGE),)
        requests.append(BlockRequest(blk.T_IN, number * PAGE, PAGE, slices))
    disk.driver.submit_many(requests)
    disk.driver.kick()
    disk.pair.settle()
    assert [request.status for request in requests] == [blk.S_IOERR if 3 <= n < 5 else blk.S_OK for n in range(16)]
    after = disk.pair.client_adapter.ledger.snapshot()
    assert after["redirected_pages"] - before["redirected_pages"] == 16
    assert after["redirected_bytes"] - before["redirected_bytes"] == 14 * PAGE
