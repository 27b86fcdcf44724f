"""A process's view of its platform: costs, tree, interrupts, and a hypervisor that stops answering."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.harness import MIB, House, wait_until

from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockRequest
from powervio.drivers.block_core import BlockCore
from powervio.errors import LocalError
from powervio.gateway import layout
from powervio.gateway.remote_port import RemotePort
from powervio.memory.shared_file import SharedFile
from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.crq import TransportEvent, event_element
from powervio.papr.port import HcallPort
from powervio.phyp.ledger import Costs
from powervio.storage.image import open_image
from powervio.testing.clock import Clock
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk

pytestmark = pytest.mark.dual

HYPERVISOR = """
import sys
from powervio.phyp.hypervisor import Hypervisor
from powervio.gateway.server import Gateway
with Hypervisor() as hypervisor, Gateway() as gateway:
    server, client = (hypervisor.create_partition(name, 1 << 20) for name in ("vios1", "client1"))
    hypervisor.create_pair(server, client)
    gateway.add(client, sys.argv[1])
    gateway.start()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as made:
        yield made


def entered(house: House, **options: float) -> RemotePort:
    """The client partition's port, of a gateway that runs in its thread."""
    door = house.door(house.client, vectors=4)
    house.gateway.start()
    port = RemotePort.connect(door.path, limit=options.get("limit", 10.0))
    house.at_end(port.close)
    return port


# -- cost


def read_costs(ports: tuple[HcallPort, HcallPort], house: House, image: Path) -> Costs:
    """What a read of 4 KiB costs, over both partitions, everybody in this thread."""
    with open_image(image) as backing:
        kernels = [PartitionKernel(port, clock=Clock()) for port in ports]
        core = BlockCore()
        server = VirtioCrq(kernels[0], house.server_adapter.node, BlockDevice(backing))
        client = VirtioVio(kernels[1], house.client_adapter.node, core)
        server.start()
        client.start()

        def settle() -> None:
            while kernels[0].poll() | kernels[1].poll():
                pass

        def costs() -> Costs:
            return house.server_adapter.ledger.snapshot() + house.client_adapter.ledger.snapshot()

        settle()
        buffer = client.allocate(4096, mapped=False)
        done: list[BlockRequest] = []
        for _ in range(2):  # what is made at the first request is no cost of a request
            before = costs()
            core.submit(BlockRequest(blk.T_IN, 0, 4096, ((buffer, 0, 4096),), done.append))
            core.kick()
            settle()
        assert [request.error for request in done] == [None, None]
        for kernel in kernels:
            kernel.close()
        return costs() - before


def test_read_costs_the_same_calls_as_in_one_process(tmp_path: Path, house: House) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    with House(tmp_path) as near:
        in_process = read_costs((near.server.port, near.client.port), near, image)
    doors = [house.door(house.server), house.door(house.client)]
    house.gateway.start()
    ports = [RemotePort.connect(door.path, limit=10.0) for door in doors]
    for port in ports:
        house.at_end(port.close)
    through_gateway = read_costs((ports[0], ports[1]), house, image)
    assert through_gateway["hcalls"] == in_process["hcalls"]
    assert sum(in_process["hcalls"].values()) == 13


# -- what the partition is told


def test_port_says_of_the_partition_what_its_own_port_says(house: House) -> None:
    """G1.4, G3.4, G4.1"""
    port = entered(house)
    own = house.client.port
    assert not any(os.get_blocking(fd) for fd in port.vectors)
    assert (port.partition_id, port.partition_name) == (own.partition_id, own.partition_name)
    assert dict(port.nodes) == dict(own.nodes)
    assert (port.tree_source, port.max_virtual_dma_size) == (own.tree_source, own.max_virtual_dma_size)
    assert len(port.memory) == len(own.memory)
    port.memory[4096:4100] = b"mine"
    assert bytes(own.memory[4096:4100]) == b"mine"


