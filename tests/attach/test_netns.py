"""Namespaces by name, and TAPs in them, with a device on a wire."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from powervio.attach.netns import FOLDER, Namespace
from powervio.attach.rtnetlink import RouteSocket
from powervio.attach.tap import TapAttachment, TapOptions, announcements
from powervio.devices.net import NetDevice
from powervio.drivers.net import NetDriver
from powervio.errors import LocalError
from powervio.network.port import Frame, Port
from powervio.testing.direct import DirectLink

NAME = f"pv-test-{os.getpid()}"
MACS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def run(*words: str, namespace: str = NAME) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *words], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def name() -> Iterator[str]:
    yield NAME
    if (FOLDER / NAME).exists():
        subprocess.run(["ip", "netns", "del", NAME], check=True)


def test_namespace_that_is_made_goes_with_its_maker(name: str) -> None:
    namespace = Namespace(name, "one")
    assert namespace.made
    assert name in subprocess.check_output(["ip", "netns"], text=True)
    shown = run("ip", "link", "show", "lo")
    assert "UP" in shown
    assert "powervio: made for one" in shown
    assert namespace.run(lambda: os.readlink("/proc/thread-self/ns/net")) != os.readlink("/proc/self/ns/net")
    namespace.close()
    assert not (FOLDER / name).exists()


def test_namespace_that_was_there_stays(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True)
    namespace = Namespace(name, "one")
    assert not namespace.made
    namespace.close()
    assert (FOLDER / name).exists()


def test_what_a_killed_maker_left_is_taken_over(name: str) -> None:
    killed = Namespace(name, "one")
    os.close(killed._fd)
    other = Namespace(name, "two")
    assert not other.made
    other.close()
    assert (FOLDER / name).exists()
    (FOLDER / f"{name}-file").touch()
    again = Namespace(name, "one")
    assert again.made
    again.close()
    assert not (FOLDER / name).exists()
    half = Namespace(f"{name}-file", "one")  # stopped between making the file and mounting
    assert half.made
    half.close()
    assert not (FOLDER / f"{name}-file").exists()


def test_failure_inside_comes_out(name: str) -> None:
    namespace = Namespace(name, "one")

    def fail() -> None:
        raise KeyError("inside")

    def look() -> None:
        with closing(RouteSocket()) as route:
            route.find("nothing")

    with pytest.raises(KeyError):
        namespace.run(fail)
    with pytest.raises(OSError, match="No such device"):
        namespace.run(look)
    namespace.close()


# -- TAPs


class Wire(Port):
    """One end; what is sent arrives at the other."""

    name = "wire"

    def __init__(self) -> None:
        super().__init__()
        self.mtu = 1500
        self.other: Wire | None = None
        self.queue: deque[Frame] = deque()

    def send(self, frame: Frame) -> bool:
        assert self.other is not None
        self.other.queue.append(
            Frame(bytes(frame.data), frame.partial, frame.valid, frame.gso, frame.gso_size, frame.header_bytes)
        )
        if self.other.on_arrival is not None:
            self.other.on_arrival()
        return True

    def receive(self) -> Frame | None:
        return self.queue.popleft() if self.queue else None


class Side:
    """A partition: driver, TAP, device, in the test's loop."""

    def __init__(self, options: TapOptions, mac: bytes, port: Port) -> None:
        self.device = NetDevice(port, mac=mac)
        self.driver = NetDriver()
        self.link = DirectLink(self.device, self.driver, schedule=asyncio.get_running_loop().call_soon)
        self.link.connect()
        self.tap = TapAttachment(options, self.driver)

    async def close(self) -> None:
        await self.tap.close()
        self.link.close()


async def two_sides(first: TapOptions, second: TapOptions) -> tuple[Side, Side]:
    ports = Wire(), Wire()
    ports[0].other, ports[1].other = ports[1], ports[0]
    sides = Side(first, MACS[0], ports[0]), Side(second, MACS[1], ports[1])
    for side in sides:
        await side.tap.start()
    return sides


def options(name: str, number: int) -> TapOptions:
    addresses = ip_interface(f"192.0.2.{number}/24"), ip_interface(f"2001:db8::{number}/64")
    return TapOptions("eth0", name, addresses, (ip_address("192.0.2.254"),), "test")


def test_two_namespaces_reach_each_other(name: str) -> None:
    other = f"{name}b"

    async def body() -> None:
        first, second = await two_sides(options(name, 1), options(other, 2))
        shown = run("ip", "address", "show", "eth0")
        assert "02:00:00:00:00:01" in shown
        assert "192.0.2.1/24 brd 192.0.2.255" in shown
        assert "default via 192.0.2.254" in run("ip", "route")
        for address in ("192.0.2.2", "2001:db8::2"):
            await asyncio.to_thread(run, "ping", "-c", "2", "-i", "0.01", "-W", "5", "-s", "1400", address)
        first.link.disconnect()
        assert "NO-CARRIER" in run("ip", "link", "show", "eth0")
        first.link.connect()
        assert "NO-CARRIER" not in run("ip", "link", "show", "eth0")
        await asyncio.to_thread(run, "ping", "-c", "2", "-i", "0.01", "-W", "5", "192.0.2.2")
        await second.close()
        await first.close()

    asyncio.run(asyncio.wait_for(body(), 60))
    assert not (FOLDER / name).exists()
    assert not (FOLDER / other).exists()


def test_what_is_done_to_the_interface_reaches_the_device(name: str) -> None:
    async def body() -> None:
        first, second = await two_sides(options(name, 1), options(f"{name}b", 2))
        run("ip", "link", "set", "eth0", "promisc", "on")
        for _ in range(200):
            if first.driver.promiscuous:
                break
            await asyncio.sleep(0.01)
        assert first.driver.promiscuous
        first.device.set_link(False)
        first.link.run()
        assert "NO-CARRIER" in run("ip", "link", "show", "eth0")
        run("ip", "link", "del", "eth0")
        first.device.set_link(True)
        first.link.run()
        await second.close()
        await first.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_interface_that_somebody_has(name: str) -> None:
    async def body() -> None:
        first, second = await two_sides(options(name, 1), options(f"{name}b", 2))
        third = TapAttachment(options(name, 3), NetDriver())
        with pytest.raises(LocalError, match="TAP eth0: somebody has it already"):
            await third.start()
        await second.close()
        await first.close()

    asyncio.run(asyncio.wait_for(body(), 60))
    assert not Path(FOLDER, name).exists()


def test_announcements_name_the_address() -> None:
    (arp,) = announcements(MACS[0], (ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")))
    assert arp[:14] == b"\xff" * 6 + MACS[0] + b"\x08\x06"
    assert arp[28:32] == arp[38:42] == bytes([192, 0, 2, 1])
    assert len(arp) == 60
    (rarp,) = announcements(MACS[0], ())
    assert rarp[12:14] == b"\x80\x35"
    assert len(rarp) == 60
