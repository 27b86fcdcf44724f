"""The block driver and device over virtio over CRQ: both revisions, both byte orders, and sessions that end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.papr.codes import HcallError, ReturnCode
from powervio.storage.image import Image, open_image
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.driver_queue import IndirectPolicy
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer

pytestmark = pytest.mark.dual

BLOCK = 4096
COUNT = 32


class Disk:
    def __init__(
        self, image: Image, revision: int, big_endian: bool, indirect: IndirectPolicy, queues: int = 1
    ) -> None:
        self.image = image
        self.device = BlockDevice(image, BlockOptions(queues=queues))
        self.driver = BlockDriver()
        self.pair = PartitionPair(
            self.device, self.driver, revision=revision, big_endian=big_endian, indirect=indirect
        ).start()
        self.done: list[BlockRequest] = []
        self.contents = [os.urandom(BLOCK) for _ in range(COUNT)]

    def write_all(self) -> list[BlockRequest]:
        """Submit a write of each block and kick; nothing runs yet."""
        requests = []
        for index, content in enumerate(self.contents):
            buffer = self.pair.client.allocate(BLOCK, mapped=False)
            buffer.view[:] = content
            slices = ((buffer, 0, BLOCK),)
            requests.append(BlockRequest(blk.T_OUT, index * BLOCK, BLOCK, slices, self.done.append))
        self.driver.submit_many(requests)
        self.driver.kick()
        return requests

    def on_image(self) -> bytes:
        back = bytearray(COUNT * BLOCK)
        self.image.read_into(0, memoryview(back))
        return bytes(back)


@pytest.fixture(params=[(1, False), (0, False), (0, True)], ids=["revision1", "revision0", "revision0-big-endian"])
def mode(request: pytest.FixtureRequest) -> tuple[int, bool]:
    revision, big_endian = request.param
    return revision, big_endian


@pytest.fixture(params=["auto", "always", "never"])
def disk(tmp_path: Path, mode: tuple[int, bool], request: pytest.FixtureRequest) -> Iterator[Disk]:
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        made = Disk(image, *mode, request.param)
        yield made
        made.pair.close()


def test_requests_reach_the_image_and_come_back(disk: Disk) -> None:
    requests = disk.write_all()
    disk.driver.submit(BlockRequest(blk.T_FLUSH, callback=disk.done.append))
    disk.driver.submit(BlockRequest(blk.T_WRITE_ZEROES, 0, BLOCK, callback=disk.done.append))
    disk.driver.submit(BlockRequest(blk.T_DISCARD, 2 << 20, 1 << 20, callback=disk.done.append))
    disk.driver.kick()
    disk.pair.settle()
    assert len(disk.done) == len(requests) + 3
    assert [request.error for request in disk.done] == [None] * len(disk.done)
    disk.contents[0] = bytes(BLOCK)
    assert disk.on_image() == b"".join(disk.contents)


@pytest.mark.parametrize("served", [False, True], ids=["not served", "served and not seen"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_reset_with_32_in_flight_completes_each_once(disk: Disk, side: str, served: bool) -> None:
    requests = disk.write_all()
    if served:
        while disk.pair.server_kernel.poll():
            pass
        assert disk.device.requests == COUNT
    assert disk.done == []
    end = disk.pair.server if side == "server" else disk.pair.client
    end.stop()
    disk.pair.settle()
    assert disk.driver.in_flight == 0
    end.start()
    disk.pair.settle()
    disk.pair.advance(60)
    assert sorted(map(id, disk.done)) == sorted(map(id, requests))
    assert [request.error for request in requests] == [None] * COUNT
    assert disk.on_image() == b"".join(disk.contents)


@pytest.mark.parametrize("noticed", [False, True], ids=["FF06 alone", "FF09 first"])
@pytest.mark.parametrize("queues", [1, 4])
def test_suspension_with_32_in_flight_completes_each_once(tmp_path: Path, queues: int, noticed: bool) -> None:
    """P1.7, P1.8, P5.13: with four queues they travel over Sub-CRQs."""
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        disk = Disk(image, 1, False, "auto", queues)
        assert disk.pair.client.channels == (queues if queues > 1 else 0)
        requests = disk.write_all()
        if noticed:
            disk.pair.hypervisor.prepare_suspend(disk.pair.client_partition)
            disk.pair.server_kernel.poll()
        else:
            disk.pair.server_adapter.prepare_msec = None
        disk.pair.hypervisor.suspend(disk.pair.client_partition)
        disk.pair.settle()
        disk.pair.hypervisor.resume(disk.pair.client_partition)
        disk.pair.advance(60)
        assert sorted(map(id, disk.done)) == sorted(map(id, requests))
        assert [request.error for request in requests] == [None] * COUNT
        assert disk.on_image() == b"".join(disk.contents)
        assert (disk.pair.client.sessions, disk.pair.client.running) == (2, True)
        disk.pair.close()


def test_turn_that_the_device_asked_for_before_ff09_serves_nothing_after_it(tmp_path: Path) -> None:
    """P1.8: flushes end passes early, so the device has asked for a turn, and more is in the ring than was popped."""
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        disk = Disk(image, 1, False, "auto")
        buffer = disk.pair.client.allocate(512 << 10, mapped=False)
        requests = []
        for number in range(40):
            read = number % 8
            length = len(buffer.view) if read else 0
            slices = ((buffer, 0, length),) if read else ()
            kind = blk.T_IN if read else blk.T_FLUSH
            requests.append(BlockRequest(kind, 0, length, slices, disk.done.append))
        disk.driver.submit_many(requests)
        disk.driver.kick()
        disk.pair.hypervisor.prepare_suspend(disk.pair.client_partition)
        served = []
        for _ in range(5):
            disk.pair.server_kernel.poll()
            assert disk.pair.server._service.frozen
            served.append(disk.device.requests)
        assert 0 < served[0] < len(requests)
        assert served == [served[0]] * 5
        disk.pair.hypervisor.suspend(disk.pair.client_partition)
        disk.pair.settle()
        disk.pair.hypervisor.resume(disk.pair.client_partition)
        disk.pair.advance(60)
        assert sorted(map(id, disk.done)) == sorted(map(id, requests))
        assert [request.error for request in requests] == [None] * len(requests)
        disk.pair.close()


@pytest.mark.parametrize("place", [(-512, 512), (BLOCK - 512, 1024), (0, BLOCK + 512)], ids=str)
def test_slice_that_is_not_in_its_buffer_fails_its_request_alone(disk: Disk, place: tuple[int, int]) -> None:
    """What is beside the buffer is somebody else's, and would be mapped or is."""
    for mapped in (False, True):
        buffer = disk.pair.client.allocate(BLOCK, mapped=mapped)
        wrong = BlockRequest(blk.T_IN, 0, place[1], ((buffer, *place),))
        disk.driver.submit(wrong)
        assert wrong.error is not None
        assert wrong.error.errno == errno.EINVAL
        assert "of a buffer of 4096" in str(wrong.error)
    requests = disk.write_all()
    disk.pair.settle()
    assert [request.error for request in requests] == [None] * COUNT


