"""The client's end of one NBD connection as a state machine: bytes in, events out; requests as bytes.

Theory of operation. The caller receives into `buffer()`, reports how much came with `received`, and takes events with
`next_event` until that returns None, "more bytes are needed". The handshake is done here: a `Send` is what to send
next, `Ready` says that transmission begins. From then on `request` gives the bytes of a request (the data of a WRITE
follow them on the wire, the caller's matter), and a `Reply` event ends each, in any order.

The data of a READ never pass through an object of ours: `request` is told the memory, and while data arrive `buffer()`
is a part of that memory.

Rules for editors:
1. Every change of state is a row of `TRANSITIONS`, and `_go` is the only place that changes it.
2. What the server sent is checked here, once: it can fail the I/O given to it, and nothing else. No byte of a READ's
   memory is left as it was in a READ that succeeded, and none is written outside of it.
3. An offence raises `RemoteError` with `Verdict.CLOSE`; a refusal of the handshake is a `RemoteError` with the server's
   own words.
4. Memory is bounded: `STAGING` bytes, and `MAX_CONTENT` for what is in a chunk that carries no data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal, TypeAlias

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import ChunkType, Command, Info, Option, Reply, Request

STAGING = 64 << 10
"""Bytes received at once while no data of a READ are expected."""
MAX_CONTENT = 60 << 10
"""Longest content of an option reply or of a chunk without data, in bytes; 7,680 extents fit."""
DEFAULT_PAYLOAD = nbd.MAX_PAYLOAD
_SIMPLE = nbd.SIMPLE_REPLY
_CHUNK = nbd.CHUNK


@dataclass(frozen=True, slots=True)
class RemoteExport:
    """What the server told of its export. Sizes are bytes."""

    size: int
    flags: int
    """Transmission flags."""
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_payload: int = DEFAULT_PAYLOAD
    structured: bool = False
    """Whether replies are structured."""
    has_extents: bool = False
    """Whether BLOCK_STATUS with base:allocation may be asked."""


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes to send now."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is over; requests may be made."""

    export: RemoteExport


@dataclass(frozen=True, slots=True)
class Replied:
    """A request has ended."""

    cookie: int
    error: int
    """0, or a number of `protocol.Error` as it came."""
    message: str = ""
    extents: tuple[tuple[int, int], ...] = ()
    """Of a BLOCK_STATUS: `(bytes, STATE_ flags)` from the request's offset; may end before the request does."""


Event: TypeAlias = Send | Ready | Replied


class State(Enum):
    """Where a connection is."""

    GREETING = auto()
    OPTION_REPLY = auto()
    """Header of an answer to the option that was sent last."""
    OPTION_CONTENT = auto()
    EXPORT_NAME = auto()
    """The answer to EXPORT_NAME, which has no header."""
    REPLY = auto()
    """Transmission: header of a reply."""
    OFFSET = auto()
    """The offset at the beginning of an OFFSET_DATA chunk."""
    DATA = auto()
    """Data of a READ arrive in the caller's memory."""
    CONTENT = auto()
    """Content of a chunk without data."""
    ENDED = auto()


TRANSITIONS: dict[State, frozenset[State]] = {
    State.GREETING: frozenset({State.OPTION_REPLY, State.EXPORT_NAME, State.ENDED}),
    State.OPTION_REPLY: frozenset({State.OPTION_CONTENT, State.ENDED}),
    State.OPTION_CONTENT: frozenset({State.OPTION_REPLY, State.EXPORT_NAME, State.REPLY, State.ENDED}),
    State.EXPORT_NAME: frozenset({State.REPLY, State.ENDED}),
    State.REPLY: frozenset({State.OFFSET, State.DATA, State.CONTENT, State.ENDED}),
    State.OFFSET: frozenset({State.DATA, State.REPLY, State.ENDED}),
    State.DATA: frozenset({State.REPLY, State.ENDED}),
    State.CONTENT: frozenset({State.REPLY, State.ENDED}),
    State.ENDED: frozenset(),
}


