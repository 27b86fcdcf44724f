"""DPDK's testpmd: the virtio-user driver, with all its ways of using a ring, on our network device."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from tests.network.namespace import ip, isolated
from tests.vhost_user.harness import recorded_sessions, serving
from tests.vhost_user.testpmd import LIMIT, PROMPT, Testpmd, testpmd, until

from powervio.devices.net import NetDevice
from powervio.network.loopback import LoopbackPort
from powervio.network.port import Frame
from powervio.network.tap import TapPort
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.virtio import features as feature
from powervio.virtio import net

OFFERED = BackEndOptions(packed=True, in_order=True)
DIRECT = BackEndOptions(packed=True, in_order=True, indirect=False)


def settle(tester: Testpmd, device: NetDevice) -> tuple[int, int]:
    """Have the driver take whatever is on its way to it; what it counts then."""
    tester.forward("rxonly")
    seen = -1, -1
    deadline = time.monotonic() + LIMIT
    while seen != (sent_of(device), device.to_driver.frames):
        assert time.monotonic() < deadline, (seen, device.report())
        time.sleep(0.02)
        seen = tester.counters()
    tester.stop()
    return seen


def sent_of(device: NetDevice) -> int:
    return device.from_driver.frames + device.from_driver.lost


MODES = [
    ("packed_vq=0,in_order=0,mrg_rxbuf=1", net.F_MRG_RXBUF),
    ("packed_vq=0,in_order=0,mrg_rxbuf=0", 0),
    ("packed_vq=0,in_order=1,mrg_rxbuf=1", feature.IN_ORDER | net.F_MRG_RXBUF),
    ("packed_vq=0,in_order=0,mrg_rxbuf=0,vectorized=1", 0),
    ("packed_vq=1,in_order=0,mrg_rxbuf=1", feature.RING_PACKED | net.F_MRG_RXBUF),
    ("packed_vq=1,in_order=0,mrg_rxbuf=0", feature.RING_PACKED),
    ("packed_vq=1,in_order=1,mrg_rxbuf=1", feature.RING_PACKED | feature.IN_ORDER | net.F_MRG_RXBUF),
    ("packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1", feature.RING_PACKED | feature.IN_ORDER),
]


@pytest.mark.parametrize(("options", "expected"), MODES)
def test_frames_go_round_and_both_ends_count_the_same(tmp_path: Path, options: str, expected: int) -> None:
    device = NetDevice(LoopbackPort())
    sessions = recorded_sessions(device)
    with serving(tmp_path, device, OFFERED) as back, testpmd(back, options) as tester:
        tester.forward("io", "start tx_first 4")
        until(lambda: device.to_driver.frames > 2000)  # several times around each ring
        tester.stop()
        sent, received = settle(tester, device)
        assert sent == received > 2000
        assert device.to_driver.bytes == device.from_driver.bytes == 64 * sent
        assert device.from_driver.dropped == device.to_driver.dropped == device.port.dropped == {}
    chosen = feature.RING_PACKED | feature.IN_ORDER | net.F_MRG_RXBUF
    assert sessions[-1] & chosen == expected


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ("packed_vq=0,in_order=0,queue_size=64", OFFERED),
        ("packed_vq=0,in_order=0,queue_size=64", DIRECT),
        ("packed_vq=1,in_order=0,queue_size=64", DIRECT),
        ("packed_vq=1,in_order=1,queue_size=64", DIRECT),
    ],
)
def test_flood_of_frames_in_pieces_is_bounded_and_every_frame_is_counted(
    tmp_path: Path, options: str, offered: BackEndOptions
) -> None:
    device = NetDevice(LoopbackPort(limit=100))
    with serving(tmp_path, device, offered) as back, testpmd(back, options) as tester:
        tester.run("set txpkts 64,700,650", PROMPT)
        tester.forward("txonly")
        until(lambda: device.from_driver.frames > 160 and device.port.dropped.get("queue full", 0) > 500)
        tester.stop()
        sent, received = settle(tester, device)
    assert sent == sent_of(device)
    assert device.from_driver.dropped == {"port": device.port.dropped["queue full"]}
    assert received == device.to_driver.frames == device.from_driver.frames
    assert device.to_driver.bytes == 1414 * received
    assert device.to_driver.dropped == {}


@pytest.mark.parametrize("options", ["packed_vq=0,in_order=0", "packed_vq=0,in_order=1", "packed_vq=1,in_order=1"])
def test_frames_go_over_several_small_buffers(tmp_path: Path, options: str) -> None:
    device = NetDevice(LoopbackPort())
    with (
        serving(tmp_path, device, DIRECT) as back,
        testpmd(back, options, "--mbuf-size=640", "--enable-scatter") as tester,  # 512 bytes in each
    ):
        tester.run("set txpkts 500,500,400", PROMPT)
        tester.forward("io", "start tx_first 2")
        until(lambda: device.to_driver.frames > 1000)
        tester.stop()
        sent, received = settle(tester, device)
        assert sent == received > 1000
        assert device.to_driver.bytes == 1400 * received


def test_port_that_is_stopped_and_started_goes_on(tmp_path: Path) -> None:
    device = NetDevice(LoopbackPort())
    with serving(tmp_path, device, OFFERED) as back, testpmd(back, "packed_vq=1") as tester:
        for turn in range(3):
            tester.forward("io", "start tx_first 1")
            until(lambda turn=turn: device.to_driver.frames > 500 * (turn + 1))  # type: ignore[misc]
            tester.stop()
            settle(tester, device)
            tester.run("port stop 0", "Done")
            tester.run("port start 0", "Done")


@pytest.mark.parametrize("options", ["packed_vq=0", "packed_vq=1"])
def test_driver_that_comes_after_another_finds_the_device_as_new(tmp_path: Path, options: str) -> None:
    device = NetDevice(LoopbackPort())
    with serving(tmp_path, device, OFFERED) as back:
        for turn in range(2):
            with testpmd(back, options) as tester:
                tester.forward("io", "start tx_first 1")
                until(lambda turn=turn: device.to_driver.frames > 500 * (turn + 1))  # type: ignore[misc]
                tester.stop()
        assert back.server.served == 2


class Wire(LoopbackPort):
    """What is sent does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[Frame] = []

    def send(self, frame: Frame) -> bool:
        self.out.append(Frame(bytes(frame.data), frame.partial, frame.valid))
        return True


