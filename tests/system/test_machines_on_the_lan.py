"""One LAN: a client partition of ours, a stock Linux guest over CRQ, and a virtual machine of anybody by vhost-user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from powervio.attach.netns import FOLDER
from powervio.boot import qemu, run
from powervio.boot.guest import Terminal
from powervio.boot.machine import Arch, find
from powervio.boot.processes import Disk
from powervio.boot.transport import Served, Transport
from powervio.system.load import ConfigError, parse

from .guest_at_door import boot
from .harness import House

MIB = 1 << 20
MAC = "52:54:00:0a:0b:0c"
LIMIT = 120.0

SYSTEM = """
[[vios]]
name = "vios1"

[[lpar]]
name = "client1"
[[lpar.net]]
vios = "vios1"
pvid = 10
netns = "{netns}"
tap = "eth0"
address = "192.0.2.1/24"

[[lpar]]
name = "guest1"
guest = "linux"
arch = "x86_64"
memory = "192M"
exec = "{guest}"
[[lpar.net]]
vios = "vios1"
pvid = 10

[[port]]
name = "vm1"
socket = "vm1.sock"
pvid = 10
mac = "{mac}"
"""
# Each of the two waits for the other, and both for the client; the machine ends when the guest has told it so.
GUEST = (
    "ifconfig eth0 192.0.2.2 up; until ping -c 1 -W 1 192.0.2.3; do :; done; ping -c 3 192.0.2.1"
    " && echo the guest heard both | nc 192.0.2.3 99; sleep 30"
)
MACHINE = (
    "ifconfig eth0 192.0.2.3 up; (until ping -c 1 -W 1 192.0.2.1; do :; done; until ping -c 1 -W 1 192.0.2.2; do :;"
    " done) >/dev/null 2>&1; echo the machine heard both; nc -l -p 99"
)


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"pvlan{os.getpid()}"
    yield name
    if (FOLDER / name).exists():
        subprocess.run(["ip", "netns", "del", name], check=True)


def at_port(socket: Path) -> Transport:
    """A virtual machine without disks, whose network adapter is at a socket."""

    @contextmanager
    def serve(arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
        options = [
            *("-chardev", f"socket,id=lan,path={socket}"),
            *("-netdev", "vhost-user,id=net,chardev=lan"),
            # without KVM, QEMU 7.2 ends with SIGSEGV (msix_set_vector_notifiers) when this has MSI-X vectors
            *("-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile=,vectors=0"),
        ]
        yield Served(qemu.memory_of_its_own(memory), options, [], [], lambda: None)

    return Transport(serve)


@pytest.mark.timeout(300)
def test_client_guest_and_machine_are_on_one_lan(house: House, netns: str, boot_cache: Path) -> None:
    (house.folder / "lan.toml").write_text(SYSTEM.format(netns=netns, guest=GUEST, mac=MAC))
    house.use_kernels(boot_cache)
    house.up("lan.toml")
    status, said = boot_at(house.folder / "vm1.sock", boot_cache)
    assert status == 0, said
    assert said.split(b"\n")[:2] == [b"the machine heard both", b"the guest heard both"]
    inside = ["ip", "netns", "exec", netns, "ping", "-q", "-c", "3", "-i", "0.01", "-W", "5"]
    subprocess.run([*inside, "192.0.2.2"], check=True, timeout=30, capture_output=True)
    (port,) = json.loads(house.ok("ps", "--json"))["ports"]
    assert port["name"] == "vm1"
    assert port["sent"] > 3
    assert port["received"] > 3
    shown = house.ok("ps")
    assert f"VLAN 10 of ETHERNET0, {MAC}, no machine is there" in shown
    house.ok("down")


DOOR = """
[[vios]]
name = "vios1"

[[lpar]]
name = "client1"
[[lpar.net]]
vios = "vios1"
netns = "{netns}"
tap = "eth0"
address = "192.0.2.1/24"

