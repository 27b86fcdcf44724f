"""The server's end of an NBD connection, without sockets: what it answers, what it refuses, what ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import ChunkType, Command, Error, Info, Option, Reply, Request
from powervio.storage.nbd.rules import Export
from powervio.storage.nbd.server import (
    MAX_OPTION,
    Answer,
    Ended,
    Event,
    PieceReceived,
    ServerConnection,
    Started,
    State,
)

ALL = (
    nbd.SEND_FLUSH
    | nbd.SEND_FUA
    | nbd.SEND_TRIM
    | nbd.SEND_WRITE_ZEROES
    | nbd.SEND_FAST_ZERO
    | nbd.SEND_CACHE
    | nbd.CAN_MULTI_CONN
)
DISK = Export("disk", 64 << 20, ALL, "of client1", 512, 4096, 32 << 20, 256 << 10)
READ_ONLY = Export("iso", 1 << 20, nbd.SEND_FLUSH | nbd.READ_ONLY)
FLAGS = nbd.ClientFlags(nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES).pack()
GO = nbd.pack_option(Option.GO, nbd.ExportChoice("disk", ()).pack())
STRUCTURED = nbd.pack_option(Option.STRUCTURED_REPLY)
CONTEXT = nbd.pack_option(Option.SET_META_CONTEXT, nbd.MetaQuery("disk", (nbd.BASE_ALLOCATION,)).pack())


def feed(
    machine: ServerConnection,
    data: bytes,
    step: int = 1 << 20,
    piece: int = 1 << 20,
    supplied: list[bytearray] | None = None,
) -> list[Event | bytes]:
    """Everything that comes of these bytes: events, and the payloads of writes as bytes, taken in pieces.

    `supplied` remembers, from one call to the next, the memory that a piece is being received into.
    """
    seen: list[Event | bytes] = []
    supplied = [bytearray()] if supplied is None else supplied
    rest = memoryview(data)
    while True:
        while (event := machine.next_event()) is not None:
            if isinstance(event, PieceReceived):
                seen.append(bytes(supplied[0]))
            else:
                seen.append(event)
            if machine.state is State.PAYLOAD:
                supplied[0] = bytearray(min(piece, machine.payload_left))
                machine.supply(memoryview(supplied[0]))
        if not rest:
            return seen
        where = machine.buffer()
        count = min(len(where), step, len(rest))
        where[:count] = rest[:count]
        machine.received(count)
        rest = rest[count:]


def negotiated(*options: bytes, exports: Sequence[Export] = (DISK, READ_ONLY)) -> ServerConnection:
    """A connection in transmission."""
    machine = ServerConnection(exports)
    seen = feed(machine, FLAGS + b"".join(options) + (b"" if options and GO in options else GO))
    assert isinstance(seen[-1], Started)
    return machine


def answers(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The option replies in these bytes: option, reply type, data."""
    while data:
        header = nbd.OptionReplyHeader.unpack(data[:20])
        yield header.option, header.reply, data[20 : 20 + header.length]
        data = data[20 + header.length :]


def haggle(option: int, data: bytes = b"", *before: bytes) -> list[tuple[int, bytes]]:
    """What one option is answered with, after the flags and the options `before`."""
    machine = ServerConnection((DISK, READ_ONLY))
    feed(machine, FLAGS + b"".join(before))
    (answer, *_) = feed(machine, nbd.pack_option(option, data))
    assert isinstance(answer, Answer)
    replies = list(answers(answer.data))
    assert {replied for replied, _, _ in replies} == {option}
    return [(reply, content) for _, reply, content in replies]


def refusal(machine: ServerConnection, request: Request, payload: bytes = b"") -> tuple[int, str]:
    """The error number and words that a request is refused with; the next request is then served."""
    again = Request(0, Command.FLUSH, 99, 0, 0)
    answer, flush = feed(machine, request.pack() + payload + again.pack())
    assert flush == again
    assert isinstance(answer, Answer)
    if machine.structured:
        magic, flags, kind, cookie, _ = nbd.CHUNK.unpack_from(answer.data)
        assert (magic, flags, kind, cookie) == (nbd.CHUNK_MAGIC, 1, ChunkType.ERROR, request.cookie)
        failure = nbd.Failure.unpack(answer.data[nbd.CHUNK.size :])
        assert failure.message == answer.refused
        return failure.error, failure.message
    magic, error, cookie = nbd.SIMPLE_REPLY.unpack(answer.data)
    assert (magic, cookie) == (nbd.SIMPLE_REPLY_MAGIC, request.cookie)
    return error, answer.refused


