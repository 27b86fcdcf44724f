"""Captures, as tshark and tcpdump read them."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

from tests.network.switching import MAC, ethernet, tag
from tests.network.test_segment import large

from powervio.network.loopback import LoopbackPort
from powervio.network.pcapng import Capture, PcapngWriter
from powervio.network.port import Frame, Offload
from powervio.network.segment import segments
from powervio.network.switch import PortOptions, Switch

EVERYBODY = b"\xff" * 6
NOW = 1_700_000_000_123_456_789


def output(*command: str | Path) -> list[str]:
    result = subprocess.run(list(map(str, command)), check=True, timeout=60, capture_output=True, text=True)
    return result.stdout.splitlines()


def test_tshark_reads_what_went_through_two_ports(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    switch = Switch()
    with path.open("wb") as file:
        writer = PcapngWriter(file, lambda: NOW)
        a = Capture(switch.add(PortOptions(name="client a", pvid=10)), writer)
        b = Capture(switch.add(PortOptions(name="trunk", pvid=1, vlans=(10,), trunk=1)), writer)
        (frame, *_) = segments(large(b"hello" * 9, 99))
        assert a.send(frame)
        assert b.receive() is not None
        assert b.send(Frame(tag(ethernet(MAC[1], MAC[2], payload=47), 10)))
        assert a.receive() is not None
        assert not b.send(Frame(tag(ethernet(EVERYBODY, MAC[2]), 30)))
        assert a.receive() is None
        a.close()
    fields = (
        "frame.time_epoch",
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "vlan.id",
        "eth.src",
    )
    names = [word for field in fields for word in ("-e", field)]
    lines = output("tshark", "-r", path, "-T", "fields", "-E", "separator=;", *names)
    one, two = MAC[1].hex(":"), MAC[2].hex(":")
    time = "1700000000.123456789"
    assert lines == [
        f"{time};client a;0x00000002;{len(frame.data)};;{one}",
        f"{time};trunk;0x00000001;{len(frame.data) + 4};10;{one}",
        f"{time};trunk;0x00000002;65;10;{two}",
        f"{time};client a;0x00000001;61;;{two}",
    ]
    checks = (
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-e",
        "tcp.checksum.status",
        "-e",
        "ip.checksum.status",
    )
    assert output("tshark", "-r", path, "-T", "fields", "-E", "separator=;", *checks, "tcp") == ["1;1", "1;1"]
    assert "hello" in "".join(output("tcpdump", "-A", "-nr", path, "tcp"))
    assert [port.name for port in switch.ports] == ["trunk"]


def test_capture_is_the_port_that_it_is_before() -> None:
    inner = LoopbackPort(mtu=9000, limit=1)
    port = Capture(inner, PcapngWriter(BytesIO()))
    arrivals: list[int] = []
    port.on_arrival = lambda: arrivals.append(len(inner))
    port.take(Offload.CSUM)
    frame = Frame(ethernet(EVERYBODY, MAC[1]), (14, 0))
    assert port.send(frame)
    assert not port.send(frame)
    assert port.receive() == frame
    assert port.receive() is None
    assert (port.mtu, port.name, port.fileno()) == (9000, "loopback", -1)
    assert (port.sent, port.received, port.dropped, arrivals) == (1, 1, {"queue full": 1}, [1])


class Full(BytesIO):
    """A file on a disk that is full, soon."""

    def write(self, data: object, /) -> int:
        if self.tell() > 200:
            raise OSError(28, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


def test_capture_that_cannot_be_written_ends_and_the_port_goes_on() -> None:
    file = Full()
    port = Capture(LoopbackPort(), PcapngWriter(file))
    for _ in range(5):
        assert port.send(Frame(ethernet(EVERYBODY, MAC[1])))
        assert port.receive() is not None
    assert port.stopped
    size = file.tell()
    port.send(Frame(ethernet(EVERYBODY, MAC[1])))
    assert file.tell() == size
