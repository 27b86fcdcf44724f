"""Ports for QEMU's dgram and stream back ends: against sockets of the test's, and against QEMU."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

import pytest
from tests.network.switching import MAC, ethernet
from tests.network.test_segment import large

from powervio.errors import LocalError
from powervio.network.checksum import checksum
from powervio.network.port import Frame, Port
from powervio.network.qemu import DatagramPort, StreamPort
from powervio.network.segment import segments

EVERYBODY = b"\xff" * 6
DATA = [ethernet(EVERYBODY, MAC[1], payload=46 + number) for number in range(5)]


def wait_for(port: Port, limit: float = 10.0) -> Frame:
    """The next frame."""
    end = time.monotonic() + limit
    while (frame := port.receive()) is None:
        poller = select.poll()
        poller.register(port, select.POLLIN)
        left = end - time.monotonic()
        assert left > 0, "nothing came"
        poller.poll(left * 1000)
    return frame


def test_datagrams_are_frames(tmp_path: Path) -> None:
    port = DatagramPort(tmp_path / "ours", tmp_path / "his")
    assert not port.send(Frame(DATA[0]))
    assert port.dropped == {"nobody there": 1}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(tmp_path / "his"))
        peer.settimeout(10)
        frame = large(b"x" * 3000, 1400)
        assert port.send(frame)
        assert [peer.recv(70000) for _ in range(3)] == [part.data for part in segments(frame)]
        peer.sendto(DATA[1], str(tmp_path / "ours"))
        peer.sendto(b"x" * 13, str(tmp_path / "ours"))
        peer.sendto(DATA[2], str(tmp_path / "ours"))
        assert [wait_for(port), wait_for(port), port.receive()] == [Frame(DATA[1]), Frame(DATA[2]), None]
        count = 0
        while port.send(Frame(DATA[0])):
            count += 1
        assert count == port.sent - 1
    assert port.dropped == {"nobody there": 1, "too short": 1, "queue full": 1}
    assert not port.send(Frame(b"x" * 60, (0, 0), gso=1, gso_size=10))
    port.close()
    port.close()
    assert not (tmp_path / "ours").exists()


def test_socket_of_a_dead_predecessor_is_replaced_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    for make in (lambda path: DatagramPort(path, "x"), StreamPort):
        path = tmp_path / "ours"
        left = make(path)
        with pytest.raises(LocalError, match="Address already in use"):
            make(path)
        left.close()
        kind = socket.SOCK_STREAM if make is StreamPort else socket.SOCK_DGRAM
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(str(path))
        make(path).close()
        path.write_text("something else")
        with pytest.raises(LocalError, match="Address already in use"):
            make(path)
        path.unlink()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        yield peer


def test_frames_of_a_stream_have_their_length_before_them(tmp_path: Path) -> None:
    port = StreamPort(tmp_path / "ours")
    assert not port.send(Frame(DATA[0]))
    with connected(tmp_path / "ours") as peer:
        for byte in framed(DATA[0]):
            assert port.receive() is None
            peer.sendall(bytes([byte]))
        assert wait_for(port) == Frame(DATA[0])
        peer.sendall(b"".join(map(framed, DATA)) + framed(b"x") + framed(DATA[0])[:7])
        assert [wait_for(port) for _ in DATA] == [Frame(data) for data in DATA]
        assert port.receive() is None
        frame = large(b"x" * 3000, 1400)
        assert port.send(frame)
        expected = b"".join(framed(bytes(part.data)) for part in segments(frame))
        got = b""
        while len(got) < len(expected):
            got += peer.recv(70000)
        assert got == expected
    # the next virtual machine
    with connected(tmp_path / "ours") as peer:
        peer.sendall(framed(DATA[3]))
        assert wait_for(port) == Frame(DATA[3])
        peer.sendall(b"\xff" * 100)
        assert port.receive() is None
        assert peer.recv(1) == b""
    assert not port.send(Frame(DATA[0]))
    assert port.dropped == {"nobody there": 2, "too short": 1, "too long": 1}
    port.close()
    port.close()


def test_stream_that_is_full_drops_whole_frames(tmp_path: Path) -> None:
    port = StreamPort(tmp_path / "ours")
    frames = [ethernet(EVERYBODY, MAC[1], payload=60000, first=number) for number in range(60)]
    got = bytearray()
    with connected(tmp_path / "ours") as peer:
        sent = [data for data in frames if port.send(Frame(data))]
        assert port.dropped == {"queue full": 60 - len(sent)}
        assert 2 < len(sent) < 60
        expected = b"".join(map(framed, sent))
        while len(got) < len(expected):
            got += peer.recv(1 << 20)
            assert port.receive() is None  # it also goes on with what was begun
    assert got == expected
    port.close()


def offer(discover: bytes) -> bytes:
    """DHCP: 10.0.0.9 for who asked, from 10.0.0.1."""
    server, client = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 9])
    options = b"\x63\x82\x53\x63" + bytes([53, 1, 2, 54, 4, *server, 51, 4, 0, 0, 1, 0, 1, 4, 255, 255, 255, 0, 255])
    request = discover[42:]
    message = b"\2" + request[1:8] + bytes(8) + client + server + bytes(4) + request[28:236] + options
    udp = pack(">HHHH", 67, 68, 8 + len(message), 0) + message
    header = pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + server + EVERYBODY[:4]
    header = header[:10] + pack(">H", checksum(header)) + header[12:]
    return discover[6:12] + MAC[1] + b"\x08\x00" + header + udp


def frame_of(port: Port, wanted: Callable[[bytes], bool]) -> bytes:
    """The next frame that is wanted."""
    for _ in range(100):
        data = bytes(wait_for(port).data)
        if wanted(data):
            return data
    raise AssertionError("no such frame")


def dhcp(data: bytes, kind: int) -> bool:
    return data[12:14] == b"\x08\x00" and data[278:285] == bytes.fromhex("63825363 3501") + bytes([kind])


@contextmanager
def qemu(*netdev: str) -> Iterator[None]:
    """A machine whose firmware asks the network for something to boot (DHCP)."""
    command = ["qemu-system-x86_64", "-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-no-user-config"]
    command += ["-boot", "n", "-netdev", *netdev, "-device", f"virtio-net-pci,netdev=n,mac={MAC[5].hex(':')}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("kind", ["dgram", "stream"])
def test_machine_of_qemu_asks_for_an_address_and_takes_an_answer(tmp_path: Path, kind: str) -> None:
    ours, his = tmp_path / "ours", tmp_path / "his"
    if kind == "dgram":
        port: Port = DatagramPort(ours, his)
        netdev = f"dgram,id=n,local.type=unix,local.path={his},remote.type=unix,remote.path={ours}"
    else:
        port = StreamPort(ours)
        netdev = f"stream,id=n,server=off,addr.type=unix,addr.path={ours}"
    with qemu(netdev):
        discover = frame_of(port, lambda data: dhcp(data, 1))
        assert discover[6:12] == MAC[5]
        assert port.send(Frame(offer(discover)))
        request = frame_of(port, lambda data: dhcp(data, 3))
        assert bytes([50, 4, 10, 0, 0, 9]) in request, "it asks for the address that it was offered"
    port.close()
