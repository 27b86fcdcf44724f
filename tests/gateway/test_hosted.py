"""A VIO server in the gateway's thread, and that thread's looking before it sleeps."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.harness import MIB, House, wait_until

from powervio.devices.block import BlockDevice
from powervio.gateway import layout
from powervio.gateway.mailbox import Lookout, Mailbox
from powervio.gateway.remote_port import RemotePort
from powervio.gateway.server import Gateway
from powervio.papr.codes import Hcall
from powervio.storage.image import open_image
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

pytestmark = pytest.mark.dual


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as gateway:
        gateway.start()
        yield gateway


class Reader(BlockDevice):
    """A disk that tells who serves it."""

    served_by: threading.Thread | None = None

    def process(self, queue: object) -> None:
        self.served_by = threading.current_thread()
        super().process(queue)  # type: ignore[arg-type]


@pytest.mark.parametrize("spin_us", [0, 500])
def test_server_in_the_gateways_thread_serves_a_client_process(tmp_path: Path, spin_us: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * MIB))
    with House(tmp_path) as house, open_image(image) as opened:
        house.gateway.close()
        house.gateway = Gateway(spin_us=spin_us)
        door = house.door(house.client)
        kernel = PartitionKernel(house.server.port)
        house.at_end(kernel.close)
        device = Reader(opened)
        VirtioCrq(kernel, house.server_adapter.node, device).start()
        house.gateway.start()
        kernel.start(house.gateway.hosted)
        client = house.process("disk", door)
        assert client.ask("write 0 200 7 32") == "good"
        assert client.ask("check 0 200 7 1") == "good"
        assert device.served_by is house.gateway.hosted.thread
        assert kernel.call(threading.current_thread) is house.gateway.hosted.thread
        assert kernel.stop()
        assert not kernel.threaded
        assert kernel.call(threading.current_thread) is threading.current_thread()


def test_stop_of_a_hosted_kernel_says_so_when_the_thread_is_busy(tmp_path: Path, gateway: Gateway) -> None:
    with House(tmp_path) as house:
        kernel = PartitionKernel(house.server.port)
        kernel.start(gateway.hosted)
        go_on, there = threading.Event(), threading.Event()

        def work() -> None:
            there.set()
            go_on.wait(60)

        kernel.call_soon_threadsafe(work)
        assert there.wait(60)
        assert not kernel.stop(0.01)
        go_on.set()
        assert kernel.stop()
        kernel.close()


def test_timers_are_called_in_order_and_not_when_cancelled(gateway: Gateway) -> None:
    called: list[str] = []

    def begin() -> None:
        gateway.hosted.call_later(0.02, lambda: called.append("second"))
        gateway.hosted.call_later(0.01, lambda: called.append("first"))
        gateway.hosted.call_later(0.0, lambda: called.append("never")).cancel()

    gateway.hosted.call_soon_threadsafe(begin)
    wait_until(lambda: len(called) == 2, "nothing was called")
    assert called == ["first", "second"]


def test_reader_is_called_until_it_is_removed(gateway: Gateway) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    heard: list[int] = []

    def hear(what: int) -> None:
        heard.append(os.eventfd_read(fd) + what)

    gateway.hosted.call_soon_threadsafe(lambda: gateway.hosted.add_reader(fd, hear, 10))
    os.eventfd_write(fd, 1)
    wait_until(lambda: heard == [11], "the reader was not called")
    removed: list[bool] = []
    gateway.hosted.call_soon_threadsafe(
        lambda: removed.extend((gateway.hosted.remove_reader(fd), gateway.hosted.remove_reader(fd)))
    )
    wait_until(lambda: len(removed) == 2, "nobody removed it")
    assert removed == [True, False]
    os.close(fd)


def test_look_finds_what_is_posted_and_says_that_nobody_need_ring() -> None:
    """G5.7"""
    where = layout.plan(1 << 20, 1, region_size=layout.MIN_REGION, slots=4)
    regions = [memoryview(bytearray(layout.MIN_REGION)) for _ in range(2)]
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    lookout = Lookout(fd)
    assert not lookout.look(1000)
    for region in regions:
        where.write(region)
    lookout.watch([Mailbox(region, where, lambda *_: (0,)) for region in regions])
    assert not lookout.look(1000)
    assert [region[layout.AWAKE] for region in regions] == [1, 1]
    assert not lookout.rest()
    assert [region[layout.AWAKE] for region in regions] == [0, 0]
    regions[1][where.slots_offset] = 1
    assert lookout.look(10**9)
    assert lookout.rest()
    assert [region[layout.AWAKE] for region in regions] == [1, 1]
    regions[1][where.slots_offset] = 0
    os.eventfd_write(fd, 1)
    assert lookout.look(10**9)
    os.close(fd)


def test_partitions_have_to_ring_a_gateway_that_has_stopped(tmp_path: Path) -> None:
    """G5.7"""
    with House(tmp_path) as house:
        house.gateway.close()
        house.gateway = Gateway(spin_us=10**9)  # it looks for as long as the test takes
        house.gateway.start()
        door = house.door(house.client)
        port = RemotePort.connect(door.path)
        assert port.xirr() == 0xFF << 24
        session = door.session
        assert session is not None
        wait_until(lambda: session.region.view[layout.AWAKE] == 1, "it does not look")
        house.gateway.stop()
        assert session.region.view[layout.AWAKE] == 0
        port.close()


def test_what_is_posted_while_awake_needs_no_doorbell(tmp_path: Path) -> None:
    """G5.7: a partition that saw AWAKE just before it became 0 is heard of all the same."""
    with House(tmp_path) as house:
        house.gateway.stop()
        door = house.door(house.client)
        ported: list[RemotePort] = []
        connecting = threading.Thread(target=lambda: ported.append(RemotePort.connect(door.path)))
        connecting.start()
        while connecting.is_alive():
            house.gateway.poll(0.01)
        session = door.session
        assert session is not None
        region, slot = session.region.view, session.where.slots_offset
        struct.pack_into("<Q", region, slot + layout.TOKEN, int(Hcall.H_XIRR))
        struct.pack_into("<Q", region, slot + layout.POSTED, session.mailbox.served + 1)
        assert session.mailbox.served == 0
        house.gateway.poll(10.0)
        assert session.mailbox.served == 1
        ported[0].close()


def test_doors_go_while_the_thread_looks_at_their_rings(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        house.gateway.close()
        house.gateway = Gateway(spin_us=10**9)  # for as long as the test takes
        house.gateway.start()
        for _ in range(50):
            door = house.door(house.client)
            port = RemotePort.connect(door.path)
            assert port.xirr() == 0xFF << 24
            house.gateway.remove(door)
            port.close()
