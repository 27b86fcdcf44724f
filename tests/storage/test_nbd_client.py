"""The client's end of an NBD connection: with our own server's end, and with servers that do what they must not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.client import ClientConnection, Ready, Replied, Send, State
from powervio.storage.nbd.protocol import ChunkType, Command, Error, Reply, Request
from powervio.storage.nbd.rules import Export
from powervio.storage.nbd.server import Answer, ServerConnection, Started

SIZE = 1 << 20


def feed(client: ClientConnection, data: bytes, step: int = 1 << 30) -> list[object]:
    """Let bytes arrive, `step` at a time; the events."""
    events: list[object] = []
    while data:
        room = client.buffer()
        count = min(len(room), len(data), step)
        room[:count] = data[:count]
        client.received(count)
        data = data[count:]
        while (event := client.next_event()) is not None:
            events.append(event)
    return events


def connected(step: int = 1 << 30, *, export: str = "disk") -> tuple[ClientConnection, ServerConnection, Ready]:
    server = ServerConnection([Export("disk", SIZE, nbd.SEND_FLUSH, minimum_block=512)])
    client = ClientConnection(export)
    waiting = server.greeting()
    ready: list[Ready] = []
    while waiting:
        answers = b""
        for event in feed(client, waiting, step):
            if isinstance(event, Send):
                server.buffer()[: len(event.data)] = event.data
                server.received(len(event.data))
                while (answer := server.next_event()) is not None:
                    assert isinstance(answer, (Answer, Started))
                    answers += answer.data if isinstance(answer, Answer) else b""
            else:
                assert isinstance(event, Ready)
                ready.append(event)
        waiting = answers
    return client, server, ready[0]


def ask(client: ClientConnection, command: Command, offset: int, length: int) -> tuple[Request, bytearray]:
    memory = bytearray(b"\xee" * (length if command == Command.READ else 0))
    header = client.request(command, 7, offset, length, memory=memoryview(memory) if memory else None)
    return Request(*struct.unpack(">HHQQI", header[4:])), memory


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_handshake_settles_size_blocks_and_extents(step: int) -> None:
    _, server, ready = connected(step)
    told = ready.export
    assert (told.size, told.minimum_block, told.structured, told.has_extents) == (SIZE, 512, True, True)
    assert server.structured


def test_export_that_is_not_there_is_refused_in_the_servers_words() -> None:
    with pytest.raises(RemoteError, match=r"export 'other' is refused \(ERR_UNKNOWN\): there is no export"):
        connected(export="other")


@pytest.mark.parametrize("step", [1, 100, 1 << 30])
def test_read_in_chunks_in_any_order_with_holes_fills_the_memory(step: int) -> None:
    client, server, _ = connected()
    request, memory = ask(client, Command.READ, 4096, 2048)
    reply = server.data_header(request, 5120, 1024, last=False) + b"b" * 1024
    reply += server.hole_reply(request, 4608, 512, last=False)
    reply += server.data_header(request, 4096, 512, last=True) + b"a" * 512
    assert feed(client, reply, step) == [Replied(7, 0)]
    assert memory == b"a" * 512 + bytes(512) + b"b" * 1024


def test_block_status_gives_extents_and_errors_give_words() -> None:
    client, server, _ = connected()
    request, _ = ask(client, Command.BLOCK_STATUS, 0, 4096)
    (told,) = feed(client, server.status_reply(request, [(1024, 0), (3072, 3)]))
    assert isinstance(told, Replied)
    assert told.extents == ((1024, 0), (3072, 3))
    request, _ = ask(client, Command.WRITE, 0, 512)
    assert feed(client, server.error_reply(request, Error.ENOSPC, "full")) == [Replied(7, Error.ENOSPC, "full")]


def test_server_of_simple_replies_and_export_name_alone_is_enough() -> None:
    client = ClientConnection("x")
    refuse = nbd.pack_option_reply(nbd.Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
    sent = feed(client, nbd.Greeting(3).pack() + refuse)
    assert isinstance(sent[-1], Send)
    feed(client, nbd.pack_option_reply(nbd.Option.GO, Reply.ERR_UNSUP))
    (ready,) = feed(client, nbd.ExportNameReply(SIZE, nbd.HAS_FLAGS | nbd.SEND_FLUSH).pack())
    assert isinstance(ready, Ready)
    assert not ready.export.structured
    _, memory = ask(client, Command.READ, 0, 1000)
    assert feed(client, nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 7) + b"x" * 1000, 333) == [Replied(7, 0)]
    assert memory == b"x" * 1000


def chunk(kind: int, content: bytes, *, cookie: int = 7, flags: int = nbd.CHUNK_DONE) -> bytes:
    return nbd.pack_chunk(flags, kind, cookie, content)


def data_at(offset: int, data: bytes) -> bytes:
    return struct.pack(">Q", offset) + data


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"\0" * 20, "begins with 0x0"),
        (chunk(ChunkType.NONE, b"", cookie=8), "no request of ours"),
        (chunk(ChunkType.NONE, b""), "ended without all of them"),
        (chunk(ChunkType.OFFSET_DATA, data_at(0, b"x" * 512)), "ended without all of them"),
        (chunk(ChunkType.OFFSET_DATA, data_at(512, b"x" * 1024)), "in answer to a READ of 1024 at 0"),
        (chunk(ChunkType.OFFSET_DATA, data_at(0, b"x" * 600), flags=0) * 2, "came twice"),
        (chunk(ChunkType.OFFSET_HOLE, nbd.Hole(1 << 40, 512).pack()), "in answer to a READ"),
        (chunk(ChunkType.BLOCK_STATUS, nbd.BlockStatus(1, ((512, 0),)).pack()), "chunk of type 5"),
        (chunk(ChunkType.ERROR, nbd.Failure(0, "").pack()), "without an error"),
        (nbd.CHUNK.pack(nbd.CHUNK_MAGIC, 1, ChunkType.ERROR, 7, 1 << 30), "with 1073741824 bytes"),
        (nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 7), "simple reply to READ"),
    ],
)
def test_reply_that_must_not_be_ends_the_connection(reply: bytes, said: str) -> None:
    client, _, _ = connected()
    ask(client, Command.READ, 0, 1024)
    with pytest.raises(RemoteError, match=said):
        feed(client, reply)
    assert client.state is State.ENDED
    with pytest.raises(LocalError):
        client.request(Command.FLUSH, 9, 0, 0)


@given(st.binary(max_size=200), st.integers(1, 64), st.booleans())
def test_whatever_a_server_sends_is_understood_or_a_remote_error(data: bytes, step: int, greeted: bool) -> None:
    client = connected()[0] if greeted else ClientConnection()
    guard = bytearray(b"\xee" * 3000)
    if greeted:
        client.request(Command.READ, 7, 0, 1024, memory=memoryview(guard)[1000:2024])
        data = nbd.CHUNK_MAGIC.to_bytes(4, "big") + data
    try:
        for event in feed(client, data, step):
            assert isinstance(event, (Send, Replied, Ready))
    except RemoteError:
        assert client.state is State.ENDED
    assert guard[:1000] == b"\xee" * 1000
    assert guard[2024:] == b"\xee" * 976
