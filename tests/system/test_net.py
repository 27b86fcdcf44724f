"""Client partitions on virtual Ethernet, as root: TAPs in namespaces, with the programs that people use there."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from powervio.attach.netns import FOLDER, Namespace
from powervio.system.load import ConfigError, parse

from .harness import House, wait_for

LIMIT = 30
P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
MARK = b"\x88\xb5"
"""EtherType of frames of the tests' own."""


def names(count: int) -> list[str]:
    return [f"pv{os.getpid()}-{number}" for number in range(count)]


@pytest.fixture(autouse=True)
def namespaces_go() -> Iterator[None]:
    """Systems of these tests are killed at the end, which leaves their namespaces."""
    yield
    for name in names(4):
        if (FOLDER / name).exists():
            subprocess.run(["ip", "netns", "del", name], check=True)


def declare(house: House, *clients: str, vios: str = "") -> str:
    """A system of client partitions with one adapter each, in namespaces of their own; the file's name."""
    text = f'[[vios]]\nname = "vios1"\n{vios}\n'
    for number, (name, options) in enumerate(zip(names(4), clients, strict=False)):
        text += f'[[lpar]]\nname = "client{number}"\nmemory = "32M"\n[[lpar.net]]\nvios = "vios1"\n'
        text += f'netns = "{name}"\ntap = "eth0"\naddress = "192.0.2.{number + 1}/24"\n{options}\n'
    (house.folder / "one.toml").write_text(text)
    return "one.toml"


