"""Whole requests of a queue that are read and written together: frames, for one."""

from __future__ import annotations

import pytest
from tests.transport.test_crq_hostile_client import DATA, NOT_MAPPED, WRITE, Client

from powervio.virtio.device import Device
from powervio.virtio.queue import ByteOrder, DeviceQueue

pytestmark = pytest.mark.dual


class Mirror(Device):
    """Reads all that is readable of the requests that there are, and writes what the test wants to what is writable."""

    device_id = 42

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bytes | None] = []
        self.given: list[bytes] = []
        self.written: list[bool] = []

    @property
    def features(self) -> int:
        return 0

    def config(self, byteorder: ByteOrder) -> bytes:
        return b""

    def process(self, queue: DeviceQueue) -> None:
        requests = []
        while (request := queue.pop()) is not None:
            requests.append(request)
        assert queue.batch is not None
        self.found += queue.batch.read([request.readable for request in requests])
        parts = []
        for request, data in zip(requests, self.given, strict=False):
            parts += [(request.writable, 0, data[:4]), (request.writable, 4, memoryview(data)[4:])]
        self.written += queue.batch.write(parts)
        for request in requests:
            request.complete(0)


class Rig:
    def __init__(self) -> None:
        self.device = Mirror()
        self.client = Client(self.device)
        self.client.negotiate(size=64)
        self.head = 0

    def put(self, *segments: tuple[int, int, int]) -> None:
        self.client.put(*segments, head=self.head)
        self.head += len(segments)

    def kick(self) -> int:
        """Serve what is available; copies and reads of the client's memory, without those of the ring."""
        ledger = self.client.pair.server_adapter.ledger
        before = ledger.snapshot()
        self.client.kick()
        calls: dict[str, int] = (ledger.snapshot() - before)["hcalls"]
        return sum(calls.get(name, 0) for name in ("H_COPY_RDMA", "H_READ_RDMA", "H_WRITE_RDMA")) - 3


def pattern(length: int, first: int = 0) -> bytes:
    return bytes((first + at) % 251 for at in range(length))


def test_parts_near_each_other_are_read_in_one_copy() -> None:
    rig = Rig()
    rig.client.view[DATA : DATA + 0x8000] = pattern(0x8000)
    rig.put((DATA + 3000, 1500, 0))
    rig.put((DATA, 1500, 0))
    rig.put((DATA + 1700, 100, 0), (DATA + 5000, 60, 0))
    rig.put((DATA + 0x6000, 10, 0))
    assert rig.kick() == 3
    view = pattern(0x8000)
    assert rig.device.found == [
        view[3000:4500], view[:1500], view[1700:1800] + view[5000:5060], view[0x6000:0x600A],
    ]  # fmt: skip


def test_part_that_is_not_mapped_is_missing_alone() -> None:
    rig = Rig()
    rig.client.view[DATA : DATA + 0x8000] = pattern(0x8000)
    rig.put((DATA, 100, 0))
    rig.put((NOT_MAPPED, 100, 0))
    rig.put((DATA + 200, 100, 0), (NOT_MAPPED + 200, 100, 0))
    rig.put((DATA + 400, 100, 0))
    rig.kick()
    view = pattern(0x8000)
    assert rig.device.found == [view[:100], None, None, view[400:500]]


def test_buffers_that_follow_each_other_are_written_in_one_copy() -> None:
    rig = Rig()
    rig.client.view[DATA : DATA + 0x8000] = b"\xaa" * 0x8000
    for number in range(4):
        rig.put((DATA + 2000 * number, 2000, WRITE))
    rig.device.given = [pattern(1500, number) for number in range(4)]
    assert rig.kick() == 1
    assert rig.device.written == [True] * 8
    for number in range(4):
        got = bytes(rig.client.view[DATA + 2000 * number : DATA + 2000 * number + 2000])
        assert got[:1500] == pattern(1500, number)
        assert got[1500:] == (bytes(500) if number < 3 else b"\xaa" * 500)  # nobody else's bytes


def test_nothing_between_two_buffers_is_written() -> None:
    rig = Rig()
    rig.client.view[DATA : DATA + 0x8000] = b"\xaa" * 0x8000
    rig.put((DATA, 1000, WRITE))
    rig.put((DATA + 1004, 1000, WRITE))
    rig.device.given = [pattern(1000), pattern(990, 7)]
    assert rig.kick() == 2
    assert bytes(rig.client.view[DATA : DATA + 1000]) == pattern(1000)
    assert bytes(rig.client.view[DATA + 1000 : DATA + 1004]) == b"\xaa" * 4
    assert bytes(rig.client.view[DATA + 1004 : DATA + 1994]) == pattern(990, 7)
    assert bytes(rig.client.view[DATA + 1994 : DATA + 2010]) == b"\xaa" * 16


def test_buffer_that_is_not_mapped_is_not_written_alone() -> None:
    rig = Rig()
    rig.put((DATA, 1000, WRITE))
    rig.put((NOT_MAPPED, 1000, WRITE))
    rig.put((DATA + 1000, 1000, WRITE))
    rig.device.given = [pattern(900)] * 3
    rig.kick()
    assert rig.device.written == [True, True, False, False, True, True]
    assert bytes(rig.client.view[DATA + 1000 : DATA + 1900]) == pattern(900)


def test_same_memory_offered_twice_harms_nobody_else() -> None:
    rig = Rig()
    rig.client.view[DATA : DATA + 0x1000] = b"\xaa" * 0x1000
    rig.put((DATA, 100, WRITE))
    rig.put((DATA + 50, 100, WRITE))
    rig.put((DATA, 100, WRITE))
    rig.device.given = [pattern(100)] * 3
    rig.kick()
    assert rig.device.written == [True] * 6
    assert bytes(rig.client.view[DATA + 150 : DATA + 0x1000]) == b"\xaa" * (0x1000 - 150)
