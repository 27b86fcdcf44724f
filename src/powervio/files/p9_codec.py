# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""9P2000.L as a table: every message, its fields, and bytes from values and values from bytes, for both ends.

A message is size u32 (of all of it), type u8, tag u16 and its fields; integers are little-endian. A string is bytes
behind a length u16, a qid is `(type u8, version u32, path u64)`, data are bytes behind a length u32. An R-message has
the type of its T-message plus one, and Rlerror (7) answers any of them.

`fields_of` is for compiled code, which finds the fields of a message without a copy; `pack` and `unpack` are for all
else. What is cut off, or longer than its fields, is no message.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple, TypeAlias

import cython
from cython.cimports.powervio.files.wire import put64, take8, take16, take32, take64
from cython.cimports.powervio.memory.hw import pointer

from powervio.errors import RemoteError, Verdict

RLERROR = 7
TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TRENAME, TREADLINK, TGETATTR, TSETATTR = 8, 12, 14, 16, 18, 20, 22, 24, 26
TXATTRWALK, TXATTRCREATE, TREADDIR, TFSYNC, TLOCK, TGETLOCK = 30, 32, 40, 50, 52, 54
TLINK, TMKDIR, TRENAMEAT, TUNLINKAT = 70, 72, 74, 76
TVERSION, TAUTH, TATTACH, TFLUSH, TWALK, TREAD, TWRITE, TCLUNK, TREMOVE = 100, 102, 104, 108, 110, 116, 118, 120, 122
RVERSION, RFLUSH = 101, 109

VERSION = b"9P2000.L"
NO_TAG = 0xFFFF
NO_FID = 0xFFFF_FFFF
NO_UID = 0xFFFF_FFFF
HEADER_BYTES = 7
READ_HEADER = 11
"""Bytes of an Rread or Rreaddir before the data."""
WRITE_HEADER = 23
"""Bytes of a Twrite before the data."""
IO_HEADER = 24
"""What Linux leaves of msize for headers beside data."""
MOST_NAMES = 16
"""Names in one Twalk."""

QT_DIRECTORY, QT_APPEND, QT_SYMLINK, QT_FILE = 0x80, 0x40, 0x02, 0x00
"""Types in a qid."""

Qid: TypeAlias = tuple[int, int, int]


class Message(NamedTuple):
    """A row of the table: the number of a message, its name, and (name, code) of its fields.

    Codes are those of `struct` (B, H, I, Q) and s a string, N a list of strings, q a qid, L a list of qids, d data.
    """

    kind: int
    name: str
    fields: tuple[tuple[str, str], ...]


