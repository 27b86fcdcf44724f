"""What a client says and hears of 9P2000.L: T-messages from values, values from R-messages.

Integers are little-endian; a string is bytes behind a length of two bytes; a qid is `(type, version, path)`. A message
and its answer are one row of a table.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Any

from powervio.errors import RemoteError, Verdict

RLERROR = 7
TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TRENAME, TREADLINK, TGETATTR, TSETATTR = 8, 12, 14, 16, 18, 20, 22, 24, 26
TXATTRWALK, TXATTRCREATE, TREADDIR, TFSYNC, TLOCK, TGETLOCK, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT = (
    30,
    32,
    40,
    50,
    52,
    54,
    70,
    72,
    74,
    76,
)
TVERSION, TAUTH, TATTACH, TFLUSH, TWALK, TREAD, TWRITE, TCLUNK, TREMOVE = 100, 102, 104, 108, 110, 116, 118, 120, 122
RVERSION, RFLUSH = 101, 109

_MESSAGES = {
    TVERSION: ("Is", "Is"),
    TAUTH: ("IssI", "q"),
    TATTACH: ("IIssI", "q"),
    TSTATFS: ("I", "IIQQQQQQI"),
    TLOPEN: ("II", "qI"),
    TLCREATE: ("IsIII", "qI"),
    TSYMLINK: ("IssI", "q"),
    TMKNOD: ("IsIIII", "q"),
    TRENAME: ("IIs", ""),
    TREADLINK: ("I", "s"),
    TGETATTR: ("IQ", "QqIIIQQQQQQQQQQQQQQQ"),
    TSETATTR: ("IIIIIQQQQQ", ""),
    TXATTRWALK: ("IIs", "Q"),
    TXATTRCREATE: ("IsQI", ""),
    TREADDIR: ("IQI", "d"),
    TFSYNC: ("II", ""),
    TLOCK: ("IBIQQIs", "B"),
    TGETLOCK: ("IBQQIs", "BQQIs"),
    TLINK: ("IIs", ""),
    TMKDIR: ("IsII", "q"),
    TRENAMEAT: ("IsIs", ""),
    TUNLINKAT: ("IsI", ""),
    TFLUSH: ("H", ""),
    TWALK: ("IIN", "L"),
    TREAD: ("IQI", "d"),
    TWRITE: ("IQ", "I"),
    TCLUNK: ("I", ""),
    TREMOVE: ("I", ""),
}
"""What is behind the tag, of the T-message and of its R-message, whose type is the next number. Beside the letters of
`struct`: s a string, N a list of strings, q a qid, L a list of qids, d data behind four bytes of length. The data of a
Twrite are not in its row."""
_HEAD = Struct("<IBH")
_QID = Struct("<BIQ")
_WRITE = Struct("<IBHIQI")
_ENTRY = Struct("<BIQQBH")


def _runs(layout: str) -> list[Any]:
    found: list[Any] = []
    run = ""
    for code in layout:
        if code in "BHIQ":
            run += code
            continue
        if run:
            found.append(Struct("<" + run))
            run = ""
        found.append(code)
    if run:
        found.append(Struct("<" + run))
    return found


_FIXED = {kind: Struct("<IBH" + asks) for kind, (asks, _) in _MESSAGES.items() if not set(asks) - set("BHIQ")}
_TRUNS = {kind: _runs(asks) for kind, (asks, _) in _MESSAGES.items()}
_RRUNS = {RLERROR: _runs("I")} | {kind + 1: _runs(tells) for kind, (_, tells) in _MESSAGES.items()}


def pack(kind: int, tag: int, *fields: Any, payload: int = 0) -> bytes:
    """A T-message from its fields behind the tag; of a Twrite without the data, which are `payload` bytes."""
    if kind == TWRITE:
        return _WRITE.pack(23 + payload, kind, tag, *fields, payload)
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.pack(fixed.size, kind, tag, *fields)
    parts: list[bytes] = [b""]
    at = 0
    for one in _TRUNS[kind]:
        if isinstance(one, Struct):
            count = len(one.format) - 1
            parts.append(one.pack(*fields[at : at + count]))
            at += count
        elif one == "s":
            parts.append(len(fields[at]).to_bytes(2, "little") + fields[at])
            at += 1
        else:
            names = fields[at]
            parts.append(len(names).to_bytes(2, "little"))
            for name in names:
                parts.append(len(name).to_bytes(2, "little") + name)
            at += 1
    parts[0] = _HEAD.pack(7 + sum(map(len, parts)), kind, tag)
    return b"".join(parts)


def head(message: memoryview) -> tuple[int, int]:
    """Type and tag of a message of seven bytes at least."""
    _, kind, tag = _HEAD.unpack_from(message)
    return kind, tag


def unpack(kind: int, message: memoryview) -> Any:
    """The fields of an R-message behind its tag; data are a part of it. Raises `RemoteError` (CLOSE)."""
    values: list[Any] = []
    at = 7
    try:
        for one in _RRUNS[kind]:
            if isinstance(one, Struct):
                values += one.unpack_from(message, at)
                at += one.size
            elif one == "q":
                values.append(_QID.unpack_from(message, at))
                at += 13
            elif one == "s":
                n = int.from_bytes(message[at : at + 2], "little")
                values.append(bytes(message[at + 2 : at + 2 + n]))
                at += 2 + n
            elif one == "L":
                n = int.from_bytes(message[at : at + 2], "little")
                at += 2
                values.append([_QID.unpack_from(message, at + 13 * i) for i in range(n)])
                at += 13 * n
            else:
                n = int.from_bytes(message[at : at + 4], "little")
                values.append(message[at + 4 : at + 4 + n])
                at += 4 + n
    except (StructError, IndexError) as error:
        raise RemoteError(f"9P answer {kind} is cut off", Verdict.CLOSE) from error
    if at != len(message):
        raise RemoteError(f"9P answer {kind} of {len(message)} bytes, {at} expected", Verdict.CLOSE)
    return tuple(values)


def entries(data: memoryview) -> list[tuple[tuple[int, int, int], int, int, bytes]]:
    """`(qid, offset, type, name)` of what is in an Rreaddir. Raises `RemoteError` (CLOSE) when one is cut off."""
    found = []
    at = 0
    while at < len(data):
        try:
            kind, version, path, offset, entry_kind, n = _ENTRY.unpack_from(data, at)
        except (StructError, IndexError) as error:
            raise RemoteError("9P directory entry is cut off", Verdict.CLOSE) from error
        at += 24
        if n > len(data) - at:
            raise RemoteError("9P directory entry is cut off", Verdict.CLOSE)
        found.append(((kind, version, path), offset, entry_kind, bytes(data[at : at + n])))
        at += n
    return found