@pytest.mark.parametrize("indirect", ["auto", "always", "never"])
def test_requests_of_many_slices_leave_nothing_mapped(tmp_path: Path, indirect: IndirectPolicy) -> None:
    """More mappings than buffers, in flight together and taken away together."""
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        disk = Disk(image, 1, False, indirect)
        space = disk.pair.client._queues[0]._dma
        buffers = [disk.pair.client.allocate(BLOCK, mapped=False) for _ in range(40)]
        before = space.free_pages
        for count in (1, 17, 40, 3):
            disk.done.clear()
            slices = [(buffer, 0, BLOCK) for buffer in buffers[:count]]
            for buffer in buffers:
                buffer.view[:] = os.urandom(BLOCK)
            writes = [
                BlockRequest(blk.T_OUT, at * count * BLOCK, count * BLOCK, slices, disk.done.append) for at in range(8)
            ]
            disk.driver.submit_many(writes)
            disk.driver.kick()
            assert space.free_pages <= before - disk.driver.in_flight * count
            disk.pair.settle()
            assert [request.error for request in writes] == [None] * 8
            assert len(disk.done) == 8
            written = bytearray(8 * count * BLOCK)
            image.read_into(0, memoryview(written))
            assert bytes(written) == b"".join(bytes(buffer.view) for buffer in buffers[:count]) * 8
            tables = before - space.free_pages
            assert tables == 0 if indirect == "never" else tables <= 8
        disk.pair.close()


def test_buffer_outside_the_partition_fails_its_request_alone(disk: Disk) -> None:
    """Though all that is submitted together is mapped together."""
    bad = Buffer(memoryview(bytearray(BLOCK)), 1 << 40, None)
    wrong = BlockRequest(blk.T_OUT, 0, BLOCK, ((bad, 0, BLOCK),), disk.done.append)
    disk.driver.submit(wrong)
    requests = disk.write_all()
    disk.pair.settle()
    assert wrong.error is not None
    assert wrong.error.errno == errno.EINVAL
    assert [(request.done, request.error) for request in requests] == [(True, None)] * COUNT
    assert disk.on_image() == b"".join(disk.contents)


def test_buffer_that_cannot_be_unmapped_is_not_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H_RESOURCE: an engine works there still. The partner may write there as long as it is mapped."""
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        disk = Disk(image, 1, False, "auto")
        requests = disk.write_all()
        while disk.pair.server_kernel.poll():
            pass
        queue = disk.pair.client._queues[0]
        free = queue._dma.free_pages
        with monkeypatch.context() as patch:
            patch.setattr(disk.pair.client_kernel.port, "stuff_tce", lambda *call: ReturnCode.H_RESOURCE)
            for _ in range(2):
                with pytest.raises(HcallError):
                    disk.driver.completed(queue)
        assert (disk.done, queue._dma.free_pages) == ([], free)
        disk.driver.completed(queue)
        assert (len(disk.done), queue._dma.free_pages) == (COUNT, free + COUNT)
        assert [request.error for request in requests] == [None] * COUNT
        disk.pair.close()


def test_session_ends_when_used_buffers_cannot_be_unmapped_and_each_request_completes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would come of waiting: no further interrupt is due."""
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        disk = Disk(image, 1, False, "auto")
        requests = disk.write_all()
        while disk.pair.server_kernel.poll():
            pass
        port = disk.pair.client_kernel.port
        stuff_tce = port.stuff_tce
        refused: list[int] = []

        def refuse(liobn: int, ioba: int, tce: int, count: int) -> int:
            if refused:
                return stuff_tce(liobn, ioba, tce, count)
            refused.append(ioba)
            return ReturnCode.H_RESOURCE

        monkeypatch.setattr(port, "stuff_tce", refuse)
        disk.pair.settle()
        disk.pair.clock.now += 1
        disk.pair.settle()
        assert (len(refused), disk.pair.client.sessions) == (1, 2)
        assert [request.error for request in requests] == [None] * COUNT
        assert len(disk.done) == COUNT
        disk.pair.close()