_ROWS = (
    (RLERROR, "Rlerror", "ecode:I"),
    (TSTATFS, "Tstatfs", "fid:I"),
    (
        TSTATFS + 1,
        "Rstatfs",
        "type:I bsize:I blocks:Q bfree:Q bavail:Q files:Q ffree:Q fsid:Q namelen:I",
    ),
    (TLOPEN, "Tlopen", "fid:I flags:I"),
    (TLOPEN + 1, "Rlopen", "qid:q iounit:I"),
    (TLCREATE, "Tlcreate", "fid:I name:s flags:I mode:I gid:I"),
    (TLCREATE + 1, "Rlcreate", "qid:q iounit:I"),
    (TSYMLINK, "Tsymlink", "dfid:I name:s symtgt:s gid:I"),
    (TSYMLINK + 1, "Rsymlink", "qid:q"),
    (TMKNOD, "Tmknod", "dfid:I name:s mode:I major:I minor:I gid:I"),
    (TMKNOD + 1, "Rmknod", "qid:q"),
    (TRENAME, "Trename", "fid:I dfid:I name:s"),
    (TRENAME + 1, "Rrename", ""),
    (TREADLINK, "Treadlink", "fid:I"),
    (TREADLINK + 1, "Rreadlink", "target:s"),
    (TGETATTR, "Tgetattr", "fid:I request_mask:Q"),
    (
        TGETATTR + 1,
        "Rgetattr",
        "valid:Q qid:q mode:I uid:I gid:I nlink:Q rdev:Q size:Q blksize:Q blocks:Q "
        "atime_sec:Q atime_nsec:Q mtime_sec:Q mtime_nsec:Q ctime_sec:Q ctime_nsec:Q btime_sec:Q btime_nsec:Q "
        "gen:Q data_version:Q",
    ),
    (
        TSETATTR,
        "Tsetattr",
        "fid:I valid:I mode:I uid:I gid:I size:Q atime_sec:Q atime_nsec:Q mtime_sec:Q mtime_nsec:Q",
    ),
    (TSETATTR + 1, "Rsetattr", ""),
    (TXATTRWALK, "Txattrwalk", "fid:I newfid:I name:s"),
    (TXATTRWALK + 1, "Rxattrwalk", "size:Q"),
    (TXATTRCREATE, "Txattrcreate", "fid:I name:s attr_size:Q flags:I"),
    (TXATTRCREATE + 1, "Rxattrcreate", ""),
    (TREADDIR, "Treaddir", "fid:I offset:Q count:I"),
    (TREADDIR + 1, "Rreaddir", "data:d"),
    (TFSYNC, "Tfsync", "fid:I datasync:I"),
    (TFSYNC + 1, "Rfsync", ""),
    (TLOCK, "Tlock", "fid:I type:B flags:I start:Q length:Q proc_id:I client_id:s"),
    (TLOCK + 1, "Rlock", "status:B"),
    (TGETLOCK, "Tgetlock", "fid:I type:B start:Q length:Q proc_id:I client_id:s"),
    (TGETLOCK + 1, "Rgetlock", "type:B start:Q length:Q proc_id:I client_id:s"),
    (TLINK, "Tlink", "dfid:I fid:I name:s"),
    (TLINK + 1, "Rlink", ""),
    (TMKDIR, "Tmkdir", "dfid:I name:s mode:I gid:I"),
    (TMKDIR + 1, "Rmkdir", "qid:q"),
    (TRENAMEAT, "Trenameat", "olddirfid:I oldname:s newdirfid:I newname:s"),
    (TRENAMEAT + 1, "Rrenameat", ""),
    (TUNLINKAT, "Tunlinkat", "dirfd:I name:s flags:I"),
    (TUNLINKAT + 1, "Runlinkat", ""),
    (TVERSION, "Tversion", "msize:I version:s"),
    (RVERSION, "Rversion", "msize:I version:s"),
    (TAUTH, "Tauth", "afid:I uname:s aname:s n_uname:I"),
    (TAUTH + 1, "Rauth", "aqid:q"),
    (TATTACH, "Tattach", "fid:I afid:I uname:s aname:s n_uname:I"),
    (TATTACH + 1, "Rattach", "qid:q"),
    (TFLUSH, "Tflush", "oldtag:H"),
    (RFLUSH, "Rflush", ""),
    (TWALK, "Twalk", "fid:I newfid:I wnames:N"),
    (TWALK + 1, "Rwalk", "wqids:L"),
    (TREAD, "Tread", "fid:I offset:Q count:I"),
    (TREAD + 1, "Rread", "data:d"),
    (TWRITE, "Twrite", "fid:I offset:Q data:d"),
    (TWRITE + 1, "Rwrite", "count:I"),
    (TCLUNK, "Tclunk", "fid:I"),
    (TCLUNK + 1, "Rclunk", ""),
    (TREMOVE, "Tremove", "fid:I"),
    (TREMOVE + 1, "Rremove", ""),
)


def _row(kind: int, name: str, text: str) -> Message:
    pairs = (one.partition(":") for one in text.split())
    return Message(kind, name, tuple((field, code) for field, _, code in pairs))


MESSAGES: dict[int, Message] = {kind: _row(kind, name, text) for kind, name, text in _ROWS}
"""All of 9P2000.L by number."""

_INTEGERS = "BHIQ"
_HEAD = Struct("<IBH")
_QID = Struct("<BIQ")
_ENTRY = Struct("<BIQQBH")
ENTRY_HEADER = _ENTRY.size
"""Bytes of a directory entry before its name."""
_CODES = {kind: "".join(code for _, code in row.fields) for kind, row in MESSAGES.items()}


def _runs(codes: str) -> list[Any]:
    """Integers that follow each other are one `Struct`; everything else is its code."""
    found: list[Any] = []
    run = ""
    for code in codes:
        if code in _INTEGERS:
            run += code
            continue
        if run:
            found.append(Struct("<" + run))
            run = ""
        found.append(code)
    if run:
        found.append(Struct("<" + run))
    return found


_RUNS = {kind: _runs(codes) for kind, codes in _CODES.items()}
_FIXED = {kind: Struct("<IBH" + codes) for kind, codes in _CODES.items() if not set(codes) - set(_INTEGERS)}


# -- bytes from values