[[lpar]]
name = "guest1"
guest = "door"
arch = "x86_64"
memory = "256M"
[[lpar.net]]
vios = "vios1"
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [("pool_kib=64",), ("pool_kib=64", "shared_tce=0"), ("pool_kib=64", "packed=0")])
def test_guest_whose_pool_is_too_small_for_its_receive_ring_is_heard_and_hears(
    house: House, netns: str, boot_cache: Path, options: tuple[str, ...]
) -> None:
    """The driver makes more available than there is room for; that waits, and what is sent has its part of the pool."""
    (house.folder / "lan.toml").write_text(DOOR.format(netns=netns))
    house.use_kernels(boot_cache)
    house.up("lan.toml")
    inside = ["ip", "netns", "exec", netns, "ping", "-q", "-i", "0.005", "-W", "5"]

    def ping() -> None:
        for size in ("56", "1400"):
            done = subprocess.run(
                [*inside, "-c", "300", "-s", size, "192.0.2.2"], timeout=60, capture_output=True, text=True, check=True
            )
            assert " 0% packet loss" in done.stdout

    command = (
        "modprobe virtio_net 2>/dev/null; until_so [ -e /sys/class/net/eth0 ]; ifconfig eth0 192.0.2.2 up\n"
        "until_so ping -c 1 -W 1 192.0.2.1; echo HOST ping; n=0\n"
        "while [ $n -lt 20 ]; do ping -c 5 -i 0.1 -s 1400 192.0.2.1 || fail ping; n=$((n + 1)); done; quiet ping"
    )
    status, text = boot(house, boot_cache, command, {"ping": ping}, options=options)
    assert status == 0, text
    house.ok("down")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_guest_whose_hypervisor_never_comes_back_goes_on_and_has_nothing_to_do(
    house: House, netns: str, boot_cache: Path, arch: str
) -> None:
    """The network's driver looks for answers without a pause, and makes buffers available whenever it has any."""
    (house.folder / "lan.toml").write_text(DOOR.format(netns=netns).replace("x86_64", arch))
    house.use_kernels(boot_cache)
    process = house.up("lan.toml")
    command = """
        modprobe virtio_net 2>/dev/null; until_so [ -e /sys/class/net/eth0 ]; ifconfig eth0 192.0.2.2 up
        until_so ping -c 1 -W 1 192.0.2.1
        echo 'HOST stop'
        gone() { ifconfig eth0 promisc; ifconfig eth0 -promisc; grep -qx lost /sys/bus/virtio_vio/devices/*/state; }
        until_so gone
        errors() { cat /sys/class/net/eth0/statistics/rx_length_errors; }
        before=$(errors) since=$(cut -d . -f 1 /proc/uptime)
        sleep 2
        [ $(($(errors) - before)) -lt $((($(cut -d . -f 1 /proc/uptime) - since + 1) * 50 * 256)) ] || fail busy
        dmesg -r | grep -E 'WARNING|BUG|Call Trace|blocked for more|stall' && fail 'the log'
        true
    """
    happenings = {"stop": lambda: process.send_signal(signal.SIGSTOP)}
    try:
        status, said = boot(house, boot_cache, command, happenings, options=["stall_limit=3"])
    finally:
        process.send_signal(signal.SIGCONT)
    assert status == 0, said
    house.ok("down")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [(), ("packed=0", "shared_tce=0")])
def test_new_vio_server_is_told_what_the_guest_s_network_driver_wants(
    house: House, netns: str, boot_cache: Path, options: tuple[str, ...]
) -> None:
    """Frames of a group that it is not in pass while it is promiscuous, or its server has not heard that it is not."""
    (house.folder / "lan.toml").write_text(DOOR.format(netns=netns))
    house.use_kernels(boot_cache)
    house.up("lan.toml")
    inside = ["ip", "netns", "exec", netns]

    def send_to_the_group_and_then_be(address: str) -> None:
        subprocess.run([*inside, "ip", "route", "replace", "239.0.0.0/8", "dev", "eth0"], check=True)
        ping = ["ping", "-q", "-c", "100", "-i", "0.01", "-W", "1", "239.1.2.3"]  # which nobody answers
        subprocess.run([*inside, *ping], check=False, capture_output=True, timeout=60)
        subprocess.run([*inside, "ip", "addr", "add", address, "dev", "eth0"], check=True)

    def restart() -> None:
        house.ok("terminate", "vios1")
        house.ok("activate", "vios1")

    command = """
        modprobe virtio_net 2>/dev/null; until_so [ -e /sys/class/net/eth0 ]; ifconfig eth0 192.0.2.2 up
        rx() { cat /sys/class/net/eth0/statistics/rx_packets; }
        group() {
            before=$(rx)
            echo "HOST group $1"
            until_so ping -c 1 -W 1 "192.0.2.$1"
            many=$(($(rx) - before))
        }
        again() { [ "$(state sessions)" -gt 1 ] && [ "$(state state)" = live ]; }
        until_so ping -c 1 -W 1 192.0.2.1
        ifconfig eth0 promisc
        group 51; [ $many -ge 100 ] || fail "only $many frames came"
        ifconfig eth0 -promisc
        group 52; [ $many -lt 100 ] || fail "$many frames came"
        echo 'HOST restart'
        until_so again
        group 53; [ $many -lt 100 ] || fail "$many frames came after the server had restarted"
        quiet all
    """
    happenings: dict[str, Callable[[], object]] = {
        f"group {number}": partial(send_to_the_group_and_then_be, f"192.0.2.{number}/24") for number in (51, 52, 53)
    }
    status, said = boot(house, boot_cache, command, {**happenings, "restart": restart}, options=options)
    assert status == 0, said
    house.ok("down")


def boot_at(socket: Path, cache: Path) -> tuple[int, bytes]:
    """A machine at a port: how its command ended, and what it said."""
    reading, writing = os.pipe()
    heard: list[bytes] = []

    def listen() -> None:
        while data := os.read(reading, 4096):
            heard.append(data)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        plan = run.Plan(find("x86_64"), 192 * MIB, cache, at_port(socket), command=MACHINE, timeout=LIMIT)
        status = run.run(plan, print, Terminal(0, writing))
    finally:
        os.close(writing)
        listener.join()
        os.close(reading)
    return status, b"".join(heard)


def test_ports_that_cannot_be_are_told_by_their_place(tmp_path: Path) -> None:
    text = '[[vios]]\nname = "vios1"\n'
    for options in ('mac = "01:00:00:00:00:00"', "vlans = [1]", "burst = 5"):
        text += f'[[port]]\nname = "vm1"\nsocket = "vm.sock"\n{options}\n'
    with pytest.raises(ConfigError) as refused:
        parse(text, "one.toml", tmp_path)
    said = str(refused.value)
    for expected in (
        'port[0].mac: MAC address "01:00:00:00:00:00" is no address of one device',
        'port[1].name: "vm1" is the name of port[0] already',
        "port[1].vlans: 1 is the pvid, whose frames have no tag",
        "port[1].socket: ",
        "port[2].burst: it limits nothing without rate",
    ):
        assert expected in said, said