def inside(name: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ip", "netns", "exec", name, *words], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def ping(name: str, address: str, *, count: int = 3, size: int = 56) -> None:
    inside(name, "ping", "-q", "-c", str(count), "-i", "0.01", "-W", "5", "-s", str(size), address)


@contextmanager
def iperf_server(name: str) -> Iterator[None]:
    server = subprocess.Popen(
        ["ip", "netns", "exec", name, "iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if "listening" in line:
                break
        yield
        server.communicate(timeout=LIMIT)
    finally:
        server.kill()
        server.communicate()


def iperf(client: str, server: str, *options: str) -> dict[str, Any]:
    """Run iperf3 between two namespaces; what its end says."""
    with iperf_server(server):
        address = f"192.0.2.{names(4).index(server) + 1}"
        output = inside(client, "iperf3", "-J", "-c", address, *options).stdout
    end: dict[str, Any] = json.loads(output)["end"]
    return end


def net_of(house: House, number: int) -> dict[str, Any]:
    """What `ps` says of a client's adapter."""
    for adapter in house.ps()["adapters"]:
        if adapter["role"] == "client" and adapter["partition"] == f"client{number}":
            found: dict[str, Any] = adapter["net"]
            return found
    raise AssertionError(number)


class Ear:
    """Everything that an interface of a namespace gets or sends, and a way to send."""

    def __init__(self, name: str) -> None:
        self._namespace = Namespace(name, "test")
        self._socket = self._namespace.run(self._open)

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(P_ALL))
        made.bind(("eth0", P_ALL))
        made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        made.settimeout(0)
        return made

    def send(self, destination: bytes, payload: bytes, vlan: int | None = None) -> None:
        mac = self._socket.getsockname()[4]
        tag = b"" if vlan is None else b"\x81\0" + vlan.to_bytes(2, "big")
        self._socket.send(destination + mac + tag + MARK + payload.ljust(46, b"\0"))

    def heard(self) -> list[tuple[int | None, bytes]]:
        """VLAN and first bytes of frames of the tests' own that came in since the last time."""
        found: list[tuple[int | None, bytes]] = []
        while True:
            try:
                data, extra, _, address = self._socket.recvmsg(65536, 64)
            except BlockingIOError:
                return found
            if address[2] == socket.PACKET_OUTGOING or data[12:14] != MARK:
                continue
            vlan = None
            for level, kind, value in extra:
                if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                    status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", value)
                    vlan = tci & 0xFFF if status & 0x10 else None  # TP_STATUS_VLAN_VALID
            found.append((vlan, data[14:].rstrip(b"\0")))

    def wait(self, count: int = 1) -> list[tuple[int | None, bytes]]:
        found: list[tuple[int | None, bytes]] = []
        deadline = time.monotonic() + LIMIT
        while len(found) < count:
            assert time.monotonic() < deadline, found
            found += self.heard()
            time.sleep(0.005)
        return found

    def close(self) -> None:
        self._socket.close()
        self._namespace.close()


BROADCAST = b"\xff" * 6


@pytest.mark.parametrize(
    "options", ["", "revision = 0", 'revision = 0\nbyteorder = "big"', "offloads = false", "mtu = 9000"]
)
def test_ping_and_iperf_both_ways(house: House, options: str) -> None:
    first, second = names(2)
    house.up(declare(house, options, options))
    for size in (56, 1472, 8000):
        ping(first, "192.0.2.2", size=size)
        ping(second, "192.0.2.1", size=size)
    for way in ((), ("-R",)):
        assert iperf(first, second, "-n", "8M", *way)["sum_sent"]["bytes"] >= 8 << 20
    # as fast as it goes, so some may be lost on the way; what arrives is counted
    assert iperf(second, first, "-u", "-n", "200K", "-l", "1400", "-b", "20M")["sum"]["lost_packets"] == 0
    reports = [net_of(house, number)["driver"] for number in range(2)]
    assert min(report["received_bytes"] for report in reports) > 4 << 20
    assert not any(reason in report["lost"] for report in reports for reason in ("malformed", "too short", "refused"))


def test_vlans_cannot_hear_each_other_but_a_tagged_port_hears_both(house: House) -> None:
    house.up(declare(house, "pvid = 10", "pvid = 20", "pvid = 1\nvlans = [10, 20]", "pvid = 10"))
    ten, twenty, tagged, also_ten = ears = [Ear(name) for name in names(4)]
    try:
        ten.send(BROADCAST, b"from ten")
        twenty.send(BROADCAST, b"from twenty")
        assert sorted(tagged.wait(2)) == [(10, b"from ten"), (20, b"from twenty")]
        assert also_ten.wait() == [(None, b"from ten")]
        tagged.send(BROADCAST, b"to ten", 10)
        tagged.send(BROADCAST, b"to twenty", 20)
        tagged.send(BROADCAST, b"to nobody", 30)
        tagged.send(BROADCAST, b"untagged")
        ten.send(BROADCAST, b"with a tag", 20)  # its port has no such VLAN
        assert ten.wait() == [(None, b"to ten")]
        assert twenty.wait() == [(None, b"to twenty")]
        # each hears what comes last, so it would have heard what came before
        ten.send(BROADCAST, b"last")
        tagged.send(BROADCAST, b"last", 20)
        assert also_ten.wait(2) == [(None, b"to ten"), (None, b"last")]
        assert twenty.wait() == [(None, b"last")]
        assert tagged.wait() == [(10, b"last")]
        assert ten.heard() == []
    finally:
        for ear in ears:
            ear.close()
    assert inside(names(1)[0], "ping", "-c", "1", "-W", "0.3", "192.0.2.2", check=False).returncode == 1


def test_adapters_at_different_switches_are_apart(house: House) -> None:
    house.up(declare(house, "", 'switch = "ETHERNET1"', ""))
    ears = [Ear(name) for name in names(3)]
    try:
        ears[0].send(BROADCAST, b"one")
        assert ears[2].wait() == [(None, b"one")]
        assert ears[1].heard() == []
    finally:
        for ear in ears:
            ear.close()


def test_traffic_goes_on_after_the_server_failed_and_booted(house: House) -> None:
    first, second = names(2)
    house.up(declare(house, "", ""))
    before = net_of(house, 0)
    with iperf_server(second):
        client = subprocess.Popen(
            ["ip", "netns", "exec", first, "iperf3", "-J", "-c", "192.0.2.2", "-t", "3"],
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: net_of(house, 1)["driver"]["received_bytes"] > 1 << 20)
        house.ok("terminate", "vios1")
        assert "NO-CARRIER" in inside(first, "ip", "link", "show", "eth0").stdout
        house.ok("activate", "vios1")
        output, _ = client.communicate(timeout=LIMIT)
    assert client.returncode == 0
    assert json.loads(output)["intervals"][-1]["sum"]["bytes"] > 0
    ping(second, "192.0.2.1")
    after = net_of(house, 0)
    assert after["mac"] == before["mac"]
    assert after["driver"]["sent_bytes"] > before["driver"]["sent_bytes"]


def test_nothing_is_left_and_what_a_kill_left_is_taken_over(house: House) -> None:
    first, second = names(2)
    subprocess.run(["ip", "netns", "add", second], check=True)  # this one was there
    file = declare(house, "", "")
    process = house.up(file)
    assert (FOLDER / first).exists()
    process.kill()
    process.wait()
    assert (FOLDER / first).exists()
    assert "does not exist" in inside(first, "ip", "link", "show", "eth0", check=False).stderr
    process = house.up(file)
    ping(first, "192.0.2.2")
    house.end(process)
    assert not (FOLDER / first).exists()
    assert (FOLDER / second).exists()
    assert "does not exist" in inside(second, "ip", "link", "show", "eth0", check=False).stderr
    subprocess.run(["ip", "netns", "del", second], check=True)


def test_interface_that_is_there_already_is_told(house: House) -> None:
    (first,) = names(1)
    subprocess.run(["ip", "netns", "add", first], check=True)
    try:
        inside(first, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        said = house.refused("up", "-d", declare(house, ""))
        assert "TAP eth0: there is an interface of that name that is no TAP" in said
        assert "lpar[0].net[0]" in said
    finally:
        subprocess.run(["ip", "netns", "del", first], check=True)


def test_ps_and_up_tell_of_adapters(house: House) -> None:
    said = house.ok("up", "-d", declare(house, "pvid = 10\nvlans = [20]\ngateway = '192.0.2.9'", ""))
    (first, _) = names(2)
    assert f"eth0 in namespace {first}: 192.0.2.1/24" in said
    assert "default via 192.0.2.9" in inside(first, "ip", "route").stdout
    told = house.ok("ps")
    assert f"client0/2: eth0 in namespace {first}, VLAN 10 (20 tagged) of ETHERNET0" in told
    house.ok("down")


NET = """
[[vios]]
name = "vios1"
[[vios]]
name = "vios2"
process = true
[[lpar]]
name = "client1"
[[lpar.net]]
vios = "vios1"
tap = "eth0"
OPTIONS
[[lpar.net]]
vios = "vios1"
tap = "eth1"
mac = "02:00:00:00:00:01"
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('address = "192.0.2.1"', 'address: "192.0.2.1" has no prefix length'),
        ('address = "192.0.2.300/24"', 'address: "192.0.2.300/24" is no address'),
        ('address = "192.0.2.0/24"', "address: 192.0.2.0/24 is the network's own"),
        ('address = ["192.0.2.1/24", "192.0.2.1/24"]', "address: one is there twice"),
        ('address = "2001:db8::1/64"\nmtu = 1000', "mtu: 1000; IPv6 needs 1280 or more"),
        ('address = "192.0.2.1/24"\ngateway = "198.51.100.1"', "gateway: 198.51.100.1 is on none of"),
        ('gateway = "here"', "gateway: 'here' does not appear to be an IPv4 or IPv6 address"),
        ("pvid = 4095", "pvid"),
        ("pvid = 0", "pvid"),
        ("vlans = [5000]", "vlans"),
        ("vlans = [1]", "vlans: 1 is the pvid"),
        ("vlans = [7, 7]", "vlans: one is there twice"),
        ('netns = "../etc"', 'netns: "../etc" cannot be the name of a namespace'),
        ('mac = "01:00:5e:00:00:01"', "is no address of one device"),
        ('mac = "02-00-00-00-00-01"', "mac: 02:00:00:00:00:01 is that of"),
        ('socket = "x.sock"', "socket: programs use a network adapter by its interface"),
        ("burst = 1000000", "burst: it limits nothing without rate"),
        ("mtu = 60", "mtu"),
        ('revision = 1\nbyteorder = "big"', "byteorder"),
    ],
)
def test_mistake_is_told(tmp_path: Path, options: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(NET.replace("OPTIONS", options), "s.toml", tmp_path)
    (problem,) = caught.value.problems
    assert expected in problem
    assert "lpar[0].net[" in problem


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"eth1"', '"eth0"', "net[1].tap: eth0 in the host's own namespace is that of lpar[0].net[0] already"),
        ('tap = "eth1"', 'netns = "c1"', "net[1].netns: it is about an interface; expected tap beside it"),
        ('"eth1"', '"a/b"', 'net[1].tap: "a/b" cannot be the name of an interface'),
        ('vios = "vios1"\ntap = "eth1"', 'vios = "vios2"', "vios2 is a process of its own, and serves disks only"),
        ('name = "client1"', 'name = "client1"\nguest = "door"', "net[0].tap: the partition is a guest"),
    ],
)
def test_mistake_beside_others_is_told(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = NET.replace("OPTIONS", "").replace(old, new)
    with pytest.raises(ConfigError) as caught:
        parse(text, "s.toml", tmp_path)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems


def test_who_is_not_root_is_told_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"net\[0\]\.tap: an interface takes root"):
        parse(NET.replace("OPTIONS", ""), "s.toml", tmp_path)


def test_addresses_of_adapters_are_their_own_and_stay(tmp_path: Path) -> None:
    from powervio.system.net_section import Place, hardware_address

    config = parse(NET.replace("OPTIONS", ""), "s.toml", tmp_path)
    first, second = (declared for _, _, _, declared in config.devices())

    def place(client: str, number: int) -> Place:
        return Place("s", client, number, pytest.fail, pytest.fail)

    found = {hardware_address(first, place(client, number)) for client in ("a", "b") for number in (0, 1)}
    assert len(found) == 4
    assert all(mac[0] & 3 == 2 for mac in found)
    assert hardware_address(first, place("a", 0)) in found
    assert hardware_address(second, place("a", 0)) == bytes.fromhex("020000000001")