def pack(kind: int, tag: int, *fields: Any, payload: int | None = None) -> bytes:
    """A message from its fields. With `payload` its data are so many bytes that go elsewhere, and no field.

    Raises `struct.error` for a value that its field cannot have.
    """
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.pack(fixed.size, kind, tag, *fields)
    parts: list[bytes] = [b""]
    at = 0
    apart = 0
    for one in _RUNS[kind]:
        if isinstance(one, Struct):
            count = len(one.format) - 1
            parts.append(one.pack(*fields[at : at + count]))
            at += count
            continue
        if one == "d" and payload is not None:
            parts.append(payload.to_bytes(4, "little"))
            apart = payload
            continue
        _pack_one(one, fields[at], parts)
        at += 1
    if at != len(fields):
        raise StructError(f"{MESSAGES[kind].name} has {at} fields, not {len(fields)}")
    parts[0] = _HEAD.pack(HEADER_BYTES + sum(map(len, parts)) + apart, kind, tag)
    return b"".join(parts)


def _pack_one(code: str, value: Any, parts: list[bytes]) -> None:
    if code == "s":
        parts += (_length(value, 2), bytes(value))
    elif code == "d":
        parts += (_length(value, 4), bytes(value))
    elif code == "q":
        parts.append(_QID.pack(*value))
    elif code == "L":
        parts.append(_length(value, 2))
        parts += (_QID.pack(*qid) for qid in value)
    else:
        parts.append(_length(value, 2))
        for name in value:
            parts += (_length(name, 2), bytes(name))


def _length(value: Sequence[Any], size: int) -> bytes:
    if len(value) >> 8 * size:
        raise StructError(f"{len(value)} of something of which there are fewer than {1 << 8 * size}")
    return len(value).to_bytes(size, "little")


def pack_entries(entries: Iterable[tuple[Qid, int, int, bytes]]) -> bytes:
    """The data of an Rreaddir: `(qid, offset, type, name)` of each entry."""
    return b"".join(
        _ENTRY.pack(*qid, offset, kind, len(name)) + name for qid, offset, kind, name in entries
    )  # fmt: skip


# -- values from bytes


def head(message: memoryview | bytes) -> tuple[int, int]:
    """Type and tag of a message of seven bytes at least."""
    _, kind, tag = _HEAD.unpack_from(message)
    return kind, tag


def unpack(kind: int, message: memoryview | bytes) -> tuple[Any, ...]:
    """The fields of a message; data are a view of it. Raises `RemoteError` (CLOSE)."""
    whole = memoryview(message)
    values: list[Any] = []
    at = HEADER_BYTES
    try:
        for one in _RUNS[kind]:
            if isinstance(one, Struct):
                values += one.unpack_from(whole, at)
                at += one.size
            else:
                at = _unpack_one(one, whole, at, values)
    except StructError as error:
        raise RemoteError(f"9P {MESSAGES[kind].name} of {len(whole)} bytes is cut off", Verdict.CLOSE) from error
    except KeyError:
        raise RemoteError(f"9P message of type {kind}; there is none in 9P2000.L", Verdict.CLOSE) from None
    if at != len(whole):
        raise RemoteError(
            f"9P {MESSAGES[kind].name} of {len(whole)} bytes; its fields have {at}", Verdict.CLOSE
        )  # fmt: skip
    return tuple(values)


def _unpack_one(code: str, whole: memoryview, at: int, values: list[Any]) -> int:
    if code == "q":
        values.append(_QID.unpack_from(whole, at))
        return at + _QID.size
    if code == "d":
        (count,) = _DATA.unpack_from(whole, at)
        values.append(_part(whole, at + 4, count))
        return at + 4 + int(count)
    (count,) = _STRING.unpack_from(whole, at)
    at += 2
    if code == "s":
        values.append(bytes(_part(whole, at, count)))
        return at + int(count)
    found: list[Any] = []
    for _ in range(count):
        if code == "L":
            found.append(_QID.unpack_from(whole, at))
            at += _QID.size
        else:
            (size,) = _STRING.unpack_from(whole, at)
            found.append(bytes(_part(whole, at + 2, size)))
            at += 2 + size
    values.append(found)
    return at


_DATA = Struct("<I")
_STRING = Struct("<H")


def _part(whole: memoryview, at: int, count: int) -> memoryview:
    if count > len(whole) - at:
        raise StructError("cut off")
    return whole[at : at + count]


def entries(data: memoryview | bytes) -> list[tuple[Qid, int, int, bytes]]:
    """`(qid, offset, type, name)` of what is in an Rreaddir. Raises `RemoteError` (CLOSE) when one is cut off."""
    found = []
    whole = memoryview(data)
    at = 0
    try:
        while at < len(whole):
            kind, version, path, offset, entry_kind, count = _ENTRY.unpack_from(whole, at)
            at += ENTRY_HEADER
            found.append(((kind, version, path), offset, entry_kind, bytes(_part(whole, at, count))))
            at += count
    except StructError as error:
        raise RemoteError("9P directory entry is cut off", Verdict.CLOSE) from error
    return found


