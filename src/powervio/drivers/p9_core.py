# cython: language_level=3, annotation_typing=False
"""The client's end of one 9P2000.L connection as a state machine: calls in, T-messages out, R-messages in, answers out.

Theory of operation. A `P9Call` is one T-message. `P9Core.submit` gives it a tag and hands it to the channel; whoever
made it is called when the R-message comes, when the channel is lost, or when it was withdrawn (`cancel`, Tflush) and
the server has confirmed that. What is to be done with several calls is written as a generator that yields what it waits
for (`Work`), and is run by `P9Core.run`, by a FUSE session, or by a test.

Rules for editors:
1. The core does no I/O and keeps no time. A channel (`P9Channel`) carries whole messages: a socket, a virtqueue.
2. What the server sent is checked here, once. An offence raises `RemoteError` with `Verdict.CLOSE`: the channel's owner
   closes it and calls `lost`.
3. Every call ends exactly once. One whose outcome is unknown because the channel was lost ends with `P9Lost`.
4. Fids belong to one connection. A fid of an earlier one is never sent: its number means another file now, or nothing.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias

from powervio.errors import RemoteError, Verdict
from powervio.files import p9_codec as p9

Resume: TypeAlias = Callable[[Any, BaseException | None], None]
MOST_CALLS = 256
"""Calls that the server has at once; further ones wait here."""


class P9Error(OSError):
    """What the server answered: its errno, which is Linux's."""


class P9Lost(OSError):
    """The channel was lost before an answer came."""

    def __init__(self, kind: int, sent: bool) -> None:
        """`kind` is that of the T-message; `sent` says whether the server may have carried it out."""
        super().__init__(errno.EIO, "the connection to the server was lost")
        self.kind = kind
        self.sent = sent


class Waiting(Protocol):
    """Something that ends, and says so."""

    def wait(self, resume: Resume) -> None:
        """Begin, and call `resume` once, later or at once, with a result or an error."""

    def cancel(self) -> None:
        """It need not go on; `resume` is called with an error all the same, unless it ended before."""


Work: TypeAlias = Generator[Waiting, Any, Any]


class P9Channel(Protocol):
    """What carries the messages of one connection, in order or not."""

    @property
    def most_bytes(self) -> int:
        """Longest message that it can carry, in bytes."""

    def send(self, message: bytes, payload: memoryview | bytes | None) -> None:
        """Send a T-message. `payload` are the data of a Twrite, which follow; they stay as they are until it ends."""


class P9Call:
    """One T-message and its answer. The result is what `p9_codec` makes of the R-message."""

    __slots__ = ("_core", "_fields", "_resume", "ended", "kind", "number", "payload", "sent", "tag")

    def __init__(self, core: P9Core, kind: int, *fields: Any, payload: memoryview | bytes | None = None) -> None:
        """`fields` are those of the message's row behind the tag, without the data of a Twrite: they are `payload`."""
        self._core = core
        self.kind = kind
        self._fields = fields
        self.payload = payload
        self._resume: Resume | None = None
        self.tag = -1
        self.number = 0
        """Which call of the client it is."""
        self.sent = False
        self.ended = False

    def wait(self, resume: Resume) -> None:
        """Submit it. See `Waiting`."""
        self._resume = resume
        self._core.submit(self)

    def cancel(self) -> None:
        """Withdraw it. See `Waiting`."""
        self._core.withdraw(self)

    def message(self, tag: int) -> bytes:
        """The bytes on the wire, without a payload."""
        return p9.pack(self.kind, tag, *self._fields, payload=None if self.payload is None else len(self.payload))

    def end(self, value: Any, error: BaseException | None) -> None:
        """Tell whoever waits."""
        if not self.ended:
            self.ended = True
            if self._resume is not None:
                self._resume(value, error)


class All:
    """Several that are waited for together; the result is a list of results and errors, in order."""

    def __init__(self, waiting: Sequence[Waiting]) -> None:
        self._waiting = waiting
        self._results: list[Any] = [None] * len(waiting)
        self._left = len(waiting)
        self._resume: Resume | None = None

    def wait(self, resume: Resume) -> None:
        """See `Waiting`."""
        self._resume = resume
        if not self._left:
            resume(self._results, None)
        for index, one in enumerate(self._waiting):
            one.wait(_Place(self, index))

    def cancel(self) -> None:
        """See `Waiting`."""
        for one in self._waiting:
            one.cancel()

    def done(self, index: int, value: Any, error: BaseException | None) -> None:
        """One of them has ended."""
        self._results[index] = value if error is None else error
        self._left -= 1
        if not self._left and self._resume is not None:
            self._resume(self._results, None)


class _Place:
    """Where one of several says its result."""

    __slots__ = ("_all", "_index")

    def __init__(self, together: All, index: int) -> None:
        self._all = together
        self._index = index

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self._all.done(self._index, value, error)


