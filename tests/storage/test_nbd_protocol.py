"""The bytes of NBD: a golden file for each message, both ways, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import RemoteError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import ChunkType, Command, Error, Message, Option, Reply, Request

GOLDEN = Path(__file__).parent / "golden"

MESSAGES: dict[str, Message] = {
    "greeting": nbd.Greeting(nbd.HANDSHAKE_FIXED_NEWSTYLE | nbd.HANDSHAKE_NO_ZEROES),
    "client-flags": nbd.ClientFlags(nbd.HANDSHAKE_FIXED_NEWSTYLE),
    "option-header": nbd.OptionHeader(Option.GO, 0x1234),
    "export-name": nbd.ExportName("disk é"),
    "export-choice": nbd.ExportChoice("disk", (nbd.Info.NAME, nbd.Info.BLOCK_SIZE)),
    "meta-query": nbd.MetaQuery("disk", (nbd.BASE_ALLOCATION, "qemu:dirty-bitmap:x")),
    "export-name-reply": nbd.ExportNameReply(0x1122334455667788, 0x01FF),
    "option-reply-header": nbd.OptionReplyHeader(Option.LIST, Reply.ERR_UNSUP, 5),
    "export-listed": nbd.ExportListed("disk", "of client1"),
    "info-export": nbd.InfoExport(1 << 40, 0x0DED),
    "info-name": nbd.InfoName("disk"),
    "info-description": nbd.InfoDescription("of client1"),
    "info-block-size": nbd.InfoBlockSize(512, 4096, 32 << 20),
    "meta-context": nbd.MetaContext(1, nbd.BASE_ALLOCATION),
    "error-text": nbd.ErrorText("no such option"),
    "hole": nbd.Hole(0x0102030405060708, 0x1000),
    "failure": nbd.Failure(Error.EIO, "bad block"),
    "failure-at": nbd.FailureAt(Error.EIO, "bad block", 0x0102030405060708),
    "block-status": nbd.BlockStatus(1, ((4096, 0), (8192, nbd.STATE_HOLE | nbd.STATE_ZERO))),
}
FRAMES: dict[str, bytes] = {
    "request-write": Request(nbd.CMD_FUA, Command.WRITE, 0x1122334455667788, 1 << 40, 4096).pack(),
    "request-block-status": Request(nbd.CMD_REQ_ONE, Command.BLOCK_STATUS, 7, 0, 0xFFFFFE00).pack(),
    "simple-reply": nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, Error.ENOSPC, 0x1122334455667788),
    "chunk-none": nbd.pack_chunk(nbd.CHUNK_DONE, ChunkType.NONE, 7),
    "chunk-data": nbd.DATA_CHUNK.pack(nbd.CHUNK_MAGIC, 0, ChunkType.OFFSET_DATA, 7, 4096 + 8, 1 << 40),
    "chunk-error": nbd.pack_chunk(1, ChunkType.ERROR, 7, nbd.Failure(Error.EIO, "bad block").pack()),
    "option-structured-reply": nbd.pack_option(Option.STRUCTURED_REPLY),
    "option-reply-ack": nbd.pack_option_reply(Option.GO, Reply.ACK),
}


def golden(name: str, data: bytes) -> bytes:
    """The golden file; a missing one is written so that it can be looked at and committed, and fails the test."""
    path = GOLDEN / f"nbd-{name}.bin"
    if not path.exists():
        GOLDEN.mkdir(exist_ok=True)
        path.write_bytes(data)
        pytest.fail(f"{path} did not exist and was written: look at it and commit it")
    return path.read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_message_has_its_golden_bytes_both_ways(name: str) -> None:
    message = MESSAGES[name]
    expected = golden(name, message.pack())
    assert message.pack() == expected
    assert type(message).unpack(expected) == message


@pytest.mark.parametrize("name", FRAMES)
def test_frame_has_its_golden_bytes(name: str) -> None:
    assert FRAMES[name] == golden(name, FRAMES[name])


def test_golden_files_are_all_of_a_message() -> None:
    assert {path.stem.removeprefix("nbd-") for path in GOLDEN.glob("nbd-*")} == MESSAGES.keys() | FRAMES.keys()


@pytest.mark.parametrize("name", MESSAGES)
def test_message_cut_short_or_with_more_behind_it_is_refused_or_differs(name: str) -> None:
    message = MESSAGES[name]
    whole = message.pack()
    for data in [whole[:count] for count in range(len(whole))] + [whole + b"\0"]:
        with contextlib.suppress(RemoteError):
            assert type(message).unpack(data) != message


@given(kind=st.sampled_from([type(message) for message in MESSAGES.values()]), data=st.binary(max_size=64))
def test_any_bytes_parse_and_pack_again_or_raise_a_remote_error(kind: type[Message], data: bytes) -> None:
    try:
        message = kind.unpack(data)
    except RemoteError:
        return
    assert message.pack() == data


def test_string_longer_than_4096_bytes_is_refused() -> None:
    with pytest.raises(RemoteError, match="at most 4096"):
        nbd.ExportName.unpack(b"x" * 4097)


def test_string_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(RemoteError, match="not UTF-8"):
        nbd.ExportName.unpack(b"a\xff")


def test_list_with_a_huge_count_is_refused_without_reading_on() -> None:
    with pytest.raises(RemoteError, match="ends after"):
        nbd.MetaQuery.unpack(struct.pack(">II", 0, 0xFFFFFFFF))


@pytest.mark.parametrize("extents", [b"", b"\0" * 4, struct.pack(">II", 0, 1)])
def test_block_status_without_good_extents_is_refused(extents: bytes) -> None:
    with pytest.raises(RemoteError, match="extent"):
        nbd.BlockStatus.unpack(struct.pack(">I", 1) + extents)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EROFS, Error.EPERM),
        (errno.EDQUOT, Error.ENOSPC),
        (errno.EFBIG, Error.ENOSPC),
        (errno.EOPNOTSUPP, Error.ENOTSUP),
        (errno.ESHUTDOWN, Error.ESHUTDOWN),
        (errno.ENODEV, Error.EIO),
        (None, Error.EIO),
    ],
)
def test_errno_becomes_an_error_of_the_protocol(number: int | None, error: Error) -> None:
    assert nbd.error_of_errno(number) is error


def test_error_becomes_this_systems_errno_and_a_strange_one_einval() -> None:
    assert {nbd.error_of_errno(nbd.errno_of_error(error)) for error in Error} == set(Error)
    assert nbd.errno_of_error(4711) == errno.EINVAL