# --- handshake ------------------------------------------------------------------------------------------------------


def test_greeting_offers_fixed_newstyle_and_no_zeroes() -> None:
    assert ServerConnection([DISK]).greeting() == b"NBDMAGICIHAVEOPT\0\3"


def test_client_flag_that_was_not_offered_closes() -> None:
    with pytest.raises(RemoteError, match="0x4 were not offered") as caught:
        feed(ServerConnection([DISK]), nbd.ClientFlags(4).pack())
    assert caught.value.verdict is Verdict.CLOSE


def test_option_with_wrong_magic_closes_and_nothing_is_read_afterwards() -> None:
    machine = ServerConnection([DISK])
    with pytest.raises(RemoteError) as caught:
        feed(machine, FLAGS + bytes(16))
    assert caught.value.verdict is Verdict.CLOSE
    assert feed(machine, GO) == []


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_is_answered_with_size_flags_and_zeroes_as_negotiated(flags: int, zeroes: int) -> None:
    option = nbd.pack_option(Option.EXPORT_NAME, b"disk")
    answer, started = feed(ServerConnection([DISK]), nbd.ClientFlags(flags).pack() + option)
    assert answer == Answer(nbd.ExportNameReply(DISK.size, ALL | nbd.HAS_FLAGS).pack() + bytes(zeroes))
    assert started == Started(DISK, False)


