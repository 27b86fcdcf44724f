"""The sending half of a connection: replies go straight from lent buffers into the socket, and then give them back."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic

from powervio.attach.disk import B

_VECTORS = 256  # pieces to one sendmsg; the kernel takes 1024


class Sender(Generic[B]):
    """Queues replies and writes as many as the socket takes with one system call. Nothing is copied or joined."""

    def __init__(
        self, connection: socket.socket, release: Callable[[B], None], failed: Callable[[OSError], None]
    ) -> None:
        """`release` gets each buffer when its last byte has left; `failed` is told once when the socket is broken."""
        self.in_flight = 0
        """Replies that are owed or have not left yet; the caller adds one for each `send` to come."""
        self.progress = 0.0
        """When bytes left last, or began to wait, by the loop's clock."""
        self.closed = False
        self._socket = connection
        self._release = release
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        # Pieces of memory, and where in the stream of bytes each reply ends, with what happens then.
        self._pieces: deque[bytes | memoryview] = deque()
        self._ends: deque[tuple[int, B | None, asyncio.Future[None] | None]] = deque()
        self._queued = 0
        self._sent = 0
        self._flush_due = False
        self._changed: asyncio.Future[None] | None = None
        self._held: list[tuple[tuple[bytes | memoryview, ...], B | None]] | None = None

    @property
    def waiting(self) -> bool:
        """Whether there is something that the socket did not take yet."""
        return bool(self._pieces)

    @property
    def lent(self) -> bool:
        """Whether a buffer of the pool is in what waits."""
        return any(buffer is not None or sent is not None for _, buffer, sent in self._ends)

    def send(self, *pieces: bytes | memoryview, buffer: B | None = None) -> None:
        """Queue a reply, and release `buffer` (which its pieces are of) when it has left or been dropped."""
        if self._held is None:
            self._enqueue(pieces, buffer, None)
        else:
            self._held.append((pieces, buffer))

    def send_alone(self, *pieces: bytes | memoryview) -> asyncio.Future[None]:
        """Queue a part of a reply that nothing may come in between of, and hold all others back until `resume`.

        The future is done when the part has left or been dropped; its memory is then free again.
        """
        sent = self._loop.create_future()
        self._enqueue(pieces, None, sent)
        if self._held is None:
            self._held = []
        return sent

    def resume(self) -> None:
        """The reply that was sent in parts is complete: those that were held back follow."""
        held, self._held = self._held or [], None
        for pieces, buffer in held:
            self._enqueue(pieces, buffer, None)

    def changed(self) -> asyncio.Future[None]:
        """Done when replies have left or been dropped the next time."""
        if self._changed is None:
            self._changed = self._loop.create_future()
        return self._changed

    def close(self) -> None:
        """Drop everything that has not left; what is sent from now on is dropped too."""
        self.closed = True
        self._loop.remove_writer(self._socket)
        self._drop()

    def _enqueue(
        self, pieces: tuple[bytes | memoryview, ...], buffer: B | None, sent: asyncio.Future[None] | None
    ) -> None:
        if not self._pieces:
            self.progress = self._loop.time()
        for piece in pieces:
            if piece:
                self._pieces.append(piece)
                self._queued += len(piece)
        self._ends.append((self._queued, buffer, sent))
        if self.closed:
            self._drop()
        elif not self._flush_due:
            # In the next turn of the loop: what completes together goes out with one system call.
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        pieces = self._pieces
        try:
            while pieces:
                count = self._socket.sendmsg(islice(pieces, _VECTORS))
                self._sent += count
                while count:
                    first = pieces.popleft()
                    if count < len(first):
                        pieces.appendleft(memoryview(first)[count:])
                        break
                    count -= len(first)
                self._retire()
        except BlockingIOError:
            # `_flush_due` stays set: the socket, not the next reply, says when to go on.
            self._loop.add_writer(self._socket, self._flush_again)
            return
        except OSError as error:
            self._failed(error)
        self._flush_due = False

    def _flush_again(self) -> None:
        self._loop.remove_writer(self._socket)
        self._flush()

    def _retire(self) -> None:
        """Everything up to `_sent` has left: end the replies in it."""
        self.progress = self._loop.time()
        ends = self._ends
        while ends and ends[0][0] <= self._sent:
            _, buffer, sent = ends.popleft()
            self.in_flight -= 1
            if buffer is not None:
                self._release(buffer)
            if sent is not None and not sent.done():
                sent.set_result(None)
        if self._changed is not None:
            if not self._changed.done():
                self._changed.set_result(None)
            self._changed = None

    def _drop(self) -> None:
        self._pieces.clear()
        self._sent = self._queued
        self._retire()
