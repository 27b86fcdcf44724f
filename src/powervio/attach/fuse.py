# cython: language_level=3, annotation_typing=False
"""One FUSE session at its device: requests of the kernel are read here, and answered by a file system.

A file system is a table of functions, one for each kind of request. A function that can answer at once returns the
parts of its answer; one that has to ask somebody else is a generator: it yields what is to be waited for (`Waiting`),
and returns its answer at the end. So each is written as it is thought, runs without a thread or a task of its own, and
is tested without a kernel. An `OSError` is the answer to the kernel.

Everything runs in one event loop. A request that is in hand when the session ends is dropped: nobody waits any more.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from powervio.errors import RemoteError
from powervio.files.fuse_codec import FuseCodec, Request
from powervio.files.fuse_messages import MIN_READ_BUFFER, NO_REPLY, InterruptIn, Opcode

log = logging.getLogger(__name__)

Parts: TypeAlias = Sequence[bytes | bytearray | memoryview]
"""The body of a reply in pieces, which are written together."""
HEADROOM = 4096
"""Bytes of a request beside the data of a WRITE: headers, and names of other requests."""
TURN = 32
"""Requests that are begun before others of the event loop have their turn."""
_GONE = (errno.ENODEV, errno.EBADF)


class Waiting(Protocol):
    """Something that ends, and says so."""

    def wait(self, resume: Callable[[Any, BaseException | None], None]) -> None:
        """Begin, and call `resume` once, later or at once, with a result or an error."""

    def cancel(self) -> None:
        """It need not go on; `resume` is called with an error all the same, unless it ended before."""


Work: TypeAlias = Generator[Waiting, Any, Parts]
Handler: TypeAlias = Callable[[Request], "Work | Parts | None"]
"""None is for requests without an answer."""


class Pause:
    """Waiting for a time, in seconds; cancelled, it is EINTR."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._resume: Callable[[Any, BaseException | None], None] | None = None

    def wait(self, resume: Callable[[Any, BaseException | None], None]) -> None:
        """See `Waiting`."""
        self._resume = resume
        self._timer = asyncio.get_running_loop().call_later(self._seconds, resume, None, None)

    def cancel(self) -> None:
        """See `Waiting`."""
        if self._timer is not None and self._resume is not None and not self._timer.cancelled():
            self._timer.cancel()
            self._resume(None, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))


class _Operation:
    """One request that is being answered by a generator."""

    __slots__ = ("_buffer", "_session", "_waiting", "_work", "request")

    def __init__(self, session: FuseSession, request: Request, work: Work, buffer: bytearray | None) -> None:
        self._session = session
        self.request = request
        self._work = work
        self._waiting: Waiting | None = None
        self._buffer = buffer

    def resume(self, value: Any, error: BaseException | None) -> None:
        """Go on with what was waited for."""
        try:
            waiting = self._work.send(value) if error is None else self._work.throw(error)
        except StopIteration as stop:
            self._session.answer(self.request, stop.value)
        except OSError as failure:
            self._session.refuse(self.request, failure.errno or errno.EIO)
        except Exception:
            log.exception("FUSE request %d failed", self.request.header.opcode)
            self._session.refuse(self.request, errno.EIO)
        else:
            self._waiting = waiting
            waiting.wait(self.resume)
            return
        self._session.ended(self.request, self._buffer)

    def interrupt(self) -> None:
        """The caller has a signal."""
        if self._waiting is not None:
            self._waiting.cancel()


