"""The server's end of one NBD connection as a state machine: bytes in, events out; replies as bytes.

Theory of operation. The caller receives from its socket into `buffer()` and reports how much came with `received`; then
it takes events with `next_event` until that returns None, which means "more bytes are needed". The handshake is
answered here in full: an `Answer` is what to send. `Started` says that transmission begins, and from then on each
`Request` that was found good is an event; one that was not is an `Answer` that refuses it.

A WRITE's data never pass through an object of ours: after such a `Request` the machine waits until the caller names the
memory for the next piece of it with `supply`, or gives it up with `skip`. While a piece is being received `buffer()` is
that very memory. Only what had arrived together with the header, at most `STAGING` bytes, is copied there.

Rules for editors:
1. Every change of state is a row of `TRANSITIONS`, and `_go` is the only place that changes it.
2. What the client sent is checked here, once: options by `OPTIONS`, requests by the `rules`. Callers check nothing.
3. An offence that leaves the stream readable is answered; one that does not raises `RemoteError` with `Verdict.CLOSE`.
4. Memory is bounded: `STAGING` bytes and nothing else grows with what the client sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, TypeAlias

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import ChunkType, Command, Error, Info, Option, Reply, Request
from powervio.storage.nbd.rules import Export, Refusal, check_request

STAGING = 64 << 10
"""Bytes received at once while no piece of a payload is expected: sixteen pipelined writes of 4 KiB."""
MAX_OPTION = 16 << 10
"""Longest option data that is read, in bytes; longer ones are skipped and answered with ERR_TOO_BIG."""
CONTEXT_ID = 1
"""What we call base:allocation on the wire; any number would do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes to send now; `refused` says in words what was wrong when they refuse something."""

    data: bytes
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The handshake is over; requests follow."""

    export: Export
    structured: bool


@dataclass(frozen=True, slots=True)
class PieceReceived:
    """The memory given to `supply` is full."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The client said goodbye (ABORT or DISC): finish what was begun, send the replies, close."""


Event: TypeAlias = Request | Answer | Started | PieceReceived | Ended