class Connected:
    """Waiting until there is a connection; EIO when it is given up for good, or `P9Core.impatient` was called."""

    def __init__(self, core: P9Core) -> None:
        self._core = core
        self._resume: Resume | None = None

    def wait(self, resume: Resume) -> None:
        """See `Waiting`."""
        self._resume = resume
        self._core.when_connected(self)

    def cancel(self) -> None:
        """See `Waiting`."""
        self.end(InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))

    def end(self, error: BaseException | None) -> None:
        """There is one, or there will be none."""
        resume, self._resume = self._resume, None
        if resume is not None:
            resume(None, error)


class P9Core:
    """One client, over one connection after the other."""

    def __init__(self, *, msize: int = 1 << 20) -> None:
        """`msize` is the longest message in bytes that is proposed."""
        self.epoch = 0
        """Which connection this is; fids are of one."""
        self.msize = 0
        """What was agreed on, in bytes; 0 while there is no connection."""
        self.calls = 0
        """How many were sent in all."""
        self.closed: OSError | None = None
        self._wanted = msize
        self._channel: P9Channel | None = None
        self._in_flight: dict[int, P9Call | None] = {}
        self._flushes: dict[int, int] = {}
        self._waiting: deque[P9Call] = deque()
        self._free_tags: list[int] = list(range(MOST_CALLS - 1, -1, -1))
        self._next_fid = 0
        self._free_fids: list[int] = []
        self._watchers: list[Connected] = []
        self._retired: deque[tuple[int, int]] = deque()
        self._on_version: Callable[[], None] | None = None

    # The connection

    def connect(self, channel: P9Channel, ready: Callable[[], None]) -> None:
        """Begin a connection: Tversion is sent, and `ready` is called when it is agreed on."""
        self.epoch += 1
        self._channel = channel
        self._on_version = ready
        self._next_fid = 0
        self._free_fids.clear()
        msize = min(self._wanted, channel.most_bytes)
        channel.send(p9.pack(p9.TVERSION, p9.NO_TAG, msize, p9.VERSION), None)

    def when_connected(self, waiter: Connected) -> None:
        """Let it know; see `Connected`."""
        if self.msize or self.closed is not None:
            waiter.end(self.closed)
        else:
            self._watchers.append(waiter)

    def lost(self) -> None:
        """The channel is gone. What is in flight ends with `P9Lost`, and what comes is refused so until `connect`."""
        self._channel = None
        self.msize = 0
        calls = [*self._in_flight.values(), *self._waiting]
        self._in_flight.clear()
        self._flushes.clear()
        self._waiting.clear()
        self._retired.clear()
        self._free_tags = list(range(MOST_CALLS - 1, -1, -1))
        for call in calls:
            if call is not None:
                call.end(None, P9Lost(call.kind, call.sent))

    def impatient(self) -> None:
        """Nobody waits for a connection any longer: EIO. Who comes later waits anew."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.end(OSError(errno.EIO, "the server does not answer"))

    def close(self) -> None:
        """No connection will come any more."""
        self.closed = OSError(errno.ESHUTDOWN, "the client is closed")
        self.lost()
        self.impatient()

    @property
    def in_flight(self) -> int:
        """Calls that the server has, or that wait here."""
        return len(self._in_flight) + len(self._waiting)

    @property
    def oldest(self) -> int:
        """The number of the oldest call that the server has not answered; 0 if there is none."""
        return next((call.number for call in self._in_flight.values() if call is not None), 0)

    # Fids

    def new_fid(self) -> int:
        """A number for a fid of this connection."""
        if self._free_fids:
            return self._free_fids.pop()
        self._next_fid += 1
        return self._next_fid

    def free_fid(self, fid: int, epoch: int) -> None:
        """The server has no such fid: the number may be used again."""
        if epoch == self.epoch:
            self._free_fids.append(fid)

    def clunk(self, fid: int, epoch: int) -> None:
        """Have the server forget a fid; nobody waits for that."""
        if epoch == self.epoch and self.msize:
            call = P9Call(self, p9.TCLUNK, fid)
            call.wait(_Clunked(self, fid, epoch))

    def retire(self, fid: int, epoch: int) -> None:
        """Have the server forget a fid when it has answered everything that may be about it."""
        if epoch == self.epoch and self.msize:
            self._retired.append((self.calls, fid))
            self._clunk_retired()

    def _clunk_retired(self) -> None:
        oldest = self.oldest or self.calls + 1
        while self._retired and self._retired[0][0] < oldest and not self._waiting:
            _, fid = self._retired.popleft()
            self.clunk(fid, self.epoch)

    # Calls

    def call(self, kind: int, *fields: Any, payload: memoryview | bytes | None = None) -> P9Call:
        """One to be waited for."""
        return P9Call(self, kind, *fields, payload=payload)

    def submit(self, call: P9Call) -> None:
        """Send it, or keep it until the server has fewer."""
        if not self.msize:
            call.end(None, self.closed or P9Lost(call.kind, False))
        elif self._free_tags:
            self._send(call)
        else:
            self._waiting.append(call)

    def _send(self, call: P9Call) -> None:
        assert self._channel is not None
        tag = self._free_tags.pop()
        call.tag = tag
        call.sent = True
        self._in_flight[tag] = call
        self.calls += 1
        call.number = self.calls
        self._channel.send(call.message(tag), call.payload)

    def withdraw(self, call: P9Call) -> None:
        """Its answer is not needed. It ends with EINTR when the server has confirmed, unless the answer comes first."""
        if call.ended:
            return
        if not call.sent:
            if call in self._waiting:
                self._waiting.remove(call)
            call.end(None, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))
        elif self._channel is not None and self._free_tags and call.tag not in self._flushes.values():
            tag = self._free_tags.pop()
            self._flushes[tag] = call.tag
            self._channel.send(p9.pack(p9.TFLUSH, tag, call.tag), None)

    def received(self, message: memoryview) -> None:
        """One whole R-message; it may be overwritten after this. Raises `RemoteError` (CLOSE)."""
        if len(message) < 7:
            raise RemoteError(f"9P message of {len(message)} bytes, 7 at least are expected", Verdict.CLOSE)
        kind, tag = p9.head(message)
        if not self.msize:
            self._version(kind, tag, message)
            return
        flushed = self._flushes.pop(tag, None)
        if flushed is not None:
            if kind not in (p9.RFLUSH, p9.RLERROR):
                raise RemoteError(f"9P answer {kind} to Tflush", Verdict.CLOSE)
            self._free_tags.append(tag)
            withdrawn = self._in_flight.pop(flushed)
            self._free_tags.append(flushed)
            if withdrawn is not None:
                withdrawn.end(None, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))
            self._go_on()
            return
        call = self._in_flight.get(tag)
        if call is None:
            raise RemoteError(f"9P answer {kind} with tag {tag}, which is not in use", Verdict.CLOSE)
        value: Any = None
        error: OSError | None = None
        if kind == call.kind + 1:
            value = p9.unpack(kind, message)
        elif kind == p9.RLERROR:
            (code,) = p9.unpack(kind, message)
            if not 0 < code < 4096:
                code = errno.EIO
            error = P9Error(code, os.strerror(code))
        else:
            raise RemoteError(f"9P answer {kind} to a message of type {call.kind}", Verdict.CLOSE)
        del self._in_flight[tag]
        if tag in self._flushes.values():
            self._in_flight[tag] = None  # the number may not be used before Rflush
        else:
            self._free_tags.append(tag)
        call.end(value, error)
        self._go_on()
        if self._retired:
            self._clunk_retired()

    def _go_on(self) -> None:
        while self._waiting and self._free_tags and self.msize:
            self._send(self._waiting.popleft())

    def _version(self, kind: int, tag: int, message: memoryview) -> None:
        if kind != p9.RVERSION or tag != p9.NO_TAG:
            raise RemoteError(f"9P answer {kind} with tag {tag} to Tversion", Verdict.CLOSE)
        msize, version = p9.unpack(kind, message)
        if version != p9.VERSION:
            raise RemoteError(f"9P server speaks {version!r}, 9P2000.L is expected", Verdict.CLOSE)
        assert self._channel is not None
        if not 4096 <= msize <= min(self._wanted, self._channel.most_bytes):
            raise RemoteError(f"9P server wants messages of {msize} bytes at most", Verdict.CLOSE)
        self.msize = msize
        ready, self._on_version = self._on_version, None
        if ready is not None:
            ready()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.end(None)

    # Work of several calls

    def run(self, work: Work, done: Resume) -> Running:
        """Run a generator; `done` gets what it returns or raises."""
        return Running(work, done)


class Running:
    """A generator that is being run."""

    __slots__ = ("_done", "_waiting", "_work")

    def __init__(self, work: Work, done: Resume) -> None:
        self._work = work
        self._done = done
        self._waiting: Waiting | None = None
        self.resume(None, None)

    def resume(self, value: Any, error: BaseException | None) -> None:
        """Go on with what was waited for."""
        try:
            waiting = self._work.send(value) if error is None else self._work.throw(error)
        except StopIteration as stop:
            self._waiting = None
            self._done(stop.value, None)
        except Exception as failure:
            self._waiting = None
            self._done(None, failure)
        else:
            self._waiting = waiting
            waiting.wait(self.resume)

    def cancel(self) -> None:
        """What is being waited for need not go on."""
        if self._waiting is not None:
            self._waiting.cancel()


class _Clunked:
    """What happens when the server has forgotten a fid."""

    __slots__ = ("_core", "_epoch", "_fid")

    def __init__(self, core: P9Core, fid: int, epoch: int) -> None:
        self._core = core
        self._fid = fid
        self._epoch = epoch

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self._core.free_fid(self._fid, self._epoch)  # also after an error: Tclunk ends the fid in any case