@pytest.mark.parametrize("name", [b"other", b"\xff", b"x" * 5000, b"x" * (MAX_OPTION + 1)])
def test_export_name_that_cannot_be_served_closes(name: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        feed(ServerConnection([DISK]), FLAGS + nbd.pack_option(Option.EXPORT_NAME, name))
    assert caught.value.verdict is Verdict.CLOSE


@pytest.mark.parametrize("data", [b"", b"ignored"])
def test_abort_is_acknowledged_and_ends(data: bytes) -> None:
    answer, ended = feed(ServerConnection([DISK]), FLAGS + nbd.pack_option(Option.ABORT, data))
    assert answer == Answer(nbd.pack_option_reply(Option.ABORT, Reply.ACK))
    assert ended == Ended()


def test_list_names_every_export() -> None:
    assert haggle(Option.LIST) == [
        (Reply.SERVER, nbd.ExportListed("disk", "of client1").pack()),
        (Reply.SERVER, nbd.ExportListed("iso", "").pack()),
        (Reply.ACK, b""),
    ]


@pytest.mark.parametrize("option", [Option.LIST, Option.STRUCTURED_REPLY])
def test_data_with_an_option_that_has_none_is_invalid(option: Option) -> None:
    assert haggle(option, b"x")[0][0] == Reply.ERR_INVALID


@pytest.mark.parametrize("option", [4, Option.STARTTLS, Option.EXTENDED_HEADERS, 0, 0xFFFFFFFF])
def test_unknown_option_is_unsupported_and_haggling_goes_on(option: int) -> None:
    assert haggle(option, b"what")[0][0] == Reply.ERR_UNSUP
    negotiated(nbd.pack_option(option, b"what"))


def test_info_tells_what_was_asked_and_stays_in_the_handshake() -> None:
    wanted = (Info.NAME, Info.BLOCK_SIZE, 77, Info.DESCRIPTION)
    assert haggle(Option.INFO, nbd.ExportChoice("", wanted).pack()) == [
        (Reply.INFO, nbd.InfoExport(DISK.size, ALL | nbd.HAS_FLAGS).pack()),
        (Reply.INFO, nbd.InfoName("disk").pack()),
        (Reply.INFO, nbd.InfoDescription("of client1").pack()),
        (Reply.INFO, nbd.InfoBlockSize(512, 4096, 32 << 20).pack()),
        (Reply.ACK, b""),
    ]


@pytest.mark.parametrize("option", [Option.INFO, Option.GO, Option.LIST_META_CONTEXT])
def test_unknown_export_is_told_and_the_handshake_goes_on(option: Option) -> None:
    asking = nbd.MetaQuery if option == Option.LIST_META_CONTEXT else nbd.ExportChoice
    assert haggle(option, asking("nope", ()).pack(), STRUCTURED)[0][0] == Reply.ERR_UNKNOWN


@pytest.mark.parametrize("data", [b"", b"\0\0\0\4dis", b"\0\0\0\0\0\1", b"\0\0\0\0\0\0x", b"\0\0\0\1\xff\0\0"])
def test_go_that_is_not_well_formed_is_invalid(data: bytes) -> None:
    assert haggle(Option.GO, data)[0][0] == Reply.ERR_INVALID


def test_df_is_offered_with_structured_replies_only() -> None:
    choice = nbd.ExportChoice("disk", ()).pack()
    flags = [nbd.InfoExport.unpack(haggle(Option.INFO, choice, *before)[0][1]).flags for before in ([], [STRUCTURED])]
    assert [bool(word & nbd.SEND_DF) for word in flags] == [False, True]


def test_option_that_is_too_long_is_skipped_and_told() -> None:
    machine = ServerConnection([DISK])
    data = nbd.pack_option(Option.LIST_META_CONTEXT, bytes(300_000))
    answer, started_answer, started = feed(machine, FLAGS + data + GO)
    assert isinstance(answer, Answer)
    assert [reply for _, reply, _ in answers(answer.data)] == [Reply.ERR_TOO_BIG]
    assert isinstance(started_answer, Answer)
    assert isinstance(started, Started)


@pytest.mark.parametrize(
    ("option", "queries", "found"),
    [
        (Option.LIST_META_CONTEXT, (), True),
        (Option.LIST_META_CONTEXT, ("base:",), True),
        (Option.LIST_META_CONTEXT, ("x-other:",), False),
        (Option.LIST_META_CONTEXT, (nbd.BASE_ALLOCATION,), True),
        (Option.SET_META_CONTEXT, (), False),
        (Option.SET_META_CONTEXT, ("base:",), False),
        (Option.SET_META_CONTEXT, ("base:other", "nonsense"), False),
        (Option.SET_META_CONTEXT, ("x:y", nbd.BASE_ALLOCATION, nbd.BASE_ALLOCATION), True),
    ],
)
def test_metadata_context_is_found_by_the_rules_of_its_option(
    option: Option, queries: tuple[str, ...], found: bool
) -> None:
    replies = haggle(option, nbd.MetaQuery("disk", queries).pack(), STRUCTURED)
    assert [reply for reply, _ in replies] == ([Reply.META_CONTEXT] if found else []) + [Reply.ACK]


def test_metadata_context_without_structured_replies_is_invalid() -> None:
    assert haggle(Option.SET_META_CONTEXT, nbd.MetaQuery("disk", ()).pack())[0][0] == Reply.ERR_INVALID


# --- requests that are refused --------------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(0, 8, 1, 0, 512), Error.EINVAL),
        (Request(0, 0xFFFF, 1, 0, 512), Error.EINVAL),
        (Request(0x8000, Command.READ, 1, 0, 512), Error.EINVAL),
        (Request(nbd.CMD_REQ_ONE, Command.WRITE, 1, 0, 512), Error.EINVAL),
        (Request(nbd.CMD_NO_HOLE, Command.TRIM, 1, 0, 512), Error.EINVAL),
        (Request(0, Command.READ, 1, 64 * MIB, 512), Error.EINVAL),
        (Request(0, Command.READ, 1, (1 << 64) - 512, 512), Error.EINVAL),
        (Request(0, Command.WRITE, 1, 64 * MIB - 512, 1024), Error.ENOSPC),
        (Request(0, Command.WRITE_ZEROES, 1, 64 * MIB, 512), Error.ENOSPC),
        (Request(0, Command.TRIM, 1, 64 * MIB, 512), Error.EINVAL),
        (Request(0, Command.CACHE, 1, 64 * MIB, 512), Error.EINVAL),
        (Request(0, Command.READ, 1, 1, 512), Error.EINVAL),
        (Request(0, Command.WRITE, 1, 0, 513), Error.EINVAL),
        (Request(0, Command.WRITE, 1, 0, 33 * MIB), Error.EINVAL),
        (Request(0, Command.FLUSH, 1, 0, 512), Error.EINVAL),
        (Request(0, Command.BLOCK_STATUS, 1, 0, 512), Error.EINVAL),
        (Request(0, Command.BLOCK_STATUS, 1, 0, 0), Error.EINVAL),
    ],
)
def test_bad_request_is_answered_and_the_next_one_is_served(request_: Request, error: Error, structured: bool) -> None:
    machine = negotiated(*[STRUCTURED] * structured)
    payload = b"\x25\x60\x95\x13" * (request_.length // 4) + bytes(request_.length % 4)
    answer = refusal(machine, request_, payload if request_.command == Command.WRITE else b"")
    assert answer[0] == error
    assert answer[1]


def test_read_longer_than_the_largest_payload_overflows_for_those_who_know() -> None:
    request = Request(0, Command.READ, 1, 0, 33 * MIB)
    assert refusal(negotiated(STRUCTURED), request)[0] == Error.EOVERFLOW
    assert refusal(negotiated(), request)[0] == Error.EINVAL


def test_effect_longer_than_the_largest_payload_is_served() -> None:
    request = Request(0, Command.TRIM, 1, 0, 64 * MIB)
    assert feed(negotiated(), request.pack()) == [request]


def test_df_is_refused_when_not_offered_or_longer_than_a_buffer() -> None:
    request = Request(nbd.CMD_DF, Command.READ, 1, 0, 512)
    assert refusal(negotiated(), request)[0] == Error.EINVAL
    assert feed(negotiated(STRUCTURED), request.pack()) == [request]
    assert refusal(negotiated(STRUCTURED), request._replace(length=MIB))[0] == Error.EOVERFLOW


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_write_command_on_a_read_only_export_is_refused_with_eperm(command: Command) -> None:
    machine = ServerConnection([READ_ONLY])
    feed(machine, FLAGS + nbd.pack_option(Option.EXPORT_NAME, b""))
    payload = bytes(512) if command == Command.WRITE else b""
    assert refusal(machine, Request(0, command, 1, 0, 512), payload)[0] == Error.EPERM


@pytest.mark.parametrize(
    ("command", "missing", "flags"),
    [
        (Command.TRIM, nbd.SEND_TRIM, 0),
        (Command.WRITE_ZEROES, nbd.SEND_WRITE_ZEROES | nbd.SEND_FAST_ZERO, 0),
        (Command.CACHE, nbd.SEND_CACHE, 0),
        (Command.WRITE_ZEROES, nbd.SEND_FAST_ZERO, nbd.CMD_FAST_ZERO),
        (Command.WRITE, nbd.SEND_FUA, nbd.CMD_FUA),
    ],
)
def test_what_was_not_offered_is_refused(command: Command, missing: int, flags: int) -> None:
    machine = negotiated(exports=[replace(DISK, flags=ALL & ~missing)])
    payload = bytes(512) if command == Command.WRITE else b""
    error, words = refusal(machine, Request(flags, command, 1, 0, 512), payload)
    assert error == Error.EINVAL
    assert "not offered" in words


def test_block_status_is_served_after_the_context_was_set_for_the_same_export() -> None:
    request = Request(0, Command.BLOCK_STATUS, 1, 0, MIB)
    assert feed(negotiated(STRUCTURED, CONTEXT), request.pack()) == [request]
    other = nbd.pack_option(Option.SET_META_CONTEXT, nbd.MetaQuery("iso", (nbd.BASE_ALLOCATION,)).pack())
    assert refusal(negotiated(STRUCTURED, other), request)[0] == Error.EINVAL
    forgotten = nbd.pack_option(Option.SET_META_CONTEXT, nbd.MetaQuery("disk", ()).pack())
    assert refusal(negotiated(STRUCTURED, CONTEXT, forgotten), request)[0] == Error.EINVAL


@pytest.mark.parametrize("command", [Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.CACHE])
def test_length_0_succeeds_at_once(command: Command) -> None:
    machine = negotiated()
    (answer,) = feed(machine, Request(0, command, 5, 0, 0).pack())
    assert answer == Answer(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 5))