@dataclass(slots=True)
class _Pending:
    """A request that is with the server."""

    request: Request
    memory: memoryview
    covered: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of a READ that have arrived, sorted, as `(start, end)` offsets of the export."""
    error: int = 0
    message: str = ""
    extents: tuple[tuple[int, int], ...] = ()


class ClientConnection:
    """One connection to a server; see the module's text for its use. Nothing in it does I/O or waits."""

    def __init__(self, export_name: str = "") -> None:
        """Negotiate the export of this name; the empty one is the server's default."""
        self.export_name = export_name
        self.state = State.GREETING
        self._export = RemoteExport(0, 0)
        self._structured = False
        self._context: int | None = None
        self._zeroes = False
        self._option = 0
        self._reply = 0
        self._told: _Told = _Told()
        self._staging = memoryview(bytearray(STAGING))
        self._start = 0
        self._end = 0
        self._length = 0
        self._flags = 0
        self._kind = 0
        self._current: _Pending | None = None
        self._target = memoryview(b"")
        self._filled = 0
        self._pending: dict[int, _Pending] = {}
        self._events: deque[Event] = deque()

    # -- receiving

    def buffer(self) -> memoryview:
        """Where the next received bytes go; never empty. Valid until the next call of any method."""
        if self.state is State.DATA:
            return self._target[self._filled :]
        if self._start:
            left = self._end - self._start
            self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
        if self._end == STAGING:
            raise LocalError("NBD: events have to be taken before more is received")
        return self._staging[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes have been put at the beginning of `buffer()`."""
        if self.state is State.DATA:
            self._filled += count
        else:
            self._end += count

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed first. Raises `RemoteError`: the connection is over."""
        while not self._events:
            try:
                if _STEPS[self.state](self) is None:
                    return None
            except RemoteError as error:
                self.state = State.ENDED
                raise RemoteError(f"NBD server: {error}", Verdict.CLOSE) from None
        return self._events.popleft()

    # -- requests

    def request(
        self,
        command: Command,
        cookie: int,
        offset: int,
        length: int,
        *,
        flags: int = 0,
        memory: memoryview | None = None,
    ) -> bytes:
        """The header of a request; its reply is the `Replied` with this cookie. `memory` is what a READ fills.

        Raises `LocalError` for what the protocol does not allow now.
        """
        if self.state in (State.GREETING, State.OPTION_REPLY, State.OPTION_CONTENT, State.EXPORT_NAME, State.ENDED):
            raise LocalError(f"NBD: no requests can be made in state {self.state.name}")
        if cookie in self._pending:
            raise LocalError(f"NBD: cookie {cookie} is in use")
        if command == Command.READ and (memory is None or len(memory) != length or not length):
            raise LocalError("NBD: a READ needs memory of its length")
        request = Request(flags, command, cookie, offset, length)
        self._pending[cookie] = _Pending(request, memoryview(b"") if memory is None else memory)
        return request.pack()

    def goodbye(self) -> bytes:
        """What ends the connection in an orderly way; nothing is answered to it."""
        if self.state in (State.GREETING, State.OPTION_REPLY, State.OPTION_CONTENT, State.EXPORT_NAME, State.ENDED):
            return b""
        return Request(0, Command.DISC, 0, 0, 0).pack()

    # -- helpers

    def _go(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise LocalError(f"NBD: a connection does not go from {self.state.name} to {state.name}")
        self.state = state

    def _available(self, count: int) -> memoryview | None:
        start = self._start
        if self._end - start < count:
            return None
        self._start = start + count
        return self._staging[start : start + count]

    # -- handshake. Each step returns None for "more bytes", True for "go on".

    def _step_greeting(self) -> Literal[True] | None:
        data = self._available(18)
        if data is None:
            return None
        greeting = nbd.Greeting.unpack(data)
        flags = greeting.flags & (nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES)
        self._zeroes = not flags & nbd.HANDSHAKE_NO_ZEROES
        self._events.append(Send(nbd.ClientFlags(flags).pack()))
        if flags & nbd.HANDSHAKE_FIXED_NEWSTYLE:
            self._ask(Option.STRUCTURED_REPLY, b"")
            self._go(State.OPTION_REPLY)
        else:  # a server of before 2011 knows EXPORT_NAME alone
            self._ask(Option.EXPORT_NAME, nbd.ExportName(self.export_name).pack())
            self._go(State.EXPORT_NAME)
        return True

    def _ask(self, option: Option, data: bytes) -> None:
        self._option = option
        self._events.append(Send(nbd.pack_option(option, data)))

    def _ask_go(self) -> None:
        self._ask(Option.GO, nbd.ExportChoice(self.export_name, (Info.BLOCK_SIZE,)).pack())

    def _step_option_reply(self) -> Literal[True] | None:
        data = self._available(20)
        if data is None:
            return None
        header = nbd.OptionReplyHeader.unpack(data)
        if header.option != self._option:
            raise RemoteError(f"an answer to option {header.option}, to {self._option} was expected")
        if header.length > MAX_CONTENT:
            raise RemoteError(f"an answer of {header.length} bytes to option {header.option}")
        self._reply, self._length = header.reply, header.length
        self._go(State.OPTION_CONTENT)
        return True

    def _step_option_content(self) -> Literal[True] | None:
        data = self._available(self._length)
        if data is None:
            return None
        refused = bool(self._reply & nbd.REPLY_ERROR_BIT)
        if self._option == Option.STRUCTURED_REPLY:
            self._structured = self._reply == Reply.ACK
            if self._structured:
                query = nbd.MetaQuery(self.export_name, (nbd.BASE_ALLOCATION,)).pack()
                self._ask(Option.SET_META_CONTEXT, query)
            else:
                self._ask_go()
        elif self._option == Option.SET_META_CONTEXT:
            if self._reply == Reply.META_CONTEXT:
                context = nbd.MetaContext.unpack(data)
                if context.name == nbd.BASE_ALLOCATION:
                    self._context = context.context
            else:  # ACK, or an error: then there are no extents
                self._context = None if refused else self._context
                self._ask_go()
        else:
            return self._answer_to_go(data, refused=refused)
        self._go(State.OPTION_REPLY)
        return True

    def _answer_to_go(self, data: memoryview, *, refused: bool) -> Literal[True]:
        if self._reply == Reply.INFO:
            self._told.learn(data)
            self._go(State.OPTION_REPLY)
        elif self._reply == Reply.ACK:
            if self._told.export is None:
                raise RemoteError("GO was acknowledged without the export's size")
            self._ready(self._told.export.size, self._told.export.flags)
        elif self._reply == Reply.ERR_UNSUP:
            self._ask(Option.EXPORT_NAME, nbd.ExportName(self.export_name).pack())
            self._go(State.EXPORT_NAME)
        elif refused:
            words = str(bytes(data[:1000]), "utf-8", "replace") or "no reason given"
            known = {reply.value: reply.name for reply in Reply}
            code = known.get(self._reply, hex(self._reply))
            raise RemoteError(f"export {self.export_name!r} is refused ({code}): {words}")
        else:
            raise RemoteError(f"answer {self._reply} to GO")
        return True

    def _step_export_name(self) -> Literal[True] | None:
        data = self._available(134 if self._zeroes else 10)
        if data is None:
            return None
        reply = nbd.ExportNameReply.unpack(data[:10])
        self._ready(reply.size, reply.flags)
        return True

    def _ready(self, size: int, flags: int) -> None:
        if not flags & nbd.HAS_FLAGS:
            flags = 0
        sizes = self._told.sizes
        least, preferred, most = (
            (sizes.minimum, sizes.preferred, sizes.maximum) if sizes else (1, 4096, DEFAULT_PAYLOAD)
        )
        if least < 1 or least & (least - 1) or least > 65536 or most < least:
            raise RemoteError(f"block sizes {least}/{preferred}/{most} are none (Size constraints)")
        most = min(most, DEFAULT_PAYLOAD) // least * least
        self._export = RemoteExport(
            size, flags, least, preferred, most, self._structured, self._structured and self._context is not None
        )
        self._events.append(Ready(self._export))
        self._go(State.REPLY)

    # -- transmission

    def _step_reply(self) -> Literal[True] | None:
        if self._end - self._start < 4:
            return None
        magic = int.from_bytes(self._staging[self._start : self._start + 4], "big")
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            return self._simple_reply()
        if magic == nbd.CHUNK_MAGIC and self._structured:
            return self._chunk()
        raise RemoteError(f"a reply begins with {magic:#x}")

    def _find(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise RemoteError(f"a reply to {cookie:#x}, which is no request of ours")
        return pending

    def _simple_reply(self) -> Literal[True] | None:
        data = self._available(_SIMPLE.size)
        if data is None:
            return None
        _, error, cookie = _SIMPLE.unpack(data)
        pending = self._find(cookie)
        command = pending.request.command
        if not error and (command == Command.BLOCK_STATUS or (command == Command.READ and self._structured)):
            raise RemoteError(f"a simple reply to {Command(command).name}, a structured one is expected")
        pending.error = error
        self._flags = nbd.CHUNK_DONE
        self._current = pending
        if command == Command.READ and not error:
            self._receive(pending, pending.request.offset, pending.request.length)
        else:
            self._end_of_chunk()
        return True

    def _chunk(self) -> Literal[True] | None:
        data = self._available(_CHUNK.size)
        if data is None:
            return None
        _, self._flags, self._kind, cookie, self._length = _CHUNK.unpack(data)
        self._current = pending = self._find(cookie)
        command = pending.request.command
        if self._kind == ChunkType.OFFSET_DATA:
            if command != Command.READ or self._length <= 8:
                raise RemoteError(f"a chunk with {self._length} bytes of data in answer to command {command}")
            self._go(State.OFFSET)
        elif self._length > MAX_CONTENT:
            raise RemoteError(f"a chunk of type {self._kind} with {self._length} bytes")
        else:
            self._go(State.CONTENT)
        return True

    def _step_offset(self) -> Literal[True] | None:
        data = self._available(8)
        if data is None:
            return None
        assert self._current is not None
        self._receive(self._current, int.from_bytes(data, "big"), self._length - 8)
        return True

    def _cover(self, pending: _Pending, offset: int, length: int) -> memoryview:
        """The memory of a range of a READ, which must not have arrived before."""
        request, end = pending.request, offset + length
        if not length or offset < request.offset or end > request.offset + request.length:
            raise RemoteError(f"{length} bytes at {offset} in answer to a READ of {request.length} at {request.offset}")
        at = bisect_left(pending.covered, (offset, end))
        before = pending.covered[at - 1][1] if at else 0
        after = pending.covered[at][0] if at < len(pending.covered) else end
        if before > offset or after < end:
            raise RemoteError(f"the bytes from {offset} on came twice in one READ")
        # Neighbours become one, so that what came in order, as it nearly always does, is one range that grows.
        start, stop = at, at
        first, last = offset, end
        if at and before == offset:
            start, first = at - 1, pending.covered[at - 1][0]
        if at < len(pending.covered) and after == end:
            stop, last = at + 1, pending.covered[at][1]
        pending.covered[start:stop] = [(first, last)]
        return pending.memory[offset - request.offset : end - request.offset]

    def _receive(self, pending: _Pending, offset: int, length: int) -> None:
        """Let the next `length` bytes arrive in the caller's memory; those that are here already are copied."""
        self._target = self._cover(pending, offset, length)
        early = min(self._end - self._start, length)
        self._target[:early] = self._staging[self._start : self._start + early]
        self._start += early
        self._filled = early
        self._go(State.DATA)

    def _step_data(self) -> Literal[True] | None:
        if self._filled < len(self._target):
            return None
        self._target = memoryview(b"")
        self._end_of_chunk()
        return True

    def _step_content(self) -> Literal[True] | None:
        data = self._available(self._length)
        if data is None:
            return None
        pending = self._current
        assert pending is not None
        command, kind = pending.request.command, self._kind
        if kind & nbd.CHUNK_ERROR_BIT:
            self._learn_error(pending, kind, data)
        elif kind == ChunkType.NONE:
            if data or not self._flags & nbd.CHUNK_DONE:
                raise RemoteError("a chunk of type NONE with content, or not the last one")
        elif kind == ChunkType.OFFSET_HOLE and command == Command.READ:
            hole = nbd.Hole.unpack(data)
            self._cover(pending, hole.offset, hole.length)[:] = bytes(hole.length)
        elif kind == ChunkType.BLOCK_STATUS and command == Command.BLOCK_STATUS:
            status = nbd.BlockStatus.unpack(data)
            if status.context == self._context:
                pending.extents = status.extents
        else:
            raise RemoteError(f"a chunk of type {kind} in answer to command {command}")
        self._end_of_chunk()
        return True

    def _learn_error(self, pending: _Pending, kind: int, data: memoryview) -> None:
        error, message = int(nbd.Error.EIO), ""
        if kind == ChunkType.ERROR:
            failure = nbd.Failure.unpack(data)
            error, message = failure.error, failure.message
        elif kind == ChunkType.ERROR_OFFSET:
            failed_at = nbd.FailureAt.unpack(data)
            error, message = failed_at.error, failed_at.message
        if not error:
            raise RemoteError("an error chunk without an error")
        pending.error, pending.message = error, message

    def _end_of_chunk(self) -> None:
        pending = self._current
        assert pending is not None
        if self._flags & nbd.CHUNK_DONE:
            request = pending.request
            if not pending.error:
                if request.command == Command.READ and pending.covered != [
                    (request.offset, request.offset + request.length)
                ]:
                    raise RemoteError(f"a READ of {request.length} bytes at {request.offset} ended without all of them")
                if request.command == Command.BLOCK_STATUS and not pending.extents:
                    raise RemoteError("a block status without extents")
            del self._pending[request.cookie]
            self._events.append(Replied(request.cookie, pending.error, pending.message, pending.extents))
        self._current = None
        if self.state is not State.REPLY:
            self._go(State.REPLY)

    def _step_ended(self) -> None:
        self._start = self._end


class _Told:
    """What the INFO replies to GO have told so far."""

    def __init__(self) -> None:
        self.export: nbd.InfoExport | None = None
        self.sizes: nbd.InfoBlockSize | None = None

    def learn(self, data: memoryview) -> None:
        """Take one; those that nobody asked for are allowed and ignored. Raises `RemoteError`."""
        kind = int.from_bytes(data[:2], "big")
        if kind == Info.EXPORT:
            self.export = nbd.InfoExport.unpack(data)
        elif kind == Info.BLOCK_SIZE:
            self.sizes = nbd.InfoBlockSize.unpack(data)


_STEPS: dict[State, Callable[[ClientConnection], Literal[True] | None]] = {
    State.GREETING: ClientConnection._step_greeting,
    State.OPTION_REPLY: ClientConnection._step_option_reply,
    State.OPTION_CONTENT: ClientConnection._step_option_content,
    State.EXPORT_NAME: ClientConnection._step_export_name,
    State.REPLY: ClientConnection._step_reply,
    State.OFFSET: ClientConnection._step_offset,
    State.DATA: ClientConnection._step_data,
    State.CONTENT: ClientConnection._step_content,
    State.ENDED: ClientConnection._step_ended,
}