class FuseSession:
    """Serves one mount in the running event loop."""

    def __init__(
        self, device: int, handlers: Mapping[int, Handler], max_write: int, on_end: Callable[[], None] = lambda: None
    ) -> None:
        """`device` is of `mount.open_device`, and closed here; `max_write` is what INIT's answer will say, in bytes.

        `on_end` is called once when the session is over: unmounted, aborted, or closed.
        """
        self.codec = FuseCodec()
        self.requests = 0
        """How many were read."""
        self._device = device
        self._handlers = dict(handlers)
        self._buffer_size = max(max_write + HEADROOM, MIN_READ_BUFFER)
        self._idle: list[bytearray] = []
        self._operations: dict[int, _Operation] = {}
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._device, self._readable)

    @property
    def in_hand(self) -> int:
        """Requests that wait for an answer."""
        return len(self._operations)

    def close(self) -> None:
        """End the session; what the kernel waits for fails there with ENOTCONN."""
        if self._device < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._device)
        os.close(self._device)
        self._device = -1
        self._operations.clear()
        self._on_end()

    def _readable(self) -> None:
        # with one request at a time there is no second, and to ask for it costs as much as to read one
        for _ in range(TURN if len(self._operations) > 1 else 1):
            if self._device < 0:
                return
            buffer = self._idle.pop() if self._idle else bytearray(self._buffer_size)
            view = memoryview(buffer)
            try:
                length = os.readv(self._device, (view,))
            except OSError as error:
                self._idle.append(buffer)
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return
                if error.errno == errno.ENOENT:  # it was interrupted before it was read
                    continue
                if error.errno not in _GONE:
                    log.error("FUSE device: %s", error.strerror)
                self.close()
                return
            self.requests += 1
            self._begin(view[:length], buffer)

    def _begin(self, frame: memoryview, buffer: bytearray) -> None:
        try:
            request = self.codec.decode(frame)
        except RemoteError as error:  # the kernel's: nothing can be said of the session any more
            log.error("%s", error)
            self.close()
            return
        opcode = request.header.opcode
        kept = len(request.data) > 0
        if opcode == Opcode.INTERRUPT:
            self._idle.append(buffer)
            self._interrupt(request.body)
            return
        handler = self._handlers.get(opcode)
        if handler is None:
            self._idle.append(buffer)
            self.refuse(request, errno.ENOSYS)
            return
        try:
            answer = handler(request)
        except OSError as error:
            self._idle.append(buffer)
            self.refuse(request, error.errno or errno.EIO)
            return
        except Exception:
            log.exception("FUSE request %d failed", opcode)
            self._idle.append(buffer)
            self.refuse(request, errno.EIO)
            return
        if not isinstance(answer, Generator):
            self._idle.append(buffer)
            if answer is not None:
                self.answer(request, answer)
            return
        if not kept:
            self._idle.append(buffer)
        operation = _Operation(self, request, answer, buffer if kept else None)
        self._operations[request.header.unique] = operation
        operation.resume(None, None)

    def _interrupt(self, body: InterruptIn) -> None:
        operation = self._operations.get(body.unique)
        if operation is not None and operation.request.header.opcode == Opcode.SETLKW:
            # others end soon, and programs do not expect EINTR of a regular file
            operation.interrupt()

    def ended(self, request: Request, buffer: bytearray | None) -> None:
        """An operation was answered."""
        self._operations.pop(request.header.unique, None)
        if buffer is not None:
            self._idle.append(buffer)

    # Answers

    def answer(self, request: Request, parts: Parts) -> None:
        """Send a body."""
        length = sum(map(len, parts))
        if not self._write((self.codec.header(request.header.unique, length), *parts)):
            self.refuse(request, errno.EIO)  # else whoever asked would wait for ever

    def refuse(self, request: Request, error: int) -> None:
        """Send an errno."""
        if request.header.opcode not in NO_REPLY:
            self._write((self.codec.header(request.header.unique, 0, error),))

    def notify(self, message: bytes) -> None:
        """Send a notification of the codec's. One for what the kernel does not know has no effect.

        It must not make the kernel wait for a request of this session: no data are to be invalidated here.
        """
        self._write((message,))

    def _write(self, parts: Parts) -> bool:
        """Whether the kernel took it, or nobody waits for it any more."""
        if self._device < 0:
            return True
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the request was aborted, or the notification is about an unknown node
                return True
            if error.errno in _GONE:
                self.close()
                return True
            log.error("FUSE device, writing %d parts: %s", len(parts), error.strerror)
            return False
        return True
