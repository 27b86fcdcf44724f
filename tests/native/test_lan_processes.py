"""A logical LAN adapter in a process of its own, behind a gateway's door: frames, a process that is killed, threads."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.gateway.harness import MIB, House, Process, wait_until
from tests.native.lan_rig import EVERYTHING, Rig, ethernet, large, mac, same, tcp

from powervio.gateway.server import Door
from powervio.native.lan import LanAdapter, create_lan, remove_lan
from powervio.native.lan_client import LanPort
from powervio.network.port import Frame, Port
from powervio.network.switch import PortOptions, Switch
from powervio.vio.kernel import PartitionKernel

pytestmark = pytest.mark.dual

LIMIT = 30.0


class LanHouse:
    """An echo behind a door, a client partition of this process, and a device of a VIO server at the switch."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.switch = Switch()
        self.behind = house.hypervisor.create_partition("echo", 16 * MIB)
        self.adapter = create_lan(house.hypervisor, self.behind, self.switch, PortOptions(name="echo", mac=mac(1)))
        self.door: Door = house.door(self.behind)
        self.here = house.hypervisor.create_partition("here", 16 * MIB)
        create_lan(house.hypervisor, self.here, self.switch, PortOptions(name="here", mac=mac(2)))
        self.kernel = PartitionKernel(self.here.port)
        house.at_end(self.kernel.close)
        self.port = LanPort(self.kernel, next(iter(self.here.port.nodes.values())))
        self.port.start()
        self.port.take(EVERYTHING)
        self.device = self.switch.add(PortOptions(name="device", mac=mac(3)))
        self.device.take(EVERYTHING)
        house.gateway.start()

    def start(self) -> Process:
        return self.house.process("lan", self.door)

    def answer(self, port: Port) -> Frame:
        """The next frame that comes."""
        found: list[Frame] = []

        def look() -> bool:
            self.kernel.poll()
            frame = port.receive()
            if frame is not None:
                found.append(frame)
            return bool(found)

        wait_until(look, "no frame came")
        return found[0]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[LanHouse]:
    with House(tmp_path) as house:
        yield LanHouse(house)


def test_frames_go_to_another_process_and_back(lan: LanHouse) -> None:
    process = lan.start()
    for port, own in ((lan.port, mac(2)), (lan.device, mac(3))):
        for frame in (
            Frame(ethernet(mac(1), own, b"hello")),
            Frame(tcp(mac(1), own, 700), (34, 16)),
            large(mac(1), own, 60_000, 1400),
            large(mac(1), own, 30_000, 1400, version=6, flags=0x98),
        ):
            assert port.send(frame)
            back = Frame(
                own + mac(1) + bytes(frame.data[12:]),
                frame.partial,
                frame.valid,
                frame.gso,
                frame.gso_size,
                frame.header_bytes,
            )
            assert same(lan.answer(port), back)
    assert process.ask("counts") == "8 8 0"


def test_killed_process_leaves_the_switch_and_its_successor_goes_on(lan: LanHouse) -> None:
    process = lan.start()
    assert lan.port.send(Frame(ethernet(mac(1), mac(2))))
    lan.answer(lan.port)
    process.popen.send_signal(signal.SIGSTOP)
    for _ in range(20):
        assert lan.port.send(Frame(ethernet(mac(1), mac(2))))
    process.kill()
    wait_until(lambda: [port.name for port in lan.switch.ports] == ["here", "device"], "the port is still there")
    assert not lan.port.send(Frame(ethernet(mac(1), mac(2))))
    assert not lan.adapter.registered
    wait_until(lambda: lan.door.vacant, "the door is not open again")
    again = lan.start()
    assert lan.port.send(Frame(ethernet(mac(1), mac(2), b"again")))
    assert bytes(lan.answer(lan.port).data) == ethernet(mac(2), mac(1), b"again")
    assert again.ask("counts") == "1 1 0"


