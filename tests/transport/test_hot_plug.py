"""Adapters that are plugged and unplugged under a running driver, in turns: who learns of it, and what becomes of I/O.

A server that is away may come back; only an adapter whose node left the device tree is gone for good.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.ledger import Costs
from powervio.storage.image import Image, open_image
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.client import ClientState, VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.virtio import block as blk
from powervio.virtio.queue import Request

BLOCK = 4096
COUNT = 32


@dataclass
class Plugged:
    """One disk: both ends of it and its adapters."""

    server_adapter: VioAdapter
    client_adapter: VioAdapter
    device: BlockDevice
    driver: BlockDriver
    server: VirtioCrq
    client: VirtioVio


class Rig:
    """A pair with one disk for the whole test, and more disks that come and go."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.device = BlockDevice(image)
        self.driver = BlockDriver(buffers=4, buffer_size=BLOCK)
        self.pair = PartitionPair(self.device, self.driver).start()
        self.first = Plugged(
            self.pair.server_adapter,
            self.pair.client_adapter,
            self.device,
            self.driver,
            self.pair.server,
            self.pair.client,
        )

    def plug(self, device: BlockDevice | None = None, *, settle: bool = True, slot: int | None = None) -> Plugged:
        pair = self.pair
        device = device or BlockDevice(self.image)
        driver = BlockDriver(max_queues=device.queue_count, buffers=4, buffer_size=BLOCK)
        server_adapter, client_adapter = pair.hypervisor.create_pair(
            pair.server_partition, pair.client_partition, client_slot=slot
        )
        server = VirtioCrq(pair.server_kernel, server_adapter.node, device)
        client = VirtioVio(pair.client_kernel, client_adapter.node, driver)
        server.start()
        client.start()
        if settle:
            pair.settle()
        return Plugged(server_adapter, client_adapter, device, driver, server, client)

    def unplug(self, disk: Plugged) -> None:
        self.pair.hypervisor.remove_pair(disk.client_adapter)

    def requests(self, disk: Plugged, count: int = COUNT) -> list[BlockRequest]:
        """Submit writes and kick; nothing runs yet."""
        made = []
        for index in range(count):
            buffer = disk.client.allocate(BLOCK, mapped=False)
            done: list[BlockRequest] = []  # called twice it would have two entries
            request = BlockRequest(blk.T_OUT, index * BLOCK, BLOCK, ((buffer, 0, BLOCK),), done.append, context=done)
            made.append(request)
        disk.driver.submit_many(made)
        disk.driver.kick()
        return made

    def release(self, disk: Plugged, requests: list[BlockRequest]) -> None:
        """Retire both ends and give the buffers of these requests back."""
        disk.client.retire()
        disk.server.retire()
        for request in requests:
            for buffer, _, _ in request.slices:
                disk.client.release(buffer)

    def free(self) -> tuple[int, int]:
        return self.pair.server_kernel.pages.free_bytes, self.pair.client_kernel.pages.free_bytes


