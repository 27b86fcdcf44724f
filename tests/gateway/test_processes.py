"""Partitions that are processes: a disk over CRQ through the gateway, and what happens when one of them is killed."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from tests.gateway.harness import MIB, House, Process, wait_until

from powervio.drivers.block import BlockRequest
from powervio.drivers.block_core import BlockCore
from powervio.testing.partition_process import BLOCK, content
from powervio.transport.crq.client import VirtioVio
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk

pytestmark = pytest.mark.dual


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    return path


def on_image(image: Path, number: int) -> bytes:
    return image.read_bytes()[number * BLOCK : (number + 1) * BLOCK]


def wait_until_written(image: Path, seed: int, count: int) -> None:
    """Until more of the blocks are there than now, or the last one is."""
    numbers = range(0, count, 64)
    before = sum(on_image(image, number) == content(seed, number) for number in numbers)

    def written() -> bool:
        now = sum(on_image(image, number) == content(seed, number) for number in numbers)
        return now > before or on_image(image, count - 1) == content(seed, count - 1)

    wait_until(written, "nothing is written")


def test_client_process_writes_and_reads_a_disk_served_in_this_process(tmp_path: Path, image: Path) -> None:
    with House(tmp_path) as house:
        door = house.door(house.client)
        house.serve(image)
        house.gateway.start()
        client = house.process("disk", door)
        assert client.ask("write 0 200 7 32") == "good"
        assert client.ask("check 0 200 7 32") == "good"
        assert client.ask("check 0 1 7 1") == "good"
    assert [on_image(image, number) == content(7, number) for number in range(200)] == [True] * 200


def test_killed_client_leaves_the_disk_to_its_successor(tmp_path: Path, image: Path) -> None:
    """G1.5, and G3.4: its memory is empty for the next one."""
    with House(tmp_path) as house:
        door = house.door(house.client)
        house.serve(image)
        house.gateway.start()
        first = house.process("disk", door)
        assert first.ask("write 0 64 1 32") == "good"
        first.tell("write 0 1000 2 32")
        first.kill()
        second = house.process("disk", door)
        assert second.ask("write 64 64 3 32") == "good"
        assert second.ask("check 64 64 3 8") == "good"
        assert door.sessions == 2
        second.kill()
        wait_until(lambda: not any(house.client.memory), "its memory is not empty")


def test_killed_server_process_loses_no_write_in_flight(tmp_path: Path, image: Path) -> None:
    """G1.5. Both partitions are processes; the client goes on by itself when there is a server again."""
    with House(tmp_path) as house:
        client_door, server_door = house.door(house.client), house.door(house.server)
        house.gateway.start()
        server = house.process("serve", server_door, str(image))
        client = house.process("disk", client_door)
        assert client.ask("write 0 1 1 1") == "good"
        client.tell("write 0 1024 5 32")
        for _ in range(2):
            wait_until_written(image, 5, 1024)
            server.kill()
            server = house.process("serve", server_door, str(image))
        assert client.line() == "good"
        assert client.ask("check 0 1024 5 32") == "good"
        server.kill()
    assert [number for number in range(1024) if on_image(image, number) != content(5, number)] == []


def test_server_process_is_killed_with_32_writes_in_flight_of_a_client_here(tmp_path: Path, image: Path) -> None:
    with House(tmp_path) as house:
        door = house.door(house.server)
        house.gateway.start()
        server = house.process("serve", door, str(image))
        kernel = PartitionKernel(house.client.port)
        house.at_end(kernel.close)
        core = BlockCore()
        end = VirtioVio(kernel, house.client_adapter.node, core)
        end.start()

        def run(done: list[BlockRequest], count: int) -> None:
            def look() -> bool:
                while kernel.poll():
                    pass
                return len(done) >= count

            wait_until(look, "a request has not ended")

        first: list[BlockRequest] = []
        buffer = end.allocate(BLOCK, mapped=False)
        core.submit(BlockRequest(blk.T_IN, 0, BLOCK, ((buffer, 0, BLOCK),), first.append))
        core.kick()
        run(first, 1)
        server.popen.send_signal(signal.SIGSTOP)  # so that all 32 are in flight when it dies
        done: list[BlockRequest] = []
        for number in range(32):
            data = end.allocate(BLOCK, mapped=False)
            data.view[:] = content(9, number)
            core.submit(BlockRequest(blk.T_OUT, number * BLOCK, BLOCK, ((data, 0, BLOCK),), done.append))
        core.kick()
        kernel.poll()
        server.kill()
        assert done == []
        house.process("serve", door, str(image))
        run(done, 32)
        assert [request.error for request in done] == [None] * 32
    assert [number for number in range(32) if on_image(image, number) != content(9, number)] == []


def test_second_process_is_refused_while_the_first_lives(tmp_path: Path, image: Path) -> None:
    """G1.1"""
    with House(tmp_path) as house:
        door = house.door(house.client)
        house.serve(image)
        house.gateway.start()
        first = house.process("disk", door)
        second = Process("disk", door.path)
        house.at_end(second.close)
        assert second.line() == (
            "failed: the partition cannot be entered: it runs in another process, or its hypervisor has gone"
        )
        assert first.ask("write 0 4 1 4") == "good"
        assert door.sessions == 1


def test_process_ends_when_the_hypervisor_terminates_its_partition(tmp_path: Path, image: Path) -> None:
    """G1.6"""
    with House(tmp_path) as house:
        door = house.door(house.client)
        house.serve(image)
        house.gateway.start()
        client = house.process("disk", door)
        assert client.ask("write 0 4 1 4") == "good"
        house.hypervisor.terminate(house.client)
        assert client.line() == "ended: the hypervisor has closed the partition's connection"
        wait_until(lambda: not door.attached, "the session goes on")


def test_gateway_thread_ends(tmp_path: Path) -> None:
    before = threading.active_count()
    with House(tmp_path) as house:
        house.door(house.client)
        house.gateway.start()
        house.gateway.stop()
        house.gateway.start()
    assert threading.active_count() == before