def test_process_that_stands_still_holds_up_nobody(lan: LanHouse) -> None:
    process = lan.start()
    process.popen.send_signal(signal.SIGSTOP)
    sent = [lan.device.send(Frame(ethernet(mac(1), mac(3), bytes(1400)))) for _ in range(500)]
    assert all(sent)  # the switch took them; the adapter had no buffers for all
    assert lan.adapter.core.drops > 0
    assert lan.device.send(Frame(ethernet(mac(2), mac(3), b"to another")))
    assert bytes(lan.answer(lan.port).data) == ethernet(mac(2), mac(3), b"to another")
    process.popen.send_signal(signal.SIGCONT)
    counts: list[int] = []

    def all_are_counted() -> bool:
        counts[:] = (int(number) for number in process.ask("counts").split())
        return counts[0] + counts[2] == 500

    wait_until(all_are_counted, "frames are neither received nor missed")
    assert counts[1:] == [counts[0], lan.adapter.core.drops]


def in_threads(limit: float, *calls: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), "a thread waits for ever"
    assert failures == []


def test_adapters_devices_and_operators_in_threads_of_their_own() -> None:
    """Nobody waits for anybody: two partitions and two devices send to each other, adapters fail, trunks change."""
    rounds = 400
    with Rig() as rig:
        clients = [rig.client(), rig.client()]
        devices = [rig.switch.add(PortOptions(name=f"device{at}", mac=mac(100 + at))) for at in range(2)]
        trunks = [rig.client(trunk=at + 1) for at in range(2)]
        broken = rig.end()
        everybody = [port.mac for port in clients] + [mac(100), mac(101), b"\xff" * 6, mac(250)]
        rig.switch.activate(next(port for port in rig.switch.ports if port.options.trunk == 1))

        def use(port: Port, source: bytes) -> Callable[[], None]:
            def run() -> None:
                for number in range(rounds):
                    target = everybody[number % len(everybody)]
                    port.send(Frame(ethernet(target, source, bytes(100))))
                    while port.receive() is not None:
                        pass

            return run

        def take_turns() -> None:
            for number in range(rounds // 10):
                trunks[number % 2].activate()
                while trunks[number % 2].receive() is not None:
                    pass

        def fail() -> None:
            for _ in range(rounds // 10):
                broken.try_register()
                rig.hypervisor.fail(broken.partition)
                for page in range(4):
                    broken.port.put_tce(broken.liobn, page * 4096, page * 4096 | 3)

        in_threads(
            LIMIT,
            *(use(port, port.mac) for port in clients),
            *(use(port, mac(100 + at)) for at, port in enumerate(devices)),
            take_turns,
            fail,
        )
        assert not rig.hypervisor.lock.locked()
        for client in clients:
            while client.receive() is not None:
                pass
        assert clients[0].send(Frame(ethernet(clients[1].mac, clients[0].mac, b"last")))
        last = clients[1].receive()
        assert last is not None
        assert bytes(last.data)[14:] == b"last"


def test_adapters_come_and_go_under_traffic() -> None:
    with Rig() as rig:
        client = rig.client()
        device = rig.switch.add(PortOptions(name="device", mac=mac(100)))
        partition = rig.hypervisor.create_partition("changing", 1 << 20)
        seen: list[LanAdapter] = []

        def change() -> None:
            for _ in range(40):
                adapter = create_lan(
                    rig.hypervisor, partition, rig.switch, PortOptions(name="changing", mac=mac(9)), window=1 << 20
                )
                for page in range(4):
                    partition.port.put_tce(adapter.node.windows[0].liobn, page * 4096, page * 4096 | 3)
                partition.port.register_logical_lan(
                    adapter.unit_address, 0, 0x80 << 56 | 256 << 32 | 8192, 4096, int.from_bytes(mac(9), "big")
                )
                seen.append(adapter)
                remove_lan(adapter)

        def send() -> None:
            for _ in range(400):
                device.send(Frame(ethernet(mac(9), mac(100))))
                device.send(Frame(ethernet(b"\xff" * 6, mac(100))))
                while client.receive() is not None:
                    pass

        in_threads(LIMIT, change, send)
        assert len(seen) == 40
        assert {port.name for port in rig.switch.ports} == {"lpar1", "device"}
        assert not partition.slots
