"""A device behind a listening socket, for one front end after the other: a VM that goes away leaves it waiting."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from powervio.errors import PowervioError, RemoteError
from powervio.transport.vhost_user.back_end import TRANSLATION_LIMIT, BackEnd, BackEndOptions
from powervio.transport.vhost_user.connection import Closed, Connection
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.protocol import FRONT_END_MESSAGES, FrontEnd, Message, name_of
from powervio.virtio.device import Device

_log = logging.getLogger(__name__)

_MESSAGES = 32
"""Taken in one turn, before the queues get theirs."""


class Link:
    """One front end: its connection, and the back end that answers."""

    def __init__(
        self, sock: socket.socket, device: Device, loop: Loop, options: BackEndOptions, on_end: Callable[[Link], None]
    ) -> None:
        """Take over a connected socket. `on_end` is called once when the front end is gone or was disconnected."""
        self._connection = Connection(sock, FRONT_END_MESSAGES)
        self._loop = loop
        self._on_end = on_end
        self.back_end = BackEnd(device, loop, options, self._ask, self._translate)
        self.failure = ""
        """Why it was disconnected; empty while it was not."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            for _ in range(_MESSAGES):
                if self._connection.closed:
                    return
                message = self._connection.receive()
                if message is None:
                    return
                self._handle(message)
            if self._connection.has_deferred:
                self._loop.call_soon_threadsafe(self._readable)
        except Closed as closed:
            self.close(str(closed) if closed.in_message else "")
        except PowervioError as error:
            self.close(str(error))
        except Exception as error:
            _log.exception("a message failed")
            self.close(f"{type(error).__name__} here")

    def _handle(self, message: Message) -> None:
        _log.debug("%s %s", name_of(FRONT_END_MESSAGES, message.request), message)
        reply = self.back_end.handle(message)
        if reply is not None:
            try:
                self._connection.send(reply)
            finally:
                reply.close()

    def _ask(self, message: Message, fd: int) -> None:
        with socket.socket(fileno=socket.dup(fd)) as channel:
            try:
                channel.setblocking(False)
                channel.send(message.encode(), socket.MSG_NOSIGNAL)
            except OSError as error:
                raise RemoteError(f"the channel to the front end failed ({error.strerror})") from error

    def _translate(self) -> bool:
        """Take one message while a translation is awaited; what is not about translations waits for its turn."""
        deadline = time.monotonic() + TRANSLATION_LIMIT
        while (left := deadline - time.monotonic()) > 0 and not self._connection.closed:
            try:
                message = self._connection.receive_new()
                if message is None:
                    if not self._connection.wait(left):
                        return False
                elif message.request == FrontEnd.IOTLB_MSG:
                    self._handle(message)
                    return True
                else:
                    self._connection.defer(message)
                    self._loop.call_soon_threadsafe(self._readable)
            except RemoteError as error:
                # the device is at work up the stack: the connection ends when it has returned
                failure = "" if isinstance(error, Closed) and not error.in_message else str(error)
                self._loop.call_soon_threadsafe(lambda failure=failure: self.close(failure))  # type: ignore[misc]
                return False
        return False

    def close(self, failure: str = "") -> None:
        """Disconnect; with a reason if it is the front end's fault."""
        if self._connection.closed:
            return
        self.failure = failure
        if failure:
            _log.error("front end disconnected: %s", failure)
        else:
            _log.info("the front end is gone")
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        self.back_end.close()
        self._on_end(self)


class Server:
    """One device for whoever connects, one at a time; the others wait."""

    def __init__(
        self,
        device: Device,
        loop: Loop,
        listener: socket.socket | None,
        options: BackEndOptions | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Take over a listening Unix stream socket; without one only `connect` brings front ends.

        `on_end` is called whenever a front end is gone.
        """
        self.device = device
        self.link: Link | None = None
        """The front end that is connected now."""
        self.served = 0
        """Front ends that have connected."""
        self.failures: list[str] = []
        """Why the last front ends were disconnected, the newest last."""
        self._loop = loop
        self._listener = listener
        self._options = BackEndOptions() if options is None else options
        self._on_end = on_end
        self._listen()

    def _listen(self) -> None:
        if self._listener is not None and self.link is None:
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("no front end can connect now: %s", error.strerror)
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(1.0, self._listen)
            return
        self._loop.remove_reader(self._listener.fileno())
        self.connect(sock)

    def connect(self, sock: socket.socket) -> None:
        """Serve a front end that is connected already."""
        self.served += 1
        self.link = Link(sock, self.device, self._loop, self._options, self._ended)

    def _ended(self, link: Link) -> None:
        if link.failure:
            self.failures = [*self.failures[-9:], link.failure]
        self.link = None
        self._listen()
        if self._on_end is not None:
            self._on_end()

    def close(self) -> None:
        """Listen no more, and disconnect the front end."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        if self.link is not None:
            self.link.close()