def test_several_hcalls_go_by_one_doorbell(house: House) -> None:
    """G5.3"""
    port = entered(house)
    window = next(iter(port.nodes.values())).windows[0]
    results = port.batch([(Hcall.H_PUT_TCE, window.liobn, page << 12, page << 12 | 3) for page in range(1, 60)])
    assert [result[0] for result in results] == [0] * 59
    assert port.get_tce(window.liobn, 59 << 12) == (0, 59 << 12 | 3)
    with pytest.raises(LocalError, match="64 slots"):
        port.batch([(Hcall.H_XIRR,)] * 65)


def test_adapter_that_comes_and_goes_is_told_by_the_tree(house: House) -> None:
    """G7.2"""
    port = entered(house)
    kernel = PartitionKernel(port)
    house.at_end(kernel.close)
    changes: list[int] = []
    kernel.watch_tree(lambda: changes.append(len(port.nodes)))
    server, _ = house.hypervisor.create_pair(house.server, house.client)
    kernel.wait(10)
    kernel.poll()
    house.hypervisor.remove_pair(server)
    kernel.wait(10)
    kernel.poll()
    assert changes == [2, 1]
    assert dict(port.nodes) == dict(house.client.port.nodes)


def test_adapter_that_is_to_be_let_go_of_is_still_the_same_one(house: House) -> None:
    """G3.5"""
    port = entered(house)
    (before,) = port.nodes.values()
    for wanted in (True, False):
        port.watch_tree()
        house.hypervisor.ask_release(house.client_adapter, wanted=wanted)
        interrupt = port.xirr()
        assert interrupt & 0xFF_FFFF == port.tree_source
        port.eoi(interrupt)
        port.watch_tree()
        (node,) = port.nodes.values()
        assert (node, node.release) == (before, wanted)


def test_tree_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """G7.2"""
    with House(tmp_path) as house:
        door = house.gateway.add(house.client, str(tmp_path / "door"), region_size=layout.MIN_REGION)
        house.gateway.start()
        port = RemotePort.connect(door.path, limit=10.0)
        house.at_end(port.close)
        for _ in range(200):
            house.hypervisor.create_pair(house.server, house.client, client_window=1 << 20, server_window=1 << 20)
        assert port.hcall(layout.G_TREE)[0] == ReturnCode.H_NOT_ENOUGH_RESOURCES
        assert len(port.nodes) == 1


def test_source_that_is_directed_has_a_vector_of_its_own(house: House) -> None:
    """G6.1, G6.2, G6.3, G7.1, G7.3, G7.4"""
    port = entered(house)
    before = house.client.ledger.snapshot()["hcalls"]
    port.hcall(layout.G_TREE)
    assert house.client.ledger.snapshot()["hcalls"] == before
    assert house.client.port.hcall(layout.G_TREE)[0] == ReturnCode.H_FUNCTION
    node = next(iter(port.nodes.values()))
    with pytest.raises(LocalError, match="returned -2"):
        port.direct(node.interrupt, 2)
    assert port.hcall(layout.G_FEATURES, 1 << 63)[0] == ReturnCode.H_PARAMETER
    port.accept_features(layout.FEATURE_DIRECT)
    assert port.hcall(layout.G_DIRECT, 0x999999, 2)[0] == ReturnCode.H_PARAMETER
    for vector in (0, 4, 1 << 40):
        assert port.hcall(layout.G_DIRECT, node.interrupt, vector)[0] == ReturnCode.H_P2
    port.direct(node.interrupt, 2)
    port.put_tce(node.windows[0].liobn, 0, 4096 | 3)
    assert port.reg_crq(node.unit_address, 0, 4096) == ReturnCode.H_CLOSED
    port.vio_signal(node.unit_address, 1)
    interrupts = house.client_adapter.ledger.snapshot()["interrupts"]
    house.client_adapter.deliver(TransportEvent.PARTNER_DEREGISTERED)
    assert os.eventfd_read(port.vectors[2]) == 1
    assert int.from_bytes(port.memory[4096:4104], "big") == event_element(TransportEvent.PARTNER_DEREGISTERED)
    assert port.xirr() & 0xFFFFFF == 0
    assert house.client_adapter.ledger.snapshot()["interrupts"] == interrupts + 1
    house.client_adapter.deliver(TransportEvent.PARTNER_DEREGISTERED)  # no H_EOI is needed in between
    assert os.eventfd_read(port.vectors[2]) == 1
    port.direct(node.interrupt, 1)
    house.client_adapter.deliver(TransportEvent.PARTNER_DEREGISTERED)
    assert port.xirr() & 0xFFFFFF == node.interrupt
    with pytest.raises(BlockingIOError):
        os.eventfd_read(port.vectors[2])