def test_request_with_wrong_magic_closes() -> None:
    with pytest.raises(RemoteError, match="request begins with") as caught:
        feed(negotiated(), bytes(28))
    assert caught.value.verdict is Verdict.CLOSE


def test_disc_ends_and_what_follows_is_not_heard() -> None:
    disc = Request(0, Command.DISC, 0, 0, 0).pack()
    assert feed(negotiated(), disc + Request(0, Command.FLUSH, 1, 0, 0).pack()) == [Ended()]


# --- payloads -------------------------------------------------------------------------------------------------------


def test_payload_is_received_straight_into_the_callers_memory() -> None:
    machine = negotiated()
    request = Request(0, Command.WRITE, 1, 0, 1024)
    where = machine.buffer()
    where[:38] = request.pack() + b"0123456789"  # ten bytes came with the header
    machine.received(38)
    assert machine.next_event() == request
    memory = bytearray(1024)
    machine.supply(memoryview(memory))
    assert machine.next_event() is None
    target = machine.buffer()
    assert len(target) == 1014
    target[:] = b"x" * 1014
    assert memory == b"0123456789" + b"x" * 1014  # it is that very memory
    machine.received(1014)
    assert machine.next_event() == PieceReceived()


def test_payload_waits_for_the_caller() -> None:
    machine = negotiated()
    where = machine.buffer()
    where[:28] = Request(0, Command.WRITE, 1, 0, 512).pack()
    machine.received(28)
    machine.next_event()
    with pytest.raises(LocalError, match="wait for supply"):
        machine.next_event()
    for length in (0, 513):
        with pytest.raises(LocalError, match="are to come"):
            machine.supply(memoryview(bytearray(length)))