class State(Enum):
    """Where a connection is."""

    FLAGS = auto()
    """Greeting sent; client flags expected."""
    OPTION = auto()
    """Header of an option expected."""
    OPTION_DATA = auto()
    """Data of an option expected."""
    OPTION_SKIP = auto()
    """Data of an option that is too long are thrown away."""
    REQUEST = auto()
    """Transmission: header of a request expected."""
    PAYLOAD = auto()
    """The caller has to say where the next piece of a WRITE's data goes."""
    PIECE = auto()
    """A piece is being received into the caller's memory."""
    PAYLOAD_SKIP = auto()
    """The data of a WRITE that was refused are thrown away."""
    ENDED = auto()
    """The client ended it in an orderly way, or broke the protocol: nothing more is read."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.FLAGS: frozenset({State.OPTION, State.ENDED}),
    State.OPTION: frozenset({State.OPTION_DATA, State.OPTION_SKIP, State.ENDED}),
    State.OPTION_DATA: frozenset({State.OPTION, State.REQUEST, State.ENDED}),
    State.OPTION_SKIP: frozenset({State.OPTION, State.ENDED}),
    State.REQUEST: frozenset({State.PAYLOAD, State.PAYLOAD_SKIP, State.ENDED}),
    State.PAYLOAD: frozenset({State.PIECE, State.PAYLOAD_SKIP}),
    State.PIECE: frozenset({State.PAYLOAD, State.REQUEST}),
    State.PAYLOAD_SKIP: frozenset({State.REQUEST}),
    State.ENDED: frozenset(),
}


class ServerConnection:
    """One client's connection; see the module's text for its use. Nothing in it does I/O or waits."""

    def __init__(self, exports: Sequence[Export]) -> None:
        """Serve these exports; the empty name stands for the first of them."""
        self.exports = tuple(exports)
        self.state = State.FLAGS
        self.structured = False
        """Whether the client negotiated structured replies."""
        self.payload_left = 0
        """Bytes of the current WRITE that no `supply` has covered yet; or that are still to be skipped."""
        self._staging = memoryview(bytearray(STAGING))
        self._start = 0
        self._end = 0
        self._piece = memoryview(b"")
        self._filled = 0
        self._zeroes = True
        self._option = (0, 0)
        self._context_export: Export | None = None
        self._export: Export | None = None
        self._flags = 0
        self._events: deque[Event] = deque()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def greeting(self) -> bytes:
        """What to send before anything else."""
        return nbd.Greeting(nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES).pack()

    def buffer(self) -> memoryview:
        """Where the next received bytes go; never empty. Valid until the next call of any method."""
        if self.state is State.PIECE:
            return self._piece[self._filled :]
        if self._start:
            # What is left is less than one message: moved to the front so that the message fits.
            left = self._end - self._start
            self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
        if self._end == STAGING:
            raise LocalError("NBD: events have to be taken before more is received")
        return self._staging[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes have been put at the beginning of `buffer()`."""
        if self.state is State.PIECE:
            self._filled += count
        else:
            self._end += count

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed first.

        Raises `RemoteError` (close) when the client broke the protocol beyond repair, and `LocalError` when the
        data of a WRITE have been announced and neither `supply` nor `skip` was called.
        """
        while not self._events:
            step = _STEPS[self.state]
            event = step(self)
            if event is not True:
                return event
        return self._events.popleft()

    def supply(self, memory: memoryview) -> None:
        """Receive the next piece of a WRITE's data into all of `memory`, which is writable bytes, not empty.

        `PieceReceived` says when it is full. Raises `LocalError` when no data, or not as much, are to come.
        """
        length = len(memory)
        if self.state is not State.PAYLOAD or not 0 < length <= self.payload_left:
            raise LocalError(f"NBD: a piece of {length} bytes was offered where {self.payload_left} are to come")
        early = min(self._end - self._start, length)
        memory[:early] = self._staging[self._start : self._start + early]
        self._start += early
        self._piece = memory
        self._filled = early
        self.payload_left -= length
        self._go(State.PIECE)

    def skip(self) -> None:
        """Throw the rest of a WRITE's data away. Raises `LocalError` when none are to come."""
        if self.state is not State.PAYLOAD:
            raise LocalError("NBD: there is no data of a WRITE to skip")
        self._go(State.PAYLOAD_SKIP)

    def _go(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise LocalError(f"NBD: a connection does not go from {self.state.name} to {state.name}")
        self.state = state

    def _offence(self, message: str) -> RemoteError:
        self._go(State.ENDED)
        return RemoteError(f"NBD client: {message}", Verdict.CLOSE)

    def _available(self, count: int) -> memoryview | None:
        """The next `count` bytes, consumed; None when they are not all there."""
        start = self._start
        if self._end - start < count:
            return None
        self._start = start + count
        return self._staging[start : start + count]

    def _discard(self) -> bool:
        """Throw received bytes of the current payload away; whether all of it is gone."""
        count = min(self._end - self._start, self.payload_left)
        self._start += count
        self.payload_left -= count
        return not self.payload_left

    # -- handshake ---------------------------------------------------------------------------------------------------

    # Each step returns an event, None for "more bytes", or True for "go on": the state or the queue has changed.

    def _step_flags(self) -> Literal[True] | None:
        data = self._available(4)
        if data is None:
            return None
        flags = nbd.ClientFlags.unpack(data).flags
        if flags & ~(nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES):
            raise self._offence(f"client flags {flags:#x} were not offered")  # "Client flags": must be dropped
        self._zeroes = not flags & nbd.HANDSHAKE_NO_ZEROES
        self._go(State.OPTION)
        return True

    def _step_option(self) -> Literal[True] | None:
        data = self._available(16)
        if data is None:
            return None
        try:
            header = nbd.OptionHeader.unpack(data)
        except RemoteError as error:
            raise self._offence(f"no option: {error}") from None
        self._option = (header.option, header.length)
        if header.length <= MAX_OPTION:
            self._go(State.OPTION_DATA)
        elif header.option == Option.EXPORT_NAME:
            raise self._offence(f"export name of {header.length} bytes")
        else:
            self.payload_left = header.length
            self._go(State.OPTION_SKIP)
        return True

    def _step_option_skip(self) -> Literal[True] | None:
        if not self._discard():
            return None
        option, length = self._option
        self._refuse_option(option, Refusal(Reply.ERR_TOO_BIG, f"option data of {length} bytes, at most {MAX_OPTION}"))
        self._go(State.OPTION)
        return True

    def _step_option_data(self) -> Literal[True] | None:
        option, length = self._option
        data = self._available(length)
        if data is None:
            return None
        answer_option = OPTIONS.get(option)
        try:
            if answer_option is None:
                raise Refusal(Reply.ERR_UNSUP, f"option {option} is not supported")
            answer_option(self, option, data)
        except Refusal as refusal:
            self._refuse_option(option, refusal)
        except RemoteError as error:
            if error.verdict is Verdict.CLOSE:
                raise
            self._refuse_option(option, Refusal(Reply.ERR_INVALID, str(error)))
        if self.state is State.OPTION_DATA:
            self._go(State.OPTION)
        return True

    def _refuse_option(self, option: int, refusal: Refusal) -> None:
        message = str(refusal)
        data = nbd.pack_option_reply(option, refusal.code, nbd.ErrorText(message).pack())
        self._events.append(Answer(data, message))

    def _answer(self, option: int, *replies: tuple[Reply, bytes]) -> None:
        replies = (*replies, (Reply.ACK, b""))
        self._events.append(Answer(b"".join(nbd.pack_option_reply(option, *reply) for reply in replies)))

    def _find(self, name: str) -> Export | None:
        if not name and self.exports:
            return self.exports[0]
        return next((export for export in self.exports if export.name == name), None)

    def _chosen(self, name: str) -> Export:
        export = self._find(name)
        if export is None:
            raise Refusal(Reply.ERR_UNKNOWN, f"there is no export {name[:64]!r} here")
        return export

    def _transmission_flags(self, export: Export) -> int:
        # SEND_DF must be clear until structured replies are negotiated ("Transmission flags").
        return export.flags | nbd.HAS_FLAGS | (nbd.SEND_DF if self.structured else 0)

    def _start_transmission(self, export: Export) -> None:
        self._export = export
        self._flags = self._transmission_flags(export)
        self._events.append(Started(export, self.structured))
        self._go(State.REQUEST)

    def _option_export_name(self, option: int, data: memoryview) -> None:
        try:
            name = nbd.ExportName.unpack(data).name
        except RemoteError as error:
            raise self._offence(f"export name: {error}") from None
        export = self._find(name)
        if export is None:  # this option has no way to answer with an error
            raise self._offence(f"export {name[:64]!r} does not exist")
        reply = nbd.ExportNameReply(export.size, self._transmission_flags(export)).pack()
        self._events.append(Answer(reply + bytes(124 if self._zeroes else 0)))
        self._start_transmission(export)

    def _option_abort(self, option: int, data: memoryview) -> None:
        self._answer(option)
        self._events.append(Ended())
        self._go(State.ENDED)

    def _option_list(self, option: int, data: memoryview) -> None:
        self._no_data(data)
        listed = [nbd.ExportListed(export.name, export.description).pack() for export in self.exports]
        self._answer(option, *((Reply.SERVER, entry) for entry in listed))

    def _option_info(self, option: int, data: memoryview) -> None:
        choice = nbd.ExportChoice.unpack(data)
        export = self._chosen(choice.name)
        sizes = nbd.InfoBlockSize(export.minimum_block, export.preferred_block, export.maximum_payload)
        facts: dict[int, nbd.Message] = {
            Info.NAME: nbd.InfoName(export.name),
            Info.DESCRIPTION: nbd.InfoDescription(export.description),
            Info.BLOCK_SIZE: sizes,
        }
        told: list[nbd.Message] = [nbd.InfoExport(export.size, self._transmission_flags(export))]
        told += [fact for info, fact in facts.items() if info in choice.requests]
        self._answer(option, *((Reply.INFO, fact.pack()) for fact in told))
        if option == Option.GO:
            self._start_transmission(export)

    def _option_structured_reply(self, option: int, data: memoryview) -> None:
        self._no_data(data)
        self.structured = True
        self._answer(option)

    def _option_meta_context(self, option: int, data: memoryview) -> None:
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_export = None  # replaced even when this fails
        if not self.structured:
            raise Refusal(Reply.ERR_INVALID, "structured replies have to be negotiated before metadata contexts")
        query = nbd.MetaQuery.unpack(data)
        export = self._chosen(query.name)
        wanted = nbd.BASE_ALLOCATION in query.queries
        if not setting:  # "base:" and no query at all are wildcards, for listing only
            wanted = wanted or "base:" in query.queries or not query.queries
        context = CONTEXT_ID if setting else 0
        if wanted and setting:
            self._context_export = export
        replies = [(Reply.META_CONTEXT, nbd.MetaContext(context, nbd.BASE_ALLOCATION).pack())] if wanted else []
        self._answer(option, *replies)

    @staticmethod
    def _no_data(data: memoryview) -> None:
        if data:
            raise Refusal(Reply.ERR_INVALID, f"{len(data)} bytes of data with an option that has none")

    # -- transmission ------------------------------------------------------------------------------------------------

    def _step_request(self) -> Event | None:
        start = self._start
        if self._end - start < 28:
            return None
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack_from(self._staging, start)
        self._start = start + 28
        if magic != nbd.REQUEST_MAGIC:
            raise self._offence(f"request begins with {magic:#x}, {nbd.REQUEST_MAGIC:#x} expected")
        request = Request(flags, command, cookie, offset, length)
        if command == Command.DISC:
            self._go(State.ENDED)
            return Ended()
        try:
            assert self._export is not None
            selected = self._context_export is self._export
            check_request(request, self._export, self._flags, structured=self.structured, context=selected)
        except Refusal as refusal:
            if command == Command.WRITE and length:
                self.payload_left = length
                self._go(State.PAYLOAD_SKIP)
            return Answer(self.error_reply(request, refusal.code, str(refusal)), str(refusal))
        if not length and command != Command.FLUSH:
            return Answer(self.done_reply(request))
        if command == Command.WRITE:
            self.payload_left = length
            self._go(State.PAYLOAD)
        return request

    def _step_payload(self) -> None:
        raise LocalError("NBD: the data of a WRITE wait for supply() or skip()")

    def _step_piece(self) -> Event | None:
        if self._filled < len(self._piece):
            return None
        self._piece = memoryview(b"")  # the caller's memory is its own again
        self._go(State.PAYLOAD if self.payload_left else State.REQUEST)
        return PieceReceived()

    def _step_payload_skip(self) -> Literal[True] | None:
        if not self._discard():
            return None
        self._go(State.REQUEST)
        return True

    def _step_ended(self) -> None:
        self._start = self._end  # a client must not say anything after goodbye; it is not listened to

    # -- replies -----------------------------------------------------------------------------------------------------

    def done_reply(self, request: Request) -> bytes:
        """Success of a request that returns no data, or the end of a READ's chunks."""
        if self.structured and request.command == Command.READ:
            return nbd.pack_chunk(nbd.CHUNK_DONE, ChunkType.NONE, request.cookie)
        return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def error_reply(self, request: Request, error: int, message: str = "") -> bytes:
        """Failure of a request; the words reach the client only with structured replies."""
        if error == Error.ENOTSUP and not request.flags & nbd.CMD_FAST_ZERO:
            error = Error.EINVAL  # it has a meaning there alone ("Error values")
        if not self.structured:
            return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, request.cookie)
        content = nbd.Failure(error, message[:1000]).pack()
        return nbd.pack_chunk(nbd.CHUNK_DONE, ChunkType.ERROR, request.cookie, content)

    def data_header(self, request: Request, offset: int, length: int, *, last: bool = True) -> bytes:
        """What goes in front of `length` bytes of data from `offset` in answer to a READ.

        Structured: one chunk for each call, in any order, the last one sent with `last`. Simple: the header stands in
        front of the request's first byte only, so it is empty for every later piece; pieces are then in order and
        nothing may be sent between them.
        """
        if self.structured:
            flags = nbd.CHUNK_DONE if last else 0
            return nbd.DATA_CHUNK.pack(
                nbd.CHUNK_MAGIC, flags, ChunkType.OFFSET_DATA, request.cookie, length + 8, offset
            )
        if offset != request.offset:
            return b""
        return nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def hole_reply(self, request: Request, offset: int, length: int, *, last: bool = True) -> bytes:
        """A range of a READ that is all zeroes, without sending them; for structured replies only."""
        flags = nbd.CHUNK_DONE if last else 0
        return nbd.pack_chunk(flags, ChunkType.OFFSET_HOLE, request.cookie, nbd.Hole(offset, length).pack())

    def status_reply(self, request: Request, extents: Sequence[tuple[int, int]]) -> bytes:
        """Answer to BLOCK_STATUS: consecutive `(bytes, STATE_ flags)` from the request's offset, at least one.

        Neighbours with the same flags become one; what is beyond the request, or beyond its first extent with
        REQ_ONE, is left out.
        """
        left = request.length
        merged: list[tuple[int, int]] = []
        for length, flags in extents:
            length = min(length, left)
            if not length:
                continue
            if merged and merged[-1][1] == flags:
                merged[-1] = (merged[-1][0] + length, flags)
            elif len(merged) == (1 if request.flags & nbd.CMD_REQ_ONE else nbd.MAX_EXTENTS):
                break
            else:
                merged.append((length, flags))
            left -= length
        if not merged:
            raise LocalError("NBD: a block status without extents")
        content = nbd.BlockStatus(CONTEXT_ID, tuple(merged)).pack()
        return nbd.pack_chunk(nbd.CHUNK_DONE, ChunkType.BLOCK_STATUS, request.cookie, content)


