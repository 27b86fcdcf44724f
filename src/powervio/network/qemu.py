"""Ports as QEMU's `-netdev dgram` and `-netdev stream` speak them, over Unix sockets. Frames are finished there.

    -netdev dgram,id=n,local.type=unix,local.path=HIS,remote.type=unix,remote.path=OURS
    -netdev stream,id=n,server=off,addr.type=unix,addr.path=OURS

A datagram is a frame. In a stream each frame has its length before it, 32 bits, big-endian. Virtual machines come and
go; while there is none, frames are dropped and counted.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from pathlib import Path

from powervio.errors import LocalError
from powervio.network.port import ETHERNET_BYTES, Frame, Port
from powervio.network.segment import fitted

_MAX_FRAME = 4096 + 65536
"""Bytes of QEMU's own buffer (NET_BUFSIZE)."""
_BUFFER = 1 << 20
_LENGTH = 4


def _bound(path: str | os.PathLike[str], kind: socket.SocketKind) -> socket.socket:
    """A Unix socket at a path; one that a dead predecessor left is replaced."""
    end = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            if Path(path).is_socket() and not _is_served(path, kind):
                Path(path).unlink()
        end.bind(os.fspath(path))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    except OSError as error:
        end.close()
        raise LocalError(f"socket {path}: {error.strerror}") from error
    return end


def _is_served(path: str | os.PathLike[str], kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as asker:
        try:
            asker.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
        return True


class _SocketPort(Port):
    """What both have in common: receivers of finished frames."""

    def __init__(self, path: str | os.PathLike[str], mtu: int) -> None:
        super().__init__()
        self.name = os.fspath(path)
        self.mtu = mtu
        self._path = Path(path)

    def send(self, frame: Frame) -> bool:
        """See `Port`."""
        parts = fitted(frame, 0)
        if not parts:
            return self.drop("malformed")
        if not all(self._send(part.data) for part in parts):  # a receiver misses the rest as well
            return False
        self.sent += 1
        return True

    def receive(self) -> Frame | None:
        """See `Port`."""
        while (data := self._next()) is not None:
            if len(data) >= ETHERNET_BYTES:
                self.received += 1
                return Frame(data)
            self.drop("too short")
        return None

    def _send(self, data: bytes | memoryview) -> bool:
        raise NotImplementedError

    def _next(self) -> bytes | memoryview | None:
        raise NotImplementedError


class DatagramPort(_SocketPort):
    """One end of a pair of datagram sockets."""

    def __init__(self, local: str | os.PathLike[str], remote: str | os.PathLike[str], mtu: int = 1500) -> None:
        """`local` is made, and goes with the port; `remote` need not be there yet. Raises `LocalError`."""
        super().__init__(local, mtu)
        self._remote = os.fspath(remote)
        self._socket = _bound(local, socket.SOCK_DGRAM)

    def fileno(self) -> int:
        """See `Port`."""
        return self._socket.fileno()

    def _send(self, data: bytes | memoryview) -> bool:
        try:
            self._socket.sendto(data, self._remote)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return self.drop("nobody there")
            full = error.errno in (errno.EAGAIN, errno.ENOBUFS)
            return self.drop("queue full" if full else error.strerror or "failed")
        return True

    def _next(self) -> bytes | None:
        try:
            return self._socket.recv(_MAX_FRAME)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """See `Port`."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._path.unlink(missing_ok=True)


class StreamPort(_SocketPort):
    """The server of a stream socket: one virtual machine at a time, and the next when that is gone."""

    def __init__(self, path: str | os.PathLike[str], mtu: int = 1500) -> None:
        """`path` is made, and goes with the port. Raises `LocalError`."""
        super().__init__(path, mtu)
        self._listener = _bound(path, socket.SOCK_STREAM)
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._came = bytearray()
        self._unsent = b""
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        """See `Port`: readable when a frame came, and when somebody comes or goes."""
        return self._poll.fileno()

    def _accept(self) -> bool:
        try:
            self._connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        self._connection.setblocking(False)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._poll.unregister(self._listener)  # the next one waits
        self._poll.register(self._connection, select.EPOLLIN)
        return True

    def _hang_up(self) -> None:
        assert self._connection is not None
        self._poll.unregister(self._connection)
        self._connection.close()
        self._connection = None
        self._came.clear()
        self._unsent = b""
        self._poll.register(self._listener, select.EPOLLIN)

    def _send(self, data: bytes | memoryview) -> bool:
        if self._connection is None and not self._accept():
            return self.drop("nobody there")
        if self._unsent and not self._write(()):
            return self.drop("queue full")
        return self._write((len(data).to_bytes(_LENGTH, "big"), data)) or self.drop("queue full")

    def _write(self, parts: tuple[bytes | memoryview, ...]) -> bool:
        """Send what was begun and parts of a frame. False when a next one has to wait; what was begun is kept."""
        assert self._connection is not None
        waiting = (self._unsent, *parts) if self._unsent else parts
        try:
            sent = self._connection.sendmsg(waiting)
        except OSError:  # full, or nobody is there any more, which `receive` will find
            return False
        total = sum(map(len, waiting))
        self._unsent = b"".join(waiting)[sent:] if sent < total else b""
        return not self._unsent or bool(parts)

    def _next(self) -> bytes | None:
        while True:
            came = self._came
            if len(came) >= _LENGTH:
                length = int.from_bytes(came[:_LENGTH], "big")
                if length > _MAX_FRAME:
                    self.drop("too long")
                    self._hang_up()  # nobody knows where the next one begins
                    continue
                if len(came) >= _LENGTH + length:
                    frame = bytes(came[_LENGTH : _LENGTH + length])
                    del came[: _LENGTH + length]
                    return frame
            if self._connection is None and not self._accept():
                return None
            assert self._connection is not None
            if self._unsent:
                self._write(())
            try:
                data = self._connection.recv(1 << 18)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            if data:
                came += data
            else:
                self._hang_up()

    def close(self) -> None:
        """See `Port`."""
        if self._listener.fileno() < 0:
            return
        self._poll.close()
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._path.unlink(missing_ok=True)