@pytest.fixture
def rig(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    with open_image(tmp_path / "disk.img", create_size=4 << 20) as image:
        made = Rig(image)
        yield made
        made.pair.close()
    # a handler that failed was caught by the kernel and logged
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def assert_failed_once(requests: list[BlockRequest], code: int = errno.ESHUTDOWN) -> None:
    for request in requests:
        assert request.context == [request]
        assert request.error is not None
        assert request.error.errno == code


def test_unplugged_disk_fails_what_is_in_flight_and_what_comes_later(rig: Rig) -> None:
    disk = rig.plug()
    requests = rig.requests(disk)
    assert disk.driver.in_flight == COUNT
    rig.unplug(disk)
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE
    assert disk.client.failure == "the adapter was unplugged"
    assert disk.server.state == "closed"
    assert_failed_once(requests)
    with pytest.raises(OSError, match="the adapter was unplugged") as caught:
        disk.driver.submit(BlockRequest(blk.T_FLUSH))
    assert caught.value.errno == errno.ESHUTDOWN


def test_what_the_device_had_completed_is_completed_and_the_rest_fails(rig: Rig) -> None:
    disk = rig.plug()
    done = rig.requests(disk, 5)
    rig.pair.server_kernel.poll()  # the server has done them, the client has not looked yet
    late = rig.requests(disk, 3)
    rig.unplug(disk)
    rig.pair.settle()
    assert [request.error for request in done] == [None] * 5
    assert_failed_once(late)


def test_request_between_unplugging_and_the_event_fails(rig: Rig) -> None:
    disk = rig.plug()
    rig.unplug(disk)
    requests = rig.requests(disk, 3)
    rig.pair.settle()
    assert_failed_once(requests)


def test_server_that_restarts_is_waited_for(rig: Rig) -> None:
    disk = rig.plug()
    disk.server.stop()
    rig.pair.settle()
    requests = rig.requests(disk)
    other = rig.plug()  # the tree changes, but not for this one
    rig.unplug(other)
    rig.pair.advance(60)
    assert disk.client.state is ClientState.WAITING
    assert not any(request.done for request in requests)
    disk.server.start()
    rig.pair.settle()
    assert [request.error for request in requests] == [None] * COUNT


def test_server_that_goes_for_good_while_it_is_away_fails_what_waits(rig: Rig) -> None:
    disk = rig.plug()
    disk.server.stop()
    rig.pair.settle()
    requests = rig.requests(disk)
    rig.unplug(disk)
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE
    assert_failed_once(requests)


def test_another_adapter_in_the_same_slot_is_another_adapter(rig: Rig) -> None:
    disk = rig.plug(slot=9)
    requests = rig.requests(disk, 3)
    rig.unplug(disk)
    other = rig.plug(slot=9, settle=False)
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE
    assert_failed_once(requests)
    assert other.client.running
    again = rig.requests(other, 3)
    rig.pair.settle()
    assert [request.error for request in again] == [None] * 3


def test_gone_client_stays_gone(rig: Rig) -> None:
    disk = rig.plug()
    rig.unplug(disk)
    rig.pair.settle()
    disk.client.reset()
    disk.client.stop()
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE


def test_client_that_starts_after_its_adapter_went_is_gone(rig: Rig) -> None:
    disk = rig.plug()
    disk.client.stop()
    rig.unplug(disk)
    disk.client.start()
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE


@pytest.mark.parametrize("turn", range(24))
def test_unplugging_at_any_turn_of_the_handshake_is_survived(rig: Rig, turn: int) -> None:
    before = rig.free()
    disk = rig.plug(settle=False)
    for number in range(turn):
        (rig.pair.server_kernel if number % 2 else rig.pair.client_kernel).poll()
    requests = rig.requests(disk, 2)
    rig.unplug(disk)
    rig.pair.settle()
    assert disk.client.state is ClientState.GONE
    assert_failed_once([request for request in requests if request.error is not None])
    assert all(request.done for request in requests)
    rig.release(disk, requests)
    rig.pair.advance(60)
    assert rig.free() == before


class Saboteur(BlockDevice):
    """Unplugs its own adapter while it serves a request, inside the interrupt of its server."""

    def __init__(self, image: Image, rig: Rig) -> None:
        super().__init__(image)
        self.rig = rig
        self.disk: Plugged | None = None

    def handle(self, request: Request) -> None:
        if self.disk is not None:
            self.rig.unplug(self.disk)
            self.disk = None
        super().handle(request)


def test_unplugging_inside_a_request_leaves_the_other_adapters_their_interrupts(rig: Rig) -> None:
    device = Saboteur(rig.image, rig)
    disk = rig.plug(device)
    device.disk = disk
    requests = rig.requests(disk)
    rig.pair.settle()
    assert_failed_once(requests)
    assert disk.server.state == "closed"
    others = rig.requests(rig.first)
    rig.pair.settle()
    assert [request.error for request in others] == [None] * COUNT


def test_orderly_end_tells_the_server_by_an_event_and_nothing_is_left(rig: Rig) -> None:
    before = rig.free()
    disk = rig.plug()
    requests = rig.requests(disk)
    rig.pair.settle()
    disk.driver.fail_all("detached")
    disk.client.retire()
    assert disk.client.state is ClientState.CLOSED
    rig.pair.settle()
    assert disk.server.state == "waiting"
    disk.server.retire()
    rig.unplug(disk)
    rig.pair.settle()
    for request in requests:
        for buffer, _, _ in request.slices:
            disk.client.release(buffer)
    assert rig.free() == before


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("orderly", [True, False])
def test_200_cycles_leave_no_page_behind(rig: Rig, orderly: bool, queues: int) -> None:
    before = rig.free()
    for _ in range(200):
        disk = rig.plug(BlockDevice(rig.image, BlockOptions(queues=queues)))
        assert disk.client.channels == (queues if queues > 1 else 0)
        requests = rig.requests(disk, 4)
        if orderly:
            rig.pair.settle()
            assert [request.error for request in requests] == [None] * 4
        else:
            rig.unplug(disk)
        rig.release(disk, requests)
        if orderly:
            rig.unplug(disk)
        rig.pair.settle()
        assert rig.free() == before
    assert rig.pair.client.sessions == 1
    assert len(rig.pair.client_partition.sources) == len(rig.pair.client_adapter.sources)


def cost_of_work(rig: Rig) -> Costs:
    """What 32 requests one by one and 32 at once cost on the first disk, both ends."""
    ends = (rig.first.client_adapter, rig.first.server_adapter)
    before = [end.ledger.snapshot() for end in ends]
    for count in (*[1] * 32, 32):
        requests = rig.requests(rig.first, count)
        rig.pair.settle()
        assert [request.error for request in requests] == [None] * count
    first, second = (end.ledger.snapshot() - start for end, start in zip(ends, before, strict=True))
    return first + second


def test_other_adapters_do_not_notice(rig: Rig) -> None:
    cost_of_work(rig)  # the server learns where the client has its small buffers
    alone = cost_of_work(rig)
    others = [rig.plug() for _ in range(3)]
    assert cost_of_work(rig) == alone
    pending = [rig.requests(disk) for disk in others]
    for disk in others:
        rig.unplug(disk)
    rig.pair.settle()
    assert all(request.done for requests in pending for request in requests)
    assert cost_of_work(rig) == alone
    assert (rig.first.client.sessions, rig.first.client.rejected, rig.first.driver.failed) == (1, 0, 0)


def test_random_order_of_events_completes_each_request_once(rig: Rig) -> None:
    rng = random.Random(1)
    for _ in range(60):
        before = rig.free()
        disk = rig.plug(settle=False)
        requests: list[BlockRequest] = []
        for _ in range(rng.randrange(30)):
            step = rng.randrange(5)
            if step == 0:
                requests += rig.requests(disk, rng.randrange(8))
            elif step == 1:
                disk.client.reset()
            elif step == 2:
                disk.server.reset()
            else:
                rng.choice((rig.pair.client_kernel, rig.pair.server_kernel)).poll()
        rig.unplug(disk)
        for _ in range(rng.randrange(4)):
            rng.choice((rig.pair.client_kernel, rig.pair.server_kernel)).poll()
        rig.pair.settle()
        assert all(request.context == [request] for request in requests)
        rig.release(disk, requests)
        rig.pair.advance(30)
        assert rig.free() == before
    assert rig.first.client.sessions == 1


# -- another size


def test_resize_reaches_the_driver(rig: Rig) -> None:
    told: list[int] = []
    rig.driver.on_resize = lambda: told.append(rig.driver.capacity)
    rig.image.resize(8 << 20)
    rig.device.resize(8 << 20)
    rig.pair.settle()
    assert told == [8 << 20]


@pytest.mark.parametrize("turn", range(24))
def test_resize_at_any_turn_of_the_handshake_reaches_the_driver(rig: Rig, turn: int) -> None:
    disk = rig.plug(settle=False)
    for number in range(turn):
        (rig.pair.server_kernel if number % 2 else rig.pair.client_kernel).poll()
    rig.image.resize(8 << 20)
    disk.device.resize(8 << 20)
    rig.pair.settle()
    assert disk.driver.capacity == 8 << 20