OPTIONS: dict[int, Callable[[ServerConnection, int, memoryview], None]] = {
    Option.EXPORT_NAME: ServerConnection._option_export_name,
    Option.ABORT: ServerConnection._option_abort,
    Option.LIST: ServerConnection._option_list,
    Option.INFO: ServerConnection._option_info,
    Option.GO: ServerConnection._option_info,
    Option.STRUCTURED_REPLY: ServerConnection._option_structured_reply,
    Option.LIST_META_CONTEXT: ServerConnection._option_meta_context,
    Option.SET_META_CONTEXT: ServerConnection._option_meta_context,
}
"""Everything else, STARTTLS and EXTENDED_HEADERS among it, is ERR_UNSUP."""

_STEPS: dict[State, Callable[[ServerConnection], Event | Literal[True] | None]] = {
    State.FLAGS: ServerConnection._step_flags,
    State.OPTION: ServerConnection._step_option,
    State.OPTION_DATA: ServerConnection._step_option_data,
    State.OPTION_SKIP: ServerConnection._step_option_skip,
    State.REQUEST: ServerConnection._step_request,
    State.PAYLOAD: ServerConnection._step_payload,
    State.PIECE: ServerConnection._step_piece,
    State.PAYLOAD_SKIP: ServerConnection._step_payload_skip,
    State.ENDED: ServerConnection._step_ended,
}
