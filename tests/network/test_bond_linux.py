"""Link aggregation on the kernel's interfaces, and with the bonding driver of Linux as the other end."""

from __future__ import annotations

import re
import select
import threading
import time
from functools import partial
from pathlib import Path

from tests.network.cables import Cable, CableLink
from tests.network.namespace import ip, isolated
from tests.vhost_user.harness import serving
from tests.vhost_user.linux_guest import make_initramfs, uml, uml_module

from powervio.devices.net import NetDevice
from powervio.network.bond import BondMember, BondOptions, BondPort, make_members
from powervio.network.lacp import Times
from powervio.network.link import InterfaceLink
from powervio.network.packet import PacketPort
from powervio.network.port import Frame, Port
from powervio.network.tap import TapPort

QUICK = Times(fast=0.2, slow=2.0, short=0.6, long=4.0, wait=0.4)
LIMIT = 20.0


def turn(bonds: list[BondPort]) -> list[Frame]:
    """What comes within a moment, and what is due."""
    poller = select.poll()
    for bond in bonds:
        poller.register(bond, select.POLLIN)
    poller.poll(20)
    got = []
    for bond in bonds:
        bond.advance()
        while (frame := bond.receive()) is not None:
            got.append(frame)
    return got


def until_used(bonds: list[BondPort], *expected: tuple[str, ...]) -> None:
    end = time.monotonic() + LIMIT
    while [bond.used for bond in bonds] != list(expected):
        assert time.monotonic() < end, [bond.report() for bond in bonds]
        turn(bonds)


def veths(options: BondOptions) -> list[BondPort]:
    for number in (0, 1):
        ip("link", "add", f"a{number}", "type", "veth", "peer", "name", f"b{number}")
        for side in "ab":
            ip("link", "set", f"{side}{number}", "up")
    return [
        BondPort(f"bond-{side}", make_members([f"{side}0", f"{side}1"], PacketPort, InterfaceLink), options)
        for side in "ab"
    ]


@isolated
def test_bonds_over_interfaces_that_go_down_and_come_back() -> None:
    bonds = veths(BondOptions(times=QUICK, interval=60.0))  # what is heard is heard of the kernel, at once
    until_used(bonds, ("a0", "a1"), ("b0", "b1"))
    ip("link", "set", "b0", "down")
    until_used(bonds, ("a1",), ("b1",))
    frame = Frame(b"\x02aaaaa\x02bbbbb\x88\xb5" + bytes(50))
    assert bonds[0].send(frame)
    end = time.monotonic() + LIMIT
    while frame not in turn(bonds):
        assert time.monotonic() < end
    ip("link", "set", "b0", "up")
    until_used(bonds, ("a0", "a1"), ("b0", "b1"))
    for bond in bonds:
        bond.close()


@isolated
def test_an_interface_that_is_deleted_and_made_anew_is_used_again() -> None:
    bonds = veths(BondOptions(mode="active-backup"))
    until_used(bonds, ("a0",), ("b0",))
    ip("link", "del", "a0")
    until_used(bonds, ("a1",), ("b1",))
    ip("link", "add", "a0", "type", "veth", "peer", "name", "b0")
    for name in ("a0", "b0"):
        ip("link", "set", name, "up")
    end = time.monotonic() + LIMIT
    while not all(member.up for bond in bonds for member in bond.report()):
        assert time.monotonic() < end
        turn(bonds)
    ip("link", "set", "a1", "down")
    until_used(bonds, ("a0",), ("b0",))
    for bond in bonds:
        bond.close()


