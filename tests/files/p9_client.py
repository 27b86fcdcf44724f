"""A 9P client that waits for each answer: on a session itself, or on a socket."""

from __future__ import annotations

import os
import socket
from typing import Any

from powervio.files import p9_codec as p9
from powervio.files.p9_session import Session
from powervio.memory.abstract import Payload


class P9Failure(OSError):
    """Rlerror."""


class SessionClient:
    """Calls of a session, by fields; the answer's fields, or `P9Failure`."""

    def __init__(self, session: Session, source: Payload | None = None, target: Payload | None = None) -> None:
        self.session = session
        self.tag = 0

    def exchange(self, message: bytes) -> bytes:
        return self.session.handle(message, None, None)

    def call(self, kind: int, *fields: Any) -> tuple[Any, ...]:
        self.tag = self.tag % 0xFFFE + 1
        answer = self.exchange(p9.pack(kind, self.tag, *fields))
        assert len(answer) == int.from_bytes(answer[:4], "little")
        got, tag = p9.head(answer)
        assert tag == self.tag
        values = tuple(
            bytes(value) if isinstance(value, memoryview) else value for value in p9.unpack(got, answer)
        )  # fmt: skip
        if got == p9.RLERROR:
            raise P9Failure(values[0], os.strerror(values[0]))  # type: ignore[arg-type]
        assert got == kind + 1
        return values

    def attach(self, fid: int = 0, *, uid: int = 0, name: bytes = b"", msize: int = 1 << 20) -> None:
        assert self.call(p9.TVERSION, msize, p9.VERSION)[1] == p9.VERSION
        self.call(p9.TATTACH, fid, p9.NO_FID, b"", name, uid)

    def walk(self, fid: int, new: int, *names: bytes) -> list[p9.Qid]:
        (qids,) = self.call(p9.TWALK, fid, new, list(names))
        return list(qids)

    def readdir(self, fid: int, count: int = 8192) -> list[tuple[p9.Qid, int, int, bytes]]:
        found: list[tuple[p9.Qid, int, int, bytes]] = []
        while True:
            (data,) = self.call(p9.TREADDIR, fid, found[-1][1] if found else 0, count)
            if not data:
                return found
            found += p9.entries(data)


class SocketClient(SessionClient):
    """The same over a connected stream socket."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.tag = 0

    def exchange(self, message: bytes) -> bytes:
        self.line.sendall(message)
        head = self.receive(4)
        return head + self.receive(int.from_bytes(head, "little") - 4)

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.line.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data
