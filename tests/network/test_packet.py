"""Frames of a host interface (AF_PACKET), over a veth pair in namespaces of the test's."""

from __future__ import annotations

import os
import select
import socket

import pytest
from tests.network.namespace import ip, isolated, until_passing
from tests.network.switching import MAC, ethernet, tag
from tests.network.test_segment import ALL, large
from tests.network.test_tap import frames_of, received

from powervio.errors import LocalError
from powervio.network.packet import PacketPort
from powervio.network.port import GSO_TCPV4, Frame, Offload
from powervio.network.segment import segments
from powervio.network.tap import TapPort

EVERYBODY = b"\xff" * 6


def pair(*mtu: str) -> tuple[PacketPort, PacketPort]:
    ip("link", "add", "a0", "type", "veth", "peer", "name", "b0")
    for name in ("a0", "b0"):
        ip("link", "set", name, *mtu, "up")
    until_passing("a0", "b0")
    return PacketPort("a0"), PacketPort("b0")


@isolated
def test_frames_go_out_and_come_in_and_not_back() -> None:
    a, b = pair()
    assert a.mtu == 1500
    for data in (ethernet(MAC[2], MAC[1]), tag(ethernet(EVERYBODY, MAC[1]), 20, 5), ethernet(MAC[1], MAC[2])):
        assert a.send(Frame(data))
        kind = data[12:14]
        assert received(b, kind, data[6:12]) == Frame(data)
    assert a.sent == 3
    while (frame := a.receive()) is not None:
        assert frame.data[6:12] not in MAC
    a.close()
    b.close()


@isolated
@pytest.mark.parametrize("tags", [b"", bytes.fromhex("8100a014")])
def test_large_frames_and_partial_checksums_go_through(tags: bytes) -> None:
    a, b = pair()
    frame = large(b"x" * 5000, 1400, tags=tags)
    b.take(Offload(ALL))
    assert a.send(frame)
    whole = received(b, bytes(frame.data[12:14]), MAC[1])
    assert (whole.data, whole.partial, whole.gso, whole.gso_size) == (frame.data, frame.partial, GSO_TCPV4, 1400)
    (partial, *_) = segments(frame, partial=True)
    assert a.send(partial)
    came = received(b, bytes(frame.data[12:14]), MAC[1])
    assert (came.data, came.partial, came.gso) == (partial.data, partial.partial, 0)
    b.take(Offload(0))
    assert a.send(frame)
    mine = [bytes(part.data) for part in segments(frame)]
    assert frames_of(b, mine[0], len(mine)) == mine
    assert not a.dropped
    assert not b.dropped
    a.close()
    b.close()


@isolated
def test_interface_of_another_namespace_is_in_reach() -> None:
    name = f"powervio-test-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("link", "add", "a0", "type", "veth", "peer", "name", "b0", "netns", name)
        ip("link", "set", "a0", "up")
        ip("-n", name, "link", "set", "b0", "up")
        until_passing("a0")
        a, b = PacketPort("a0"), PacketPort("b0", name)
        tap, path = TapPort("tap0", name), TapPort("tap1", f"/run/netns/{name}")
        data = ethernet(EVERYBODY, MAC[1])
        assert a.send(Frame(data))
        assert received(b, b"\x88\xb5").data == data
        ip("-n", name, "link", "set", "tap0", "up")
        assert tap.send(Frame(data))
        ip("-n", name, "link", "show", "tap1")
        with pytest.raises(OSError, match="no interface"):
            socket.if_nametoindex("tap1")
        for port in (a, b, tap, path):
            port.close()
    finally:
        ip("netns", "del", name)


@isolated
def test_what_cannot_be_is_told_in_a_sentence() -> None:
    with pytest.raises(LocalError, match="interface nowhere0: no interface"):
        PacketPort("nowhere0")
    with pytest.raises(LocalError, match="network namespace nowhere: No such file"):
        PacketPort("lo", "nowhere")
    with pytest.raises(LocalError, match="cannot be entered"):
        TapPort("tap0", "/dev/null")


@isolated
def test_interface_that_goes_down_or_away() -> None:
    a, b = pair()
    ip("link", "set", "b0", "down")
    ip("link", "set", "a0", "down")
    assert not a.send(Frame(ethernet(EVERYBODY, MAC[1])))
    assert a.dropped == {"interface down": 1}
    assert not a.send(Frame(b"x"))
    while a.receive() is not None:
        pass
    ip("link", "set", "a0", "up")
    ip("link", "set", "b0", "up")
    until_passing("a0", "b0")
    assert b.send(Frame(ethernet(EVERYBODY, MAC[1])))
    assert received(a, b"\x88\xb5").data == ethernet(EVERYBODY, MAC[1])
    ip("link", "del", "a0")
    poller = select.poll()
    poller.register(a, select.POLLIN)
    assert poller.poll(10_000)
    with pytest.raises(OSError, match="No such device"):
        received(a, b"none")
    a.close()
    a.close()
    b.close()


@isolated
def test_tap_has_several_queues() -> None:
    ports = TapPort.queues("many0", 4)
    assert len({port.fileno() for port in ports}) == 4
    ip("link", "set", "many0", "up")
    ip("addr", "add", "10.9.0.1/24", "dev", "many0")
    ip("neigh", "add", "10.9.0.2", "lladdr", MAC[2].hex(":"), "dev", "many0")
    used = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(64):
            sender.sendto(b"x", ("10.9.0.2", 1000 + number))
    for number, port in enumerate(ports):
        while (frame := port.receive()) is not None:
            if frame.data[12:14] == b"\x08\x00":
                used.add(number)
    assert len(used) > 1
    with pytest.raises(LocalError, match="another number of queues"):
        TapPort("many0")
    for port in ports:
        port.close()
    with pytest.raises(LocalError, match="as many queues"):
        TapPort.queues("many1", 257)
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("many1")