def test_payload_given_up_half_way_is_skipped() -> None:
    machine = negotiated()
    flush = Request(0, Command.FLUSH, 2, 0, 0)
    data = Request(0, Command.WRITE, 1, 0, 1024).pack() + bytes(1024) + flush.pack()
    where = machine.buffer()
    where[: len(data)] = data
    machine.received(len(data))
    machine.next_event()
    machine.supply(memoryview(bytearray(512)))
    assert machine.next_event() == PieceReceived()
    machine.skip()
    assert machine.next_event() == flush


def test_supply_where_no_write_is_announced_is_our_error() -> None:
    machine = negotiated()
    with pytest.raises(LocalError):
        machine.supply(memoryview(bytearray(1)))
    with pytest.raises(LocalError):
        machine.skip()


# --- replies --------------------------------------------------------------------------------------------------------

READ = Request(0, Command.READ, 7, 8192, 4096)
STATUS = Request(0, Command.BLOCK_STATUS, 7, 0, 4096)


def test_read_in_simple_pieces_has_one_header() -> None:
    machine = negotiated()
    assert machine.data_header(READ, 8192, 2048) == nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 7)
    assert machine.data_header(READ, 8192 + 2048, 2048) == b""


def test_read_in_chunks_has_a_header_each_and_an_end() -> None:
    machine = negotiated(STRUCTURED)
    header = nbd.DATA_CHUNK.unpack(machine.data_header(READ, 8192, 2048, last=False))
    assert header == (nbd.CHUNK_MAGIC, 0, ChunkType.OFFSET_DATA, 7, 2056, 8192)
    hole = machine.hole_reply(READ, 8192 + 2048, 2048, last=False)
    assert hole == nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 0, ChunkType.OFFSET_HOLE, 7, 12) + nbd.Hole(10240, 2048).pack()
    assert machine.done_reply(READ) == nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 1, ChunkType.NONE, 7, 0)


def test_enotsup_is_for_fast_zero_only() -> None:
    machine = negotiated()
    zeroes = Request(nbd.CMD_FAST_ZERO, Command.WRITE_ZEROES, 7, 0, 512)
    codes = [
        nbd.SIMPLE_REPLY.unpack(machine.error_reply(request, Error.ENOTSUP))[1]
        for request in (zeroes, zeroes._replace(flags=0))
    ]
    assert codes == [Error.ENOTSUP, Error.EINVAL]


@pytest.mark.parametrize(
    ("flags", "extents", "told"),
    [
        (0, [(512, 0), (512, 0), (1024, 3)], ((1024, 0), (1024, 3))),
        (0, [(8192, 0)], ((4096, 0),)),
        (0, [(4096, 0), (512, 3)], ((4096, 0),)),
        (nbd.CMD_REQ_ONE, [(512, 3), (512, 3), (512, 0)], ((1024, 3),)),
    ],
)
def test_block_status_is_merged_and_kept_within_the_request(
    flags: int, extents: list[tuple[int, int]], told: tuple[tuple[int, int], ...]
) -> None:
    reply = negotiated(STRUCTURED, CONTEXT).status_reply(STATUS._replace(flags=flags), extents)
    assert nbd.BlockStatus.unpack(reply[nbd.CHUNK.size :]).extents == told