MODULES = ("failover", "net_failover", "virtio_net", "crc-ccitt", "ipv6", "bonding")
SCRIPT = """
bonding=/sys/class/net/bond0/bonding
echo 802.3ad >$bonding/mode
echo fast >$bonding/lacp_rate
echo 100 >$bonding/miimon
ifconfig bond0 10.9.0.2 netmask 255.255.255.0 up
echo +eth0 >$bonding/slaves
echo +eth1 >$bonding/slaves
ports() {
    for turn in $(seq 40); do  # until both ends distribute, as this one knows
        state="$(cat $bonding/ad_num_ports) $(grep -c 'port state: 63' /proc/net/bonding/bond0)"
        [ "$state" = "$1 $((2 * $1))" ] && break
        sleep 0.5
    done
    echo "PORTS $(cat $bonding/ad_num_ports) PARTNER $(cat $bonding/ad_partner_mac) KEY $(cat $bonding/ad_partner_key)"
    ping -c 5 10.9.0.1 | grep received
}
ports 2
echo SILENCE
ports 1
echo SPEAK
ports 2
"""


def end_of(cable: Cable) -> Port:
    return cable.ends[0]


class Relay(threading.Thread):
    """Joins a bond and a TAP until it is stopped."""

    def __init__(self, bond: BondPort, tap: TapPort) -> None:
        super().__init__(daemon=True)
        self._ports = (bond, tap)
        self._stopped = False
        self._wake = threading.Event()
        bond.on_arrival = self._wake.set

    def run(self) -> None:
        bond, tap = self._ports
        while not self._stopped:
            self._wake.wait(0.005)
            self._wake.clear()
            bond.advance()
            while (frame := bond.receive()) is not None:
                tap.send(frame)
            while (frame := tap.receive()) is not None:
                bond.send(frame)

    def stop(self) -> None:
        self._stopped = True
        self.join(LIMIT)
        for port in self._ports:
            port.close()


@isolated
def test_the_bonding_driver_of_linux_is_the_other_end(tmp_path: Path) -> None:
    ip("tuntap", "add", "out0", "mode", "tap")
    ip("addr", "add", "10.9.0.1/24", "dev", "out0")
    ip("link", "set", "out0", "up")
    cables = [Cable(f"cable{n}") for n in (0, 1)]
    members = [
        BondMember(f"link{n}", partial(end_of, cable), CableLink(cable, bytes([2, 0, 0, 0, 9, n])))
        for n, cable in enumerate(cables)
    ]
    bond = BondPort("bond", members, BondOptions(key=7))
    relay = Relay(bond, TapPort("out0"))
    archive = make_initramfs(tmp_path, SCRIPT, [uml_module(name) for name in MODULES])
    folders = [tmp_path / f"device{n}" for n in (0, 1)]
    for folder in folders:
        folder.mkdir()
    devices = [NetDevice(cable.ends[1], mac=bytes([2, 0, 0, 0, 8, n]), speed=10_000) for n, cable in enumerate(cables)]
    with serving(folders[0], devices[0]) as one, serving(folders[1], devices[1]) as two:
        relay.start()
        arguments = [f"virtio_uml.device={back.path}:1" for back in (one, two)]
        with uml(tmp_path, archive, *arguments) as guest:
            place = guest.wait_for("SILENCE")
            assert [bond.used] == [("link0", "link1")], guest.console
            cables[0].silent = True
            place = guest.wait_for("SPEAK", place)
            assert [bond.used] == [("link1",)], guest.console
            cables[0].silent = False
            console = guest.finish()
        assert [member.partner for member in bond.report()] == ["02:00:00:00:08:00"] * 2
        assert [bond.used] == [("link0", "link1")], console
        relay.stop()
        assert one.server.failures == two.server.failures == [], console
        for back, device in zip((one, two), devices, strict=True):
            back.call(device.close)
    partner = "PARTNER 02:00:00:00:09:00 KEY 7"
    phases = console.split("PORTS ")[1:]
    assert [phase.splitlines()[0].strip() for phase in phases] == [f"{n} {partner}" for n in (2, 1, 2)], console
    assert re.findall(r"transmitted, (\d+) packets received", console) == ["5"] * 3, console
    reasons = {reason for counts in (bond.dropped, *(member.dropped for member in bond.report())) for reason in counts}
    assert reasons <= {"no link", "not collecting"}  # before both ends had agreed