def describe(message: memoryview | bytes) -> str:
    """A message in words, for traces: its name, tag and fields; data are told by their length."""
    kind, tag = head(message)
    row = MESSAGES.get(kind)
    if row is None:
        return f"type {kind} tag {tag} with {len(message)} bytes"
    told = []
    for (name, _), value in zip(row.fields, unpack(kind, message), strict=True):
        told.append(f"{name} {f'{len(value)} bytes' if isinstance(value, memoryview) else value}")
    return " ".join((row.name, f"tag {tag}", *told))


# -- the same for compiled code

MOST_FIELDS = cython.declare(cython.int, 24)
"""No message has more fields."""
_WIDTH = cython.declare(cython.int, 24)
_layouts = bytearray(256 * 24)
for _kind, _codes in _CODES.items():
    if not set(_codes) & set("qL"):  # those are in answers, which nobody compiled reads
        _layouts[_kind * 24 : _kind * 24 + len(_codes) + 1] = _codes.encode() + b"."
_LAYOUTS = cython.declare(cython.p_uchar)
_LAYOUTS = pointer(_layouts)
_BYTE = cython.declare(cython.int, ord("B"))
_SHORT = cython.declare(cython.int, ord("H"))
_WORD = cython.declare(cython.int, ord("I"))
_LONG = cython.declare(cython.int, ord("Q"))
_TEXT = cython.declare(cython.int, ord("s"))
_NAMES = cython.declare(cython.int, ord("N"))
_CONTENTS = cython.declare(cython.int, ord("d"))
_END = cython.declare(cython.int, ord("."))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fields_of(kind: cython.int, base: cython.p_uchar, size: cython.longlong, fields: cython.p_uchar) -> cython.int:
    """Find the fields of a T-message of `size` bytes at `base`; how many, or -1: it is none.

    Each is eight bytes in `fields`, little-endian. Strings, lists and data are their place in the message, and in the
    upper half their length or count; whether the data are as many as there, is for the caller to see: they may be
    elsewhere.
    """
    code: cython.int
    count: cython.int = 0
    at: cython.longlong = 7
    length: cython.ulonglong
    left: cython.ulonglong
    while True:
        code = take8(_LAYOUTS, kind * _WIDTH + count)
        if code == _WORD:
            if size - at < 4:
                return -1
            put64(fields, 8 * count, take32(base, at))
            at += 4
        elif code == _LONG:
            if size - at < 8:
                return -1
            put64(fields, 8 * count, take64(base, at))
            at += 8
        elif code == _TEXT:
            if size - at < 2:
                return -1
            length = take16(base, at)
            at += 2
            put64(fields, 8 * count, length << 32 | at)
            at += length
            if at > size:
                return -1
        elif code == _BYTE:
            if size - at < 1:
                return -1
            put64(fields, 8 * count, take8(base, at))
            at += 1
        elif code == _SHORT:
            if size - at < 2:
                return -1
            put64(fields, 8 * count, take16(base, at))
            at += 2
        elif code == _CONTENTS:
            if size - at < 4:
                return -1
            length = take32(base, at)
            put64(fields, 8 * count, length << 32 | at + 4)
            return count + 1
        elif code == _NAMES:
            if size - at < 2:
                return -1
            left = take16(base, at)
            at += 2
            put64(fields, 8 * count, left << 32 | at)
            while left > 0:
                if size - at < 2:
                    return -1
                at += 2 + take16(base, at)
                if at > size:
                    return -1
                left -= 1
        elif code == _END:
            return count if at == size else -1
        else:
            return -1
        count += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_question(kind: cython.int) -> cython.bint:
    """Whether that is the type of a T-message."""
    return kind & 1 == 0 and take8(_LAYOUTS, kind * _WIDTH) != 0


def found(message: bytes) -> list[int] | None:
    """What `fields_of` makes of a message, for tests; None: it is none."""
    if len(message) < HEADER_BYTES:
        return None
    book = bytearray(8 * MOST_FIELDS)
    copy = bytearray(message)
    base: cython.p_uchar = pointer(copy)
    fields: cython.p_uchar = pointer(book)
    kind: cython.int = message[4]
    count: cython.int = fields_of(kind, base, len(message), fields)
    return None if count < 0 else [take64(fields, 8 * index) for index in range(count)]