# -- who may, and what a door takes


def test_other_users_are_refused(tmp_path: Path) -> None:
    """G1.1"""
    with House(tmp_path) as house:
        door = house.gateway.add(house.client, str(tmp_path / "door"), users=[os.geteuid() + 1])
        house.gateway.start()
        with pytest.raises(LocalError, match="cannot be entered"):
            RemotePort.connect(door.path)


def test_process_that_says_something_else_is_left(house: House) -> None:
    """G4.1"""
    door = house.door(house.client)
    house.gateway.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(door.path)
        while client.recv(8) != b"\x01" + bytes(7):
            pass
        client.sendall(b"whatever")
        while client.recv(64):
            pass
    wait_until(lambda: not door.attached, "the session goes on")
    port = RemotePort.connect(door.path, limit=10.0)  # and the next one is let in
    assert port.check()
    port.close()


def test_path_that_cannot_be_a_door_is_told(house: House, tmp_path: Path) -> None:
    (tmp_path / "client1.door").write_text("")
    with pytest.raises(LocalError, match="Address already in use"):
        house.door(house.client)


# -- memory that is a file


def test_memory_is_a_file_that_both_have_mapped(tmp_path: Path) -> None:
    """G3.1, G3.3: as QEMU has it. What is in it is left alone when the process goes."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(MIB))
    with House(tmp_path) as house:
        guest = house.hypervisor.adopt_partition("guest", SharedFile.open(str(path)))
        door = house.door(guest)
        house.gateway.start()
        port = RemotePort.connect(door.path, memory_path=str(path), limit=10.0)
        port.memory[100:104] = b"here"
        assert bytes(guest.memory[100:104]) == b"here"
        port.close()
        wait_until(lambda: not door.attached, "the session goes on")
        assert path.read_bytes()[100:104] == b"here"


@pytest.mark.parametrize("size", [0, 100, 4097])
def test_file_that_is_no_memory_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(size))
    with pytest.raises(LocalError, match="a positive multiple of 4096 is needed"):
        SharedFile.open(str(path))
    with pytest.raises(LocalError, match="Is a directory"):
        SharedFile.open(str(tmp_path))
    with pytest.raises(LocalError, match="no regular file"):
        SharedFile.open("/dev/null")


# -- a hypervisor that does not answer


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A hypervisor in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HYPERVISOR, str(tmp_path / "door")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def stopped(process: subprocess.Popen[bytes]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_stopped_hypervisor_is_busy_and_goes_on(
    tmp_path: Path, stranger: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """G5.10, G5.11"""
    port = RemotePort.connect(str(tmp_path / "door"), limit=0.1)
    node = next(iter(port.nodes.values()))
    assert port.xirr() == 0xFF00_0000
    stranger.send_signal(signal.SIGSTOP)
    wait_until(lambda: stopped(stranger), "it does not stop")
    begin = time.monotonic()
    assert port.send_crq(node.unit_address, 0x8000 << 48, 0) == ReturnCode.H_BUSY
    assert f"did not answer hcall {int(Hcall.H_SEND_CRQ):#x} within 0.1 s" in caplog.text
    assert port.xirr() == 0xFF00_0000
    assert os.eventfd_read(port.interrupt_fd) == 1  # it is to be asked again
    assert port.eoi(0xFF00_0000 | node.interrupt) == ReturnCode.H_BUSY
    assert port.put_tce(node.windows[0].liobn, 4096, 4096 | 3) == ReturnCode.H_BUSY
    codes = [result[0] for result in port.batch([(Hcall.H_XIRR,)] * 64)]
    assert set(codes) == {ReturnCode.H_BUSY}
    assert time.monotonic() - begin < 30  # each has its own limit, and none waits for ever
    stranger.send_signal(signal.SIGCONT)
    port.limit = 10.0
    assert port.get_tce(node.windows[0].liobn, 4096) == (0, 0)  # what was withdrawn was not carried out
    assert port.put_tce(node.windows[0].liobn, 4096, 4096 | 3) == 0
    assert port.lost is None
    port.close()


def test_killed_hypervisor_is_told_at_once(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    """G1.6"""
    port = RemotePort.connect(str(tmp_path / "door"), limit=60.0)
    stranger.kill()
    stranger.wait()
    assert port.cppr(0) == ReturnCode.H_HARDWARE
    assert port.lost == "the hypervisor has closed the partition's connection"
    assert not port.check()
    assert port.xirr() == 0xFF00_0000
    assert {result[0] for result in port.batch([(Hcall.H_XIRR,)] * 2)} == {ReturnCode.H_HARDWARE}
    port.close()


def test_nobody_behind_a_door_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="No such file"):
        RemotePort.connect(str(tmp_path / "door"))


SHRINKS = """
import json, os, sys, time
from powervio.gateway.remote_port import RemotePort
from powervio.gateway.server import Gateway
from powervio.memory.shared_file import SharedFile
from powervio.papr.crq import TransportEvent
from powervio.phyp.hypervisor import Hypervisor
path, door_path, touched = sys.argv[1:]
with Hypervisor() as hypervisor, Gateway() as gateway:
    server = hypervisor.create_partition("vios1", 1 << 20)
    guest = hypervisor.adopt_partition("guest", SharedFile.open(path))
    _, adapter = hypervisor.create_pair(server, guest)
    door = gateway.add(guest, door_path)
    gateway.start()
    port = RemotePort.connect(door_path, memory_path=path, limit=10.0)
    node = next(iter(port.nodes.values()))
    port.put_tce(node.windows[0].liobn, 0, 0x40000 | 3)
    port.reg_crq(node.unit_address, 0, 4096)
    os.truncate(path, 4096)
    if touched == "touched":
        with hypervisor.lock:
            adapter.deliver(TransportEvent.PARTNER_DEREGISTERED)  # the hypervisor writes where nothing is any more
    end = time.monotonic() + 30
    while door.attached and time.monotonic() < end:
        time.sleep(0.01)
    try:
        RemotePort.connect(door_path, memory_path=path)
        refused = ""
    except Exception as error:
        refused = str(error)
    print(json.dumps([door.attached, guest.area.lost, adapter.registered, refused]))
"""


@pytest.mark.parametrize("how", ["touched", "idle"])
def test_memory_file_that_is_cut_off_ends_the_partition_and_not_the_hypervisor(tmp_path: Path, how: str) -> None:
    """G3.3. In a program of its own, for the guard is that of its process; compiled, for interpreted there is none."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(MIB))
    environment = {name: value for name, value in os.environ.items() if name != "POWERVIO_INTERPRETED"}
    ended = subprocess.run(
        [sys.executable, "-c", SHRINKS, str(path), str(tmp_path / "door"), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    attached, lost, registered, refused = json.loads(ended.stdout)
    assert (attached, lost, registered) == (False, True, False)
    assert "cannot be entered" in refused
