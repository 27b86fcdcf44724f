"""TAP interfaces: frames to and from the kernel's own network stack, in a namespace of the test's."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest
from tests.network.namespace import ip, isolated, until_passing
from tests.network.test_segment import ALL, large

from powervio.errors import LocalError
from powervio.network.port import GSO_UDP_L4, Frame, Offload, Port
from powervio.network.segment import segments
from powervio.network.tap import TapPort

MAC = bytes.fromhex("020000000002")


def received(port: Port, kind: bytes, source: bytes = b"") -> Frame:
    """The next frame of an EtherType, of a sender if need be; the kernel sends others too."""
    for _ in range(50):
        frame = port.receive()
        if frame is None:
            poller = select.poll()
            poller.register(port, select.POLLIN)
            assert poller.poll(10_000), "nothing came"
        elif frame.data[12:14] == kind and frame.data[6 : 6 + len(source)] == source:
            return frame
    raise AssertionError("no such frame")


def udp_to(port: TapPort, payload: bytes) -> bytes:
    """Have the kernel send a UDP datagram through the TAP; the frame as it came."""
    ip("addr", "add", "10.9.0.1/24", "dev", port.name)
    ip("link", "set", port.name, "up")
    ip("neigh", "add", "10.9.0.2", "lladdr", MAC.hex(":"), "dev", port.name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, ("10.9.0.2", 7))
    frame = received(port, b"\x08\x00")
    assert frame.partial is None
    return bytes(frame.data)


@isolated
def test_frames_go_to_the_kernel_and_come_from_it() -> None:
    port = TapPort("test0")
    assert port.name == "test0"
    assert port.mtu == 1500
    data = udp_to(port, b"hello")
    assert data[:6] == MAC
    assert data.endswith(b"hello")
    kernel = data[6:12]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("10.9.0.1", 9))
        listener.settimeout(10)
        answer = bytearray(kernel + MAC + data[12:])
        answer[26:30], answer[30:34] = data[30:34], data[26:30]
        answer[36:38] = (9).to_bytes(2, "big")
        answer[40:42] = b"\0\0"  # no checksum
        assert port.send(Frame(bytes(answer)))
        assert listener.recv(100) == b"hello"
    assert port.sent == 1
    assert port.dropped == {}
    port.close()


@isolated
def test_checksums_are_partial_only_for_who_wants_them() -> None:
    port = TapPort("test0")
    data = udp_to(port, b"a datagram of some length")
    port.take(Offload.CSUM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"a datagram of some length", ("10.9.0.2", 7))
    frame = received(port, b"\x08\x00")
    assert frame.partial == (34, 6)
    assert bytes(frame.data[44:]) == data[44:]
    # and the kernel finishes what is left to it
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("10.9.0.1", 9))
        listener.settimeout(10)
        answer = bytearray(data[6:12] + MAC + frame.data[12:])
        answer[26:30], answer[30:34] = frame.data[30:34], frame.data[26:30]
        answer[36:38] = (9).to_bytes(2, "big")
        assert port.send(Frame(bytes(answer), frame.partial))
        assert listener.recv(100) == b"a datagram of some length"
    port.close()


@isolated
def test_frames_that_the_kernel_does_not_take_are_counted() -> None:
    port = TapPort("test0")
    assert not port.send(Frame(bytes(60)))
    assert port.dropped == {"interface down": 1}
    ip("link", "set", "test0", "up")
    assert not port.send(Frame(bytes(60), (0xFFFF, 0xFFFF)))
    assert not port.send(Frame(bytes(9)))
    assert port.dropped == {"interface down": 1, "Invalid argument": 2}
    assert port.send(Frame(bytes(60)))
    port.close()


@isolated
def test_interface_that_is_deleted_is_an_error() -> None:
    port = TapPort("test0")
    ip("link", "set", "test0", "up")
    while port.receive() is not None:
        pass
    ip("link", "del", "test0")
    with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
        port.receive()
    port.take(Offload.CSUM)
    assert not port.send(Frame(bytes(60)))
    port.close()
    port.close()


@isolated
def test_name_that_cannot_be_is_told_in_a_sentence() -> None:
    for name in ("", "a" * 16, "a/b", "a b"):
        with pytest.raises(LocalError, match="cannot be the name of an interface"):
            TapPort(name)
    with pytest.raises(LocalError, match="no TAP"):
        TapPort("lo")
    port = TapPort("test0")
    with pytest.raises(LocalError, match="somebody has it already"):
        TapPort("test0")
    port.close()


@isolated
def test_tap_that_was_there_before_stays() -> None:
    ip("tuntap", "add", "test1", "mode", "tap")
    ip("link", "set", "test1", "mtu", "9000", "up")
    for _ in range(2):
        port = TapPort("test1")
        assert port.mtu == 9000
        port.close()
    ip("link", "show", "test1")


def frames_of(port: Port, first: bytes, count: int) -> list[bytes]:
    """So many frames of the type and sender of the first."""
    return [bytes(received(port, first[12:14], first[6:12]).data) for _ in range(count)]


@isolated
@pytest.mark.parametrize(("ipv6", "udp"), [(False, False), (True, False), (False, True), (True, True)])
def test_segments_are_those_that_the_kernel_makes(ipv6: bool, udp: bool) -> None:
    ports = [TapPort("in0"), TapPort("out0")]
    ip("link", "add", "bridge0", "type", "bridge")
    for port in ports:
        ip("link", "set", port.name, "master", "bridge0", "up")
    ip("link", "set", "bridge0", "up")
    until_passing(*(port.name for port in ports))
    payload = bytes(n % 251 for n in range(5000))
    for size, flags, ecn in ((1400, 0x10, False), (1000, 0x99, True), (1250, 0x18, False)):
        frame = large(payload, size, ipv6=ipv6, udp=udp, flags=flags, ecn=ecn and not udp, identifier=0xFFFE)
        assert ports[0].send(frame)
        mine = [bytes(part.data) for part in segments(frame)]
        assert frames_of(ports[1], mine[0], len(mine)) == mine
    ports[1].take(Offload(ALL))
    assert ports[0].send(frame)
    whole = received(ports[1], bytes(frame.data[12:14]), bytes(frame.data[6:12]))
    assert (whole.data, whole.partial, whole.gso, whole.gso_size) == (
        frame.data,
        frame.partial,
        frame.gso,
        frame.gso_size,
    )
    for port in ports:
        assert not port.dropped
        port.close()


@isolated
def test_kernel_gives_large_datagrams() -> None:
    port = TapPort("test0")
    udp_to(port, b"first")
    port.take(Offload(ALL))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
        sender.sendto(b"x" * 4500, ("10.9.0.2", 7))
    frame = received(port, b"\x08\x00")
    assert (frame.gso, frame.gso_size, frame.partial) == (GSO_UDP_L4, 1000, (34, 6))
    assert [len(part.data) for part in segments(frame)] == [1042] * 4 + [542]
    port.close()
