"""A relay in front of a 9P server that keeps what goes through, and what tshark makes of that."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PORT = 564
_SEGMENT = 60_000
_MISREAD = "54, 55"


class Recorded(NamedTuple):
    """One message: the number of its connection, whether it is a T-message, and its bytes."""

    connection: int
    asks: bool
    data: bytes


class Recorder:
    """Listens, and has each connection served by another listener (`unix:PATH` or `tcp:HOST:PORT`)."""

    def __init__(self, server: str, host: str = "127.0.0.1") -> None:
        self.messages: list[Recorded] = []
        self._server = server
        self._lock = threading.Lock()
        self._listening = socket.create_server((host, 0))
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                kind, _, rest = self._server.partition(":")
                far = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
                far.connect(rest if kind == "unix" else (rest.rpartition(":")[0], int(rest.rpartition(":")[2])))
                self._lines += (near, far)
                self._start(self._pass, near, far, number, True)
                self._start(self._pass, far, near, number, False)
                number += 1

    def _pass(self, source: socket.socket, target: socket.socket, number: int, asks: bool) -> None:
        left = bytearray()
        with suppress(OSError):
            while data := source.recv(1 << 20):
                left += data
                while len(left) >= 4 and len(left) >= (size := int.from_bytes(left[:4], "little")):
                    with self._lock:  # an answer is never before its question
                        self.messages.append(Recorded(number, asks, bytes(left[:size])))
                    target.sendall(left[:size])
                    del left[:size]
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for line in self._lines:
            line.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_pcap(path: Path, messages: Sequence[Recorded]) -> None:
    """The messages as TCP segments of hosts that there are not, which go to and come from port 564."""
    sequence: dict[tuple[int, bool], int] = {}
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 101))
        for count, (number, asks, data) in enumerate(messages):
            for at in range(0, len(data), _SEGMENT):
                segment = _segment(number, asks, data[at : at + _SEGMENT], sequence)
                file.write(struct.pack("<IIII", 1_700_000_000 + count, 0, len(segment), len(segment)) + segment)


def _segment(number: int, asks: bool, data: bytes, sequence: dict[tuple[int, bool], int]) -> bytes:
    hosts = (bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    ports = (40_000 + number, PORT)
    before = sequence.get((number, asks), 1)
    sequence[number, asks] = before + len(data)
    source, target = (0, 1) if asks else (1, 0)
    tcp = struct.pack(
        ">HHIIBBHHH", ports[source], ports[target], before, sequence.get((number, not asks), 1), 0x50, 0x18, 65535, 0, 0
    )
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0) + hosts[source] + hosts[target]
    return ip + tcp + data


class Dissected(NamedTuple):
    """What tshark says of one message."""

    length: int
    kind: int
    tag: int


def dissect(path: Path) -> list[Dissected]:
    """The messages of a capture, in their order, as tshark finds them. It has to find nothing else in it, and nothing
    that is broken.

    Tgetlock and Rgetlock are left out of the latter: tshark (4.0) looks for the flags of a Tlock in them, which neither
    Linux nor diod has there.
    """
    broken = "_ws.malformed or _ws.expert.severity >= 0x600000 or (tcp.len > 0 and not 9p and not tcp.segment_data)"
    strange = f"({broken}) and not 9p.msgtype in {{{_MISREAD}}}"
    assert list(_tshark(path, "-Y", strange, "-T", "text")) == []
    names = ("9p.msglen", "9p.msgtype", "9p.tag")
    fields = [word for name in names for word in ("-e", name)]
    rows = _tshark(path, "-Y", "tcp", "-T", "fields", "-E", "separator=;", *fields)
    return [Dissected(*map(int, row.split(";"))) for row in rows if row != ";;"]


def _tshark(path: Path, *options: str) -> Iterator[str]:
    command = ["tshark", "-r", str(path), "-o", "tcp.check_checksum:FALSE", *options]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    return iter(done.stdout.splitlines())
