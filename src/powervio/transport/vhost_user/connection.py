"""A Unix stream socket that carries vhost-user messages: bytes and descriptors in, messages out, and back.

Descriptors belong to the message with whose bytes they come. Whatever a peer sends parses or raises `RemoteError`, and
descriptors of what did not parse are closed: none is ever left open by accident.
"""

from __future__ import annotations

import array
import select
import socket
import time
from collections import deque
from collections.abc import Mapping

from powervio.errors import RemoteError, Verdict
from powervio.transport.vhost_user.protocol import (
    HEADER,
    MAX_FDS,
    Message,
    Row,
    close_all,
    decode,
    payload_size,
)

SEND_LIMIT = 5.0
"""Seconds for a peer to take a message from its socket."""
MAX_DEFERRED = 64
"""Messages that wait for one to be served first; a front end sends few without an answer."""
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Closed(RemoteError):
    """The peer closed the connection; no error if it was between two messages."""

    def __init__(self, in_message: bool) -> None:
        super().__init__("the peer closed the connection in a message" if in_message else "closed", Verdict.CLOSE)
        self.in_message = in_message


class Connection:
    """One end of a connection, non-blocking for what comes in."""

    def __init__(self, sock: socket.socket, messages: Mapping[int, Row]) -> None:
        """Take over a connected socket on which `messages` arrive (and replies to them, at the other end)."""
        self._socket = sock
        self._messages = messages
        self._data = bytearray()
        self._fds: list[int] = []
        self._wanted = HEADER.size
        self._deferred: deque[Message] = deque()
        self.closed = False
        sock.setblocking(False)

    def fileno(self) -> int:
        """The socket's descriptor, for poll."""
        return self._socket.fileno()

    @property
    def has_deferred(self) -> bool:
        """Whether messages wait that `defer` put back."""
        return bool(self._deferred)

    def defer(self, message: Message) -> None:
        """Let `receive` give this message again, after those that were deferred before.

        Raises `RemoteError` with CLOSE when there are too many; the message is closed then.
        """
        if len(self._deferred) >= MAX_DEFERRED:
            message.close()
            raise RemoteError(f"more than {MAX_DEFERRED} messages while a translation was awaited", Verdict.CLOSE)
        self._deferred.append(message)

    def receive(self) -> Message | None:
        """The next message: a deferred one, or one from the socket. None when none is there yet.

        Raises `Closed` at the end, `RemoteError` with CLOSE for what is no message; then the connection is of no use.
        """
        return self._deferred.popleft() if self._deferred else self.receive_new()

    def receive_new(self) -> Message | None:
        """As `receive`, past what was deferred."""
        while True:
            if len(self._data) == self._wanted and self._wanted >= HEADER.size:
                header = bytes(self._data[: HEADER.size])
                if len(self._data) == HEADER.size and (size := payload_size(header)):
                    self._wanted = HEADER.size + size
                else:
                    fds, self._fds = self._fds, []
                    data = bytes(self._data[HEADER.size :])
                    self._data.clear()
                    self._wanted = HEADER.size
                    try:
                        return decode(self._messages, header, data, fds)
                    except BaseException:
                        close_all(fds)
                        raise
            if not self._read():
                return None

    def _read(self) -> bool:
        """Read towards `_wanted`; False when there is nothing now."""
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, said, _ = self._socket.recvmsg(self._wanted - len(self._data), _ANCILLARY, flags)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise RemoteError(f"the connection failed ({error.strerror})", Verdict.CLOSE) from error
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._fds += numbers
        if said & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise RemoteError(f"more than {MAX_FDS} descriptors with a message", Verdict.CLOSE)
        if not data:
            raise Closed(in_message=bool(self._data or self._fds))
        self._data += data
        return True

    def wait(self, limit: float) -> bool:
        """Wait until something comes in, at most `limit` seconds. False when nothing did."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(max(0.0, limit) * 1000))

    def send(self, message: Message) -> None:
        """Send a message with its descriptors, which stay the caller's.

        Raises `RemoteError` with CLOSE when the peer does not take it within `SEND_LIMIT`, or is gone.
        """
        data = memoryview(message.encode())
        fds = array.array("i", message.fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if message.fds else []
        deadline = time.monotonic() + SEND_LIMIT
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        while data:
            try:
                sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                left = deadline - time.monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    raise RemoteError(f"the peer read nothing for {SEND_LIMIT} s", Verdict.CLOSE) from None
                continue
            except OSError as error:
                raise RemoteError(f"the connection failed ({error.strerror})", Verdict.CLOSE) from error
            data = data[sent:]
            ancillary = []

    def close(self) -> None:
        """Close the socket and every descriptor that came and was not taken; harmless the second time."""
        self.closed = True
        self._socket.close()
        close_all(self._fds)
        while self._deferred:
            self._deferred.popleft().close()
