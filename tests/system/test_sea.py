"""Shared Ethernet Adapters of whole systems, as root: clients reach a host outside, and VIO servers die under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.network.test_bond_linux import Relay

from powervio.attach.netns import FOLDER
from powervio.network.bond import BondPort, make_members
from powervio.network.link import InterfaceLink
from powervio.network.packet import PacketPort
from powervio.network.tap import TapPort
from powervio.system.load import ConfigError, parse

from .harness import House, wait_for
from .test_net import inside, iperf_server, names, ping

OUTSIDE, CLIENT = "192.0.2.100", "192.0.2.1"
INTERVAL = 0.1


@pytest.fixture
def networks() -> Iterator[tuple[str, str, str]]:
    """Namespaces of a client, of uplinks, and of a host outside with a bridge to which they lead."""
    client, uplinks, outside = names(3)
    for name in (uplinks, outside):
        subprocess.run(["ip", "netns", "add", name], check=True)
    for words in (
        "link add bridge0 address 02:00:00:00:0b:01 type bridge",
        f"addr add {OUTSIDE}/24 dev bridge0",
        "link set bridge0 up",
    ):
        inside(outside, "ip", *words.split())
    for number in (1, 2):
        inside(uplinks, *f"ip link add u{number} type veth peer name p{number} netns {outside}".split())
        inside(uplinks, *f"ip link set u{number} up".split())
        inside(outside, *f"ip link set p{number} master bridge0 up".split())
    yield client, uplinks, outside
    for name in (client, uplinks, outside):
        if (FOLDER / name).exists():
            subprocess.run(["ip", "netns", "del", name], check=True)


def reaches(client: str) -> bool:
    """Whether the host outside answers one ping."""
    return inside(client, "ping", "-q", "-c", "1", "-W", "1", OUTSIDE, check=False).returncode == 0


def declare(house: House, networks: tuple[str, str, str], *, process: bool, count: int = 2, more: str = "") -> str:
    client, uplinks, _ = networks
    text = '[[vios]]\nname = "serving"\n[[lpar]]\nname = "client"\nmemory = "32M"\n[[lpar.net]]\nvios = "serving"\n'
    text += f'netns = "{client}"\ntap = "eth0"\naddress = "{CLIENT}/24"\n'
    for number in range(1, count + 1):
        text += f'[[vios]]\nname = "vios{number}"\nprocess = {str(process).lower()}\n'
        text += f'[[sea]]\nvios = "vios{number}"\nuplink = "u{number}"\nnetns = "{uplinks}"\n'
        text += f"priority = {number}\n{more}\n"
    (house.folder / "one.toml").write_text(text)
    return "one.toml"


def states(house: House) -> list[str]:
    return [sea["facts"]["state"] if sea["facts"] else "none" for sea in house.ps()["sea"]]


@pytest.mark.parametrize("process", [False, True])
def test_a_client_reaches_a_host_outside(house: House, networks: tuple[str, str, str], process: bool) -> None:
    system = house.up(declare(house, networks, process=process, count=1))
    wait_for(lambda: states(house) == ["PRIMARY"])
    client, _, outside = networks
    ping(client, OUTSIDE)
    ping(outside, CLIENT)
    with iperf_server(outside):
        found = inside(client, "iperf3", "-J", "-c", OUTSIDE, "-t", "1").stdout
    assert json.loads(found)["end"]["sum_received"]["bytes"] > 10 << 20
    with iperf_server(outside):
        found = inside(client, "iperf3", "-J", "-R", "-c", OUTSIDE, "-t", "1").stdout
    assert json.loads(found)["end"]["sum_received"]["bytes"] > 10 << 20
    shown = house.ok("ps")
    assert "ent0 of vios1: PRIMARY, VLAN 1 of ETHERNET0" in shown
    assert "    State: PRIMARY\n" in house.ok("sea", "ent0")
    (sea,) = house.ps()["sea"]
    assert sea["facts"]["virtual"]["bridged"] > 100
    house.end(system)


@pytest.mark.parametrize("process", [False, True])
def test_an_operator_has_one_hand_over_to_the_other(
    house: House, networks: tuple[str, str, str], process: bool
) -> None:
    house.up(declare(house, networks, process=process))
    wait_for(lambda: states(house) == ["PRIMARY", "BACKUP"])
    client = networks[0]
    ping(client, OUTSIDE)
    assert house.ok("sea", "ent0", "--mode", "standby").startswith("ent0 is ")
    wait_for(lambda: states(house) == ["BACKUP", "PRIMARY"])
    ping(client, OUTSIDE)
    house.ok("sea", "ent0", "--mode", "auto")
    wait_for(lambda: states(house) == ["PRIMARY", "BACKUP"])
    house.ok("sea", "ent1", "--mode", "forced")
    wait_for(lambda: states(house) == ["BACKUP", "PRIMARY"])
    inside(networks[1], "ip", "link", "set", "u2", "down")
    wait_for(lambda: states(house) == ["PRIMARY", "LIMBO"])
    ping(client, OUTSIDE)
    house.ok("terminate", "vios1")
    inside(networks[1], "ip", "link", "set", "u2", "up")
    wait_for(lambda: states(house) == ["none", "PRIMARY"])
    ping(client, OUTSIDE)
    house.ok("activate", "vios1")
    ping(client, OUTSIDE)
    assert "there is no Shared Ethernet Adapter" in house.refused("sea", "ent7")


def test_two_that_share_bridge_every_second_vlan(house: House, networks: tuple[str, str, str]) -> None:
    """What is outside has no VLANs of its own here, so one client is heard there by its tag."""
    client, _, outside = networks
    file = declare(house, networks, process=True, more='vlans = [20]\nmode = "sharing"')
    text = (house.folder / file).read_text()
    text += '[[lpar]]\nname = "other"\nmemory = "32M"\n[[lpar.net]]\nvios = "serving"\npvid = 20\n'
    text += f'netns = "{client}"\ntap = "eth1"\naddress = "198.51.100.1/24"\nmac = "02:00:00:00:00:20"\n'
    (house.folder / file).write_text(text)
    house.up(file)
    wait_for(lambda: states(house) == ["PRIMARY_SH", "BACKUP_SH"])
    wait_for(lambda: [sea["facts"]["bridge_mode"] for sea in house.ps()["sea"]] == ["Partial", "Partial"])
    ping(client, OUTSIDE)
    ears = [PacketPort(name, outside) for name in ("p1", "p2")]

    def heard_tagged() -> list[bool]:
        inside(client, "ping", "-c", "1", "-W", "0.1", "198.51.100.2", check=False)
        found = []
        for ear in ears:
            heard = []
            while (frame := ear.receive()) is not None:
                if frame.data[6:12] == bytes.fromhex("020000000020"):
                    heard.append(bytes(frame.data[12:16]))
            assert set(heard) <= {bytes.fromhex("81000014")}
            found.append(bool(heard))
        return found

    wait_for(lambda: heard_tagged() == [False, True])
    os.kill(pid_of(house, "vios2"), signal.SIGKILL)
    wait_for(lambda: states(house) == ["PRIMARY_SH", "none"])
    heard_tagged()  # also what came before
    wait_for(lambda: heard_tagged() == [True, False])
    ping(client, OUTSIDE)
    for ear in ears:
        ear.close()


@pytest.mark.parametrize("lacp", [False, True])
def test_several_uplinks_are_one(house: House, networks: tuple[str, str, str], lacp: bool) -> None:
    client, uplinks, outside = networks
    bond = "802.3ad" if lacp else "active-backup"
    file = declare(house, networks, process=False, count=1, more=f'bond = "{bond}"')
    text = (house.folder / file).read_text().replace('uplink = "u1"', 'uplink = ["u1", "u2"]')
    (house.folder / file).write_text(text.replace("process = false", "thread = false"))
    relay = None
    if lacp:  # our own other end in place of the bridge
        for words in ("link set p1 nomaster", "link set p2 nomaster", "link del bridge0", "tuntap add t0 mode tap"):
            inside(outside, "ip", *words.split())
        for words in (f"addr add {OUTSIDE}/24 dev t0", "link set t0 up"):
            inside(outside, "ip", *words.split())
        members = make_members(
            ["p1", "p2"], lambda name: PacketPort(name, outside), lambda name: InterfaceLink(name, outside)
        )
        relay = Relay(BondPort("other", members), TapPort("t0", netns=outside))
        relay.start()
    system = house.up(file)

    def used() -> list[bool]:
        (sea,) = house.ps()["sea"]
        return [link["used"] for link in sea["facts"]["uplink"]]

    wait_for(lambda: used() == ([True, True] if lacp else [True, False]))
    wait_for(lambda: reaches(client))  # the other end has to notice, too
    inside(uplinks, "ip", "link", "set", "u1", "down")
    wait_for(lambda: used() == [False, True])
    wait_for(lambda: reaches(client))  # the other end has to notice, too
    inside(uplinks, "ip", "link", "set", "u1", "up")
    time.sleep(1.5)  # the kernel tells its bridge of a link within a second
    inside(uplinks, "ip", "link", "del", "u2")
    wait_for(lambda: used() == [True, False])
    wait_for(lambda: reaches(client))  # the other end has to notice, too
    house.end(system)
    if relay is not None:
        relay.stop()


def pid_of(house: House, vios: str) -> int:
    (found,) = (entry["pid"] for entry in house.ps()["vios"] if entry["name"] == vios)
    assert isinstance(found, int)
    return found


def outages(report: dict[str, Any]) -> list[tuple[float, float]]:
    """When nothing came, and for how long, in seconds: runs of intervals without a byte."""
    found: list[tuple[float, float]] = []
    for interval in report["intervals"]:
        total = interval["sum"]
        if total["bytes"]:
            continue
        if found and abs(sum(found[-1]) - total["start"]) < INTERVAL / 2:
            found[-1] = (found[-1][0], total["end"] - found[-1][0])
        else:
            found.append((total["start"], total["end"] - total["start"]))
    return found


@pytest.mark.alone  # where others use the processors, iperf3 itself pauses
@pytest.mark.parametrize(
    ("how", "reverse"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGSTOP, False)],
    ids=["kill-out", "kill-in", "stop-out"],
)
def test_a_pair_under_load_survives_a_death_or_a_hang_and_the_return(
    house: House, networks: tuple[str, str, str], how: signal.Signals, reverse: bool
) -> None:
    house.up(declare(house, networks, process=True))
    wait_for(lambda: states(house) == ["PRIMARY", "BACKUP"])
    client, _, outside = networks
    victim = pid_of(house, "vios1")
    words = ["iperf3", "-J", "-i", str(INTERVAL), "-t", "9", "-c", OUTSIDE, *(["-R"] if reverse else [])]
    with iperf_server(outside):
        load = subprocess.Popen(["ip", "netns", "exec", client, *words], stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(2)
            os.kill(victim, how)
            time.sleep(2)
            if how is signal.SIGKILL:
                wait_for(lambda: states(house) == ["none", "PRIMARY"])
                house.ok("activate", "vios1")
            else:
                os.kill(victim, signal.SIGCONT)
            wait_for(lambda: states(house) == ["PRIMARY", "BACKUP"])
            output, _ = load.communicate(timeout=60)
        finally:
            load.kill()
    report = json.loads(output)
    assert "error" not in report
    found = outages(report)
    assert len(report["intervals"]) > 80
    assert max((length for _, length in found), default=0.0) <= 1.0, found
    assert report["end"]["sum_received"]["bytes"] > 50 << 20
    first, second = (sea["facts"] for sea in house.ps()["sea"])
    assert first["virtual"]["bridged"]
    assert second["virtual"]["bridged"]
    assert second["became_primary"] == 1
    for facts in (first, second):  # a loop would bring back what was sent
        assert facts["real"]["dropped"].get("not for here", 0) < 100
    print("OUTAGES", how.name, reverse, found, report["end"]["sum_received"]["bits_per_second"])


BAD: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace('vios = "vios1"', 'vios = "other"'), 'sea[0].vios: "other" is not one of'),
    (lambda text: text.replace("priority = 2", "priority = 1"), "sea[1].priority: sea[0] has 1 too"),
    (lambda text: text.replace('uplink = "u2"', 'uplink = "u1"'), "sea[1].uplink: u1 is that of sea[0] already"),
    (lambda text: text.replace("priority = 2", "priority = 2\nvlans = [20]"), "sea[1].vlans: some are also those of"),
    (lambda text: text.replace("priority = 2", "priority = 2\nvlans = [1]"), "sea[1].vlans: [1] with pvid = 1"),
    (lambda text: text.replace("priority = 2", "priority = 2\ncontrol = 1"), "sea[1].control: VLAN 1 is one that"),
    (lambda text: text.replace("priority = 2", "priority = 2\ncontrol = 9"), "sea[1].control: sea[0] has VLAN 4094"),
    (lambda text: text.replace("priority = 2", 'priority = 2\nbond = "802.3ad"'), "sea[1].bond: it is about several"),
    (lambda text: text.replace("priority = 2", 'priority = 2\nprimary = "u2"'), "sea[1].primary: u2; expected one"),
    (lambda text: text.replace('uplink = "u2"', "uplink = []"), "sea[1].uplink: 0 interfaces; expected 1 to 8"),
    (lambda text: text.replace('uplink = "u2"', 'uplink = "a b"'), 'sea[1].uplink: "a b" cannot be the name'),
    (lambda text: text.replace('vios = "vios2"\nup', 'vios = "vios1"\nup'), "sea[1].vios: sea[0] is in vios1 too"),
    (lambda text: text.replace("priority = 2", 'priority = 2\nname = "ent0"'), "sea[1].name: ent0 is the name of"),
    (lambda text: text.replace('tap = "eth0"', 'tap = "eth0"\npvid = 4094'), "lpar[0].net[0]: VLAN 4094 of ETHERNET0"),
]


@pytest.mark.parametrize(("change", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_what_cannot_be_is_told(tmp_path: Path, change: Callable[[str], str], expected: str) -> None:
    house = House(tmp_path)
    text = (tmp_path / declare(house, ("a", "b", "c"), process=False)).read_text()
    parse(text, "one.toml", tmp_path)
    with pytest.raises(ConfigError) as told:
        parse(change(text), "one.toml", tmp_path)
    assert expected in str(told.value)


def test_an_uplink_that_is_not_there_is_told(house: House, networks: tuple[str, str, str]) -> None:
    for process in (False, True):
        file = declare(house, networks, process=process, count=1)
        (house.folder / file).write_text((house.folder / file).read_text().replace('"u1"', '"none1"'))
        assert "SEA ent0: interface none1: No such device" in house.refused("up", file)