def test_block_status_without_extents_is_our_error() -> None:
    with pytest.raises(LocalError):
        negotiated(STRUCTURED, CONTEXT).status_reply(STATUS, [(0, 0)])


@pytest.mark.parametrize(
    "change",
    [{"minimum_block": 513}, {"preferred_block": 256}, {"maximum_payload": 64 * MIB}, {"largest_unfragmented": 4096}],
)
def test_export_with_sizes_that_the_protocol_forbids_is_our_error(change: dict[str, int]) -> None:
    with pytest.raises(LocalError):
        replace(DISK, **change)  # type: ignore[arg-type]


# --- whole or in pieces, good or bad --------------------------------------------------------------------------------

names = st.sampled_from(["", "disk", "iso", "nope"])
options = st.one_of(
    st.builds(nbd.pack_option, st.integers(0, 12), st.binary(max_size=40)),
    st.builds(
        lambda option, name, infos: nbd.pack_option(option, nbd.ExportChoice(name, tuple(infos)).pack()),
        st.sampled_from([Option.INFO, Option.GO]),
        names,
        st.lists(st.integers(0, 5), max_size=4),
    ),
    st.builds(
        lambda option, name, queries: nbd.pack_option(option, nbd.MetaQuery(name, tuple(queries)).pack()),
        st.sampled_from([Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT]),
        names,
        st.lists(st.sampled_from(["", "base:", "base:allocation", "x:"]), max_size=3),
    ),
    st.just(STRUCTURED),
    st.just(nbd.pack_option(99, bytes(MAX_OPTION + 7))),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    length = draw(st.sampled_from([0, 1, 512, 1024, 70_000, 70_144, 1 << 31]))
    offset = draw(st.sampled_from([0, 512, 64 * MIB - 512, 64 * MIB, (1 << 64) - 1]))
    request = Request(draw(st.integers(0, 31)), draw(st.integers(0, 8)), draw(st.integers(0, 9)), offset, length)
    if request.command == Command.WRITE:
        request = request._replace(length=length % MIB)
        return request.pack() + draw(st.binary(min_size=1, max_size=1)) * request.length
    return request.pack()


conversations = st.builds(
    lambda head, haggling, go, talk, tail: head + b"".join(haggling) + go + b"".join(talk) + tail,
    st.sampled_from([FLAGS, nbd.ClientFlags(0).pack(), b""]),
    st.lists(options, max_size=4),
    st.sampled_from([GO, STRUCTURED + CONTEXT + GO, b""]),
    st.lists(requests(), max_size=5),
    st.binary(max_size=30),
)


def outcome(data: bytes, step: int, piece: int) -> tuple[list[Event | bytes], str]:
    machine = ServerConnection((DISK, READ_ONLY))
    seen: list[Event | bytes] = []
    supplied = [bytearray()]
    try:
        for at in range(0, len(data), step):
            seen += feed(machine, data[at : at + step], piece=piece, supplied=supplied)
    except RemoteError as error:
        return seen, f"{error.verdict.value}: {error}"
    return seen, ""


@given(data=conversations)
def test_conversation_whole_or_byte_by_byte_gives_the_same_events(data: bytes) -> None:
    bytewise, error = outcome(data, 1, 1000)
    # an error ends `feed`, and with it what came before in the same call
    whole, same_error = outcome(data, len(data) or 1, 1000)
    assert error == same_error
    assert bytewise[: len(whole)] == whole
    assert error or len(bytewise) == len(whole)


@given(data=st.one_of(st.binary(max_size=200), conversations), step=st.integers(1, 100_000), where=st.integers(0, 400))
def test_any_bytes_give_events_or_a_remote_error(data: bytes, step: int, where: int) -> None:
    broken = bytearray(data)
    if where < len(broken):
        broken[where] ^= 1 << (where % 8)
    _, error = outcome(bytes(broken), step, 4096)
    assert not error or error.startswith(Verdict.CLOSE.value)