def udp(length: int) -> tuple[bytes, int]:
    """A UDP frame to the driver with the sum of its pseudo header in place of a checksum; and that sum."""
    addresses = bytes([10, 9, 0, 1, 10, 9, 0, 2])
    header = bytes.fromhex("4500") + (28 + length).to_bytes(2, "big") + bytes.fromhex("00004000 4011 0000") + addresses
    total = sum(int.from_bytes(addresses[at : at + 2], "big") for at in range(0, 8, 2)) + 17 + 8 + length
    payload = b"\0\7\0\7" + (8 + length).to_bytes(2, "big") + total.to_bytes(2, "big") + bytes(length)
    return b"\xff" * 6 + b"\2" * 6 + b"\x08\0" + header + payload, total


@pytest.mark.parametrize("options", ["packed_vq=0", "packed_vq=1"])
def test_partial_checksums_go_in_and_out(tmp_path: Path, options: str) -> None:
    wire = Wire()
    device = NetDevice(wire)
    sessions = recorded_sessions(device)
    more = ("--rx-offloads=0x4", "--tx-offloads=0x4")  # UDP checksums
    with serving(tmp_path, device, OFFERED) as back, testpmd(back, options, *more) as tester:
        tester.run("port stop 0", "Done")
        tester.run("csum set udp hw 0", PROMPT)
        tester.run("port start 0", "Done")
        tester.forward("csum")
        frame, total = udp(100)
        for _ in range(10):
            wire.put(Frame(frame, (34, 6)))
        until(lambda: len(wire.out) == 10)
        tester.stop()
        assert sessions[-1] & (net.F_CSUM | net.F_GUEST_CSUM) == net.F_CSUM | net.F_GUEST_CSUM
    assert {(sent.partial, sent.data[40:42]) for sent in wire.out} == {((34, 6), total.to_bytes(2, "big"))}


def icmp(name: str) -> int:
    """A counter of the kernel, of the calling thread's namespace."""
    names, values = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if "Icmp:" in line
    )
    return int(values[names.index(name)])


@pytest.mark.parametrize("options", ["packed_vq=0,in_order=0", "packed_vq=1,in_order=0", "packed_vq=1,in_order=1"])
@isolated
def test_the_kernels_ping_is_answered_through_a_tap(tmp_path: Path, options: str) -> None:
    port = TapPort("pmd0")
    ip("addr", "add", "10.9.0.1/24", "dev", "pmd0")
    ip("link", "set", "pmd0", "up")
    device = NetDevice(port)
    with serving(tmp_path, device, OFFERED) as back, testpmd(back, options) as tester:
        tester.forward("icmpecho")
        for count, size in ((200, 56), (100, 1472)):
            ping = ["ping", "-n", "-q", "-c", str(count), "-i", "0.002", "-w", "15", "-s", str(size), "10.9.0.2"]
            answer = subprocess.run(ping, capture_output=True, text=True, timeout=LIMIT, check=False)
            found = re.search(r"(\d+) packets transmitted, (\d+) received", answer.stdout)
            assert found is not None, answer
            assert int(found[2]) >= count, (
                answer
            )  # it sends until it has so many answers: a few more may be on their way
        until(lambda: icmp("InEchoReps") == icmp("OutEchos"))
        tester.stop()
        assert icmp("OutEchos") >= 300
        assert port.sent == device.from_driver.frames
        assert device.from_driver.dropped == port.dropped == {}
        assert set(device.to_driver.dropped) <= {"no driver"}  # what the kernel said before
        back.call(device.close)
