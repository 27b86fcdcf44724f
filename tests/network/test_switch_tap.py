"""The switch between network stacks of the kernel: a TAP in a namespace for each, and a thread that moves frames."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.network.namespace import ip, isolated
from tests.network.test_segment import ALL

from powervio.network.inside import inside
from powervio.network.port import Offload, Port
from powervio.network.switch import PortOptions, Switch, SwitchPort
from powervio.network.tap import TapPort

BYTES = 4 << 20


class Pump:
    """Moves frames between ports and what is plugged into them."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Port, SwitchPort]] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def plug(self, end: Port, port: SwitchPort, offloads: Offload) -> None:
        port.take(offloads)
        end.take(offloads)
        for one in (end, port):
            one.on_arrival = lambda: os.eventfd_write(self._wake, 1)
        self.pairs.append((end, port))

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        for end, _ in self.pairs:
            if end.fileno() >= 0:
                poller.register(end, select.POLLIN)
        while not self._stop:
            poller.poll(10_000)
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            for end, port in self.pairs:
                while (frame := end.receive()) is not None:
                    port.send(frame)
            for end, port in self.pairs:
                while (frame := port.receive()) is not None:
                    end.send(frame)

    def close(self) -> None:
        self._stop = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(20)
        os.close(self._wake)
        for end, port in self.pairs:
            end.close()
            port.close()


@contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    made = [f"powervio-test-{os.getpid()}-{name}" for name in names]
    for name in made:
        ip("netns", "add", name)
    try:
        yield made
    finally:
        for name in made:
            ip("netns", "del", name)


def pings(netns: str, address: str) -> bool:
    """Whether somebody answers, within a second."""
    command = ["ip", "netns", "exec", netns, "ping", "-c", "1", "-W", "1", address]
    return subprocess.run(command, timeout=20, stdout=subprocess.DEVNULL, check=False).returncode == 0


def stream(server_netns: str, client_netns: str, address: str) -> None:
    """A client sends BYTES over TCP, and a server receives them."""
    data = os.urandom(BYTES)

    def listener() -> socket.socket:
        return socket.create_server((address, 5001))

    def client() -> socket.socket:
        return socket.create_connection((address, 5001), 10)

    got = hashlib.sha256()
    with inside(server_netns, listener) as server:
        sending = inside(client_netns, client)
        connection, _ = server.accept()
        connection.settimeout(20)

        def send() -> None:
            with sending:
                sending.sendall(data)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        with connection:
            while part := connection.recv(1 << 16):
                got.update(part)
        thread.join(20)
    assert got.digest() == hashlib.sha256(data).digest()


@isolated
def test_partitions_of_one_vlan_talk_and_those_of_another_hear_nothing() -> None:
    switch, pump = Switch(), Pump()
    with namespaces("a", "b", "c") as names:
        offloads = (Offload(ALL), Offload(0), Offload(ALL))
        for number, (netns, vlan) in enumerate(zip(names, (10, 10, 20), strict=True)):
            tap = TapPort("eth0", netns)
            ip("-n", netns, "addr", "add", f"192.0.2.{number + 1}/24", "dev", "eth0")
            ip("-n", netns, "link", "set", "eth0", "up")
            pump.plug(tap, switch.add(PortOptions(name=netns, pvid=vlan)), offloads[number])
        # a second switch, over a cable for tagged frames
        far = Switch("far")
        tap = TapPort("eth1", names[2])
        ip("-n", names[2], "addr", "add", "192.0.2.4/24", "dev", "eth1")
        pump.plug(tap, far.add(PortOptions(name="d", pvid=10)), Offload(ALL))
        cable = PortOptions(name="cable", pvid=30, vlans=(10,))
        pump.plug(far.add(cable), switch.add(cable), Offload(ALL))
        pump.start()
        assert pings(names[0], "192.0.2.2")
        assert not pings(names[0], "192.0.2.3")
        stream(names[1], names[0], "192.0.2.2")  # large frames, cut for a receiver that takes none
        stream(names[0], names[1], "192.0.2.1")
        alone = switch.ports[2]
        assert alone.received == 0
        ip("-n", names[2], "link", "set", "eth0", "down")
        ip("-n", names[2], "link", "set", "eth1", "up")
        assert pings(names[0], "192.0.2.4")
        stream(names[2], names[0], "192.0.2.4")  # large frames get a tag, and lose it
        stream(names[0], names[2], "192.0.2.1")
        a, b = switch.ports[:2]
        assert a.counters().sent_bytes > 2 * BYTES
        assert a.counters().sent < 2 * BYTES // 1500, "they were large"
        assert set(a.counters().dropped) <= {"no receiver", "queue full"}
        assert b.counters().received > BYTES // 1500
        pump.close()
