"""Several adapters of one switch in one process: DPDK's driver at both ends of the forwarding loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.vhost_user.testpmd import LIMIT, PROMPT, Testpmd, until

from powervio.attach.unix_socket import UnixListener
from powervio.errors import LocalError
from powervio.network.frame import Frame
from powervio.network.switch import PortOptions
from powervio.system.vhost_user import NetSwitch, SwitchedPort
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.server import Server
from powervio.virtio.net import parse_mac

OFFERED = BackEndOptions(packed=True, in_order=True)
DIRECT = BackEndOptions(packed=True, in_order=True, indirect=False)


class Served:
    """A switch whose ports are served in a thread."""

    def __init__(self, folder: Path, ports: list[SwitchedPort], options: BackEndOptions = OFFERED) -> None:
        self.switch = NetSwitch(ports)
        self.paths = [Path(path) for path in self.switch.paths]
        self._undo = ExitStack()
        self.loop = Loop()
        self.servers = []
        for path, device in zip(self.switch.paths, self.switch.devices, strict=True):
            listener = UnixListener(path)
            self._undo.callback(listener.close)
            self.servers.append(Server(device, self.loop, listener.socket, options))
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        done = threading.Event()

        def end() -> None:
            for server in self.servers:
                server.close()
            done.set()

        self.loop.call_soon_threadsafe(end)
        assert done.wait(LIMIT)
        self.loop.stop()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        self.loop.close()
        self.switch.close()
        self._undo.close()
        assert [server.failures for server in self.servers] == [[] for _ in self.servers]


@contextmanager
def served(folder: Path, *ports: str, options: BackEndOptions = OFFERED) -> Iterator[Served]:
    made = Served(
        folder, [SwitchedPort.parse(f"{folder}/{number}.sock{port}") for number, port in enumerate(ports)], options
    )
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(back: Served, options: str, *more: str) -> Iterator[Testpmd]:
    made = Testpmd(back.paths, options, *more)
    try:
        # the program is ready when it has said everything, not when all of it was heard: what is sent before is lost
        until(lambda: all(device._receive_queue() is not None for device in back.switch.devices))
        yield made
        made.close()
    finally:
        made.kill()


MODES = [
    "packed_vq=0,in_order=0,mrg_rxbuf=1",
    "packed_vq=0,in_order=0,mrg_rxbuf=0",
    "packed_vq=0,in_order=1,mrg_rxbuf=1",
    "packed_vq=0,in_order=0,mrg_rxbuf=0,vectorized=1",
    "packed_vq=1,in_order=0,mrg_rxbuf=1",
    "packed_vq=1,in_order=0,mrg_rxbuf=0",
    "packed_vq=1,in_order=1,mrg_rxbuf=1",
    "packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1",
]


def settled(program: Testpmd, back: Served) -> list[tuple[int, int]]:
    """Have the driver take whatever is on its way to it; what its ports count then."""
    program.forward("rxonly")
    deadline = time.monotonic() + LIMIT
    while True:
        seen = [program.counters_of(number) for number in range(len(back.paths))]
        ours = [
            (device.from_driver.frames + device.from_driver.lost, device.to_driver.frames)
            for device in back.switch.devices
        ]
        if seen == ours:
            break
        assert time.monotonic() < deadline, (seen, ours, back.switch.report())
        time.sleep(0.02)
    program.stop()
    return seen


@pytest.mark.parametrize("options", MODES)
def test_frames_go_from_ring_to_ring_and_all_are_counted(tmp_path: Path, options: str) -> None:
    with served(tmp_path, "", "", options=DIRECT) as back, running(back, options) as program:
        devices = back.switch.devices
        until(lambda: sum(len(list(device._loops)) for device in devices) == 4)
        program.forward("io", "start tx_first 4")
        until(lambda: min(device.to_driver.frames for device in devices) > 5000)
        program.stop()
        (sent0, received0), (sent1, received1) = settled(program, back)
        for device, sent, received in ((devices[0], sent0, received1), (devices[1], sent1, received0)):
            counters = device.from_driver
            assert counters.frames + counters.lost == sent
            assert counters.frames == received
            assert counters.bytes == 64 * counters.frames
        loops = [loop for device in devices for loop in device._loops]
        assert [loop.queue.handed_over for loop in loops] == [0] * 4


@pytest.mark.parametrize("options", ["packed_vq=0", "packed_vq=1", "packed_vq=1,in_order=1"])
def test_frames_in_pieces_go_over_several_small_buffers(tmp_path: Path, options: str) -> None:
    with (
        served(tmp_path, "", "", options=DIRECT) as back,
        running(back, options, "--mbuf-size=640", "--enable-scatter") as program,
    ):
        devices = back.switch.devices
        program.run("set txpkts 500,500,400", PROMPT)
        program.forward("io", "start tx_first 2")
        until(lambda: min(device.to_driver.frames for device in devices) > 3000)
        program.stop()
        settled(program, back)
        for device in devices:
            assert device.to_driver.bytes == 1400 * device.to_driver.frames


def test_ports_in_different_vlans_hear_nothing_of_each_other(tmp_path: Path) -> None:
    with served(tmp_path, ",pvid=10", ",pvid=20") as back, running(back, "packed_vq=0") as program:
        program.forward("txonly")
        until(lambda: all(device.from_driver.lost > 1000 for device in back.switch.devices))
        program.stop()
        assert [device.to_driver.frames for device in back.switch.devices] == [0, 0]


@pytest.mark.parametrize("options", ["packed_vq=0", "packed_vq=1"])
def test_tags_are_put_in_and_taken_out_on_the_way(tmp_path: Path, options: str) -> None:
    with (
        served(tmp_path, ",pvid=10", ",pvid=1,vlans=10", options=DIRECT) as back,
        running(back, options, "--port-topology=loop") as program,  # each port gives back what it gets
    ):
        devices = back.switch.devices
        program.forward("io", "start tx_first 4")
        until(lambda: min(device.to_driver.frames for device in devices) > 2000)
        program.stop()
        settled(program, back)
        for device, length in zip(devices, (64, 68), strict=True):
            assert device.to_driver.bytes == length * device.to_driver.frames


def test_receiver_that_takes_nothing_misses_frames_and_holds_up_nobody(tmp_path: Path) -> None:
    with served(tmp_path, "", "") as back, running(back, "packed_vq=0,queue_size=256") as program:
        program.forward("txonly")
        until(lambda: back.switch.devices[0].from_driver.lost > 10_000)
        program.stop()
        one, other = back.switch.devices  # what is in the ring is still taken, and counted at both
        until(lambda: other.to_driver.dropped["no buffers"] == one.from_driver.dropped["port"])
        until(lambda: other.to_driver.frames == one.from_driver.frames)


def test_port_that_is_no_ring_gets_and_gives_frames(tmp_path: Path) -> None:
    with served(tmp_path, "", "") as back, running(back, "packed_vq=0") as program:
        other = back.switch.switch.add(PortOptions(name="other"))
        program.forward("rxonly")
        frame = b"\xff" * 6 + parse_mac("02:00:00:00:00:77") + b"\x88\xb5" + bytes(50)
        for _ in range(20):
            assert other.send(Frame(frame))
        until(lambda: [device.to_driver.frames for device in back.switch.devices] == [20, 20])
        program.stop()
        program.forward("txonly")
        until(lambda: other.waiting > 100)
        program.stop()
        found = other.receive()
        assert found is not None
        assert len(found.data) == 64


def test_driver_that_comes_after_another_is_served(tmp_path: Path) -> None:
    with served(tmp_path, "", "") as back:
        for options in ("packed_vq=0", "packed_vq=1"):
            with running(back, options) as program:
                before = back.switch.devices[1].to_driver.frames
                program.forward("io", "start tx_first 1")
                until(lambda before=before: back.switch.devices[1].to_driver.frames > before + 500)  # type: ignore[misc]
                program.stop()
                program.run("port stop 0", "Done")
                program.run("port start 0", "Done")
        assert back.switch.forwarder._thread is None if hasattr(back.switch.forwarder, "_thread") else True


@pytest.mark.parametrize(
    "text", ["", ",pvid=1", "a,pvid=x", "a,pvid=1,pvid=2", "a,colour=red", "a,vlans=1+x", "a,mac=zz"]
)
def test_port_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(LocalError):
        SwitchedPort.parse(text)


def test_two_ports_at_one_socket_are_refused() -> None:
    with pytest.raises(LocalError, match="same socket"):
        NetSwitch([SwitchedPort("a"), SwitchedPort("a")])
