"""The 9P codec: golden bytes of every message, both directions, and what is no message."""

from __future__ import annotations

import ast
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import RemoteError
from powervio.files import p9_codec as p9

pytestmark = pytest.mark.dual

GOLDEN = [
    line.split(" ", 2)
    for line in (Path(__file__).parent / "golden/9p2000L.txt").read_text().splitlines()
    if not line.startswith("#")
]
BY_NAME = {row.name: row for row in p9.MESSAGES.values()}


def plain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in values)


@pytest.mark.parametrize(("name", "text", "fields"), GOLDEN)
def test_golden_bytes(name: str, text: str, fields: str) -> None:
    message, values, kind = bytes.fromhex(text), ast.literal_eval(fields), BY_NAME[name].kind
    assert p9.pack(kind, 0x2221, *values) == message
    assert p9.head(message) == (kind, 0x2221)
    assert plain(p9.unpack(kind, message)) == values


def test_every_message_has_golden_bytes() -> None:
    assert [row[0] for row in GOLDEN] == [row.name for _, row in sorted(p9.MESSAGES.items())]
    assert len(p9.MESSAGES) == 57


@pytest.mark.parametrize(("name", "text", "fields"), GOLDEN)
def test_every_prefix_and_every_longer_one_is_no_message(name: str, text: str, fields: str) -> None:
    message, kind = bytes.fromhex(text), BY_NAME[name].kind
    for size in range(7, len(message)):
        with pytest.raises(RemoteError):
            p9.unpack(kind, message[:size])
    with pytest.raises(RemoteError):
        p9.unpack(kind, message + b"x")


@pytest.mark.parametrize(("name", "text", "fields"), [row for row in GOLDEN if row[0].startswith("T")])
def test_compiled_code_finds_the_same_fields(name: str, text: str, fields: str) -> None:
    message = bytes.fromhex(text)
    found = p9.found(message)
    assert found is not None
    for value, place, (_, code) in zip(ast.literal_eval(fields), found, BY_NAME[name].fields, strict=True):
        first, size = place & 0xFFFFFFFF, place >> 32
        if code in ("s", "d"):
            assert message[first : first + size] == value
        elif code == "N":
            assert (size, message[first - 2 : first]) == (len(value), len(value).to_bytes(2, "little"))
        else:
            assert place == value
    for size in range(len(message)):
        if name != "Twrite" or size < p9.WRITE_HEADER:
            assert p9.found(message[:size]) is None
    if name != "Twrite":
        assert p9.found(message + b"x") is None


def test_data_that_go_elsewhere() -> None:
    apart = p9.pack(p9.TWRITE, 5, 1, 2, payload=4)
    assert apart + b"data" == p9.pack(p9.TWRITE, 5, 1, 2, b"data")
    assert len(apart) == p9.WRITE_HEADER


def test_entries() -> None:
    some = [((0x80, 1, 2), 3, 4, b"name"), ((0, 5, 6), 7, 8, b"")]
    data = p9.pack_entries(some)
    assert data[:24].hex() == "80010000000200000000000000" + "0300000000000000" + "04" + "0400"
    assert p9.entries(data) == some
    for size in range(1, len(data)):
        if size != 28:
            with pytest.raises(RemoteError):
                p9.entries(data[:size])


def test_values_that_have_no_room() -> None:
    for kind, fields in ((p9.TMKDIR, (1, b"x" * 65536, 0, 0)), (p9.TCLUNK, (1 << 32,)), (p9.TMKDIR, (1, b"x", 0))):
        with pytest.raises(struct.error):
            p9.pack(kind, 1, *fields)


def test_describe() -> None:
    assert p9.describe(p9.pack(p9.TWALK, 3, 1, 2, [b"usr"])) == "Twalk tag 3 fid 1 newfid 2 wnames [b'usr']"
    assert p9.describe(p9.pack(p9.TREAD + 1, 3, b"xyz")) == "Rread tag 3 data 3 bytes"
    assert p9.describe(b"\x07\0\0\0\xff\x01\0") == "type 255 tag 1 with 7 bytes"


_QID = st.tuples(st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "B": st.integers(0, 255),
    "H": st.integers(0, 65535),
    "I": st.integers(0, (1 << 32) - 1),
    "Q": st.integers(0, (1 << 64) - 1),
    "s": st.binary(max_size=300),
    "d": st.binary(max_size=300),
    "q": _QID,
    "N": st.lists(st.binary(max_size=20), max_size=20),
    "L": st.lists(_QID, max_size=20),
}


@given(st.data(), st.sampled_from(sorted(p9.MESSAGES)), st.integers(0, 65535))
def test_unpack_is_the_inverse_of_pack(data: st.DataObject, kind: int, tag: int) -> None:
    fields = tuple(data.draw(_VALUES[code]) for _, code in p9.MESSAGES[kind].fields)
    message = p9.pack(kind, tag, *fields)
    assert int.from_bytes(message[:4], "little") == len(message)
    assert plain(p9.unpack(kind, message)) == fields


@given(st.binary(min_size=7, max_size=200), st.sampled_from(sorted(p9.MESSAGES)))
def test_any_bytes_are_a_message_for_both_or_for_none(data: bytes, kind: int) -> None:
    message = data[:4] + bytes([kind]) + data[5:]
    try:
        values = p9.unpack(kind, message)
    except RemoteError:
        values = None
    found = p9.found(message)
    if set("qL") & {code for _, code in p9.MESSAGES[kind].fields}:
        assert found is None  # only T-messages, and what looks like one
    elif kind != p9.TWRITE and "d" not in {code for _, code in p9.MESSAGES[kind].fields}:
        assert (found is None) == (values is None)
        if values is not None:
            assert p9.unpack(kind, p9.pack(kind, int.from_bytes(message[5:7], "little"), *values)) == values
