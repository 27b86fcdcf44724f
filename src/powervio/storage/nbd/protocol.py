"""The NBD protocol as values: numbers, messages and errors, for both ends of a connection and without any I/O.

Everything on the wire is big-endian; offsets and lengths are bytes. Names are those of the protocol's own text
(NetworkBlockDevice/nbd, doc/proto.md) without their `NBD_` prefix; its section is named at each group. A message is a
class with a `LAYOUT` table of its fields, which one generic codec reads: a further message is one further class.
The three headers of the transmission phase are met by every request, so they are bare `Struct`s.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from powervio.errors import RemoteError

MAX_STRING = 4096
"""Longest name, description, query or message in bytes ("Conventions")."""
MAX_PAYLOAD = 32 << 20
"""Largest data of one READ or WRITE in bytes; the size that every client may count on ("Size constraints")."""
MAX_EXTENTS = 1 << 20
"""Most extents in one block status chunk ("NBD_REPLY_TYPE_BLOCK_STATUS")."""
UNFRAGMENTED = 65536
"""A READ with DF of up to this many bytes must be answered in one chunk ("NBD_CMD_READ")."""

# --- numbers ("Values") ---------------------------------------------------------------------------------------------

INIT_MAGIC = 0x4E42_444D_4147_4943
OPTION_MAGIC = 0x4948_4156_454F_5054
OPTION_REPLY_MAGIC = 0x0003_E889_0455_65A9
REQUEST_MAGIC = 0x2560_9513
SIMPLE_REPLY_MAGIC = 0x6744_6698
CHUNK_MAGIC = 0x668E_33EF

# Flags are plain integers: an IntFlag costs a microsecond for each operation, and some are looked at in every request.
HANDSHAKE_FIXED_NEWSTYLE = 1 << 0
HANDSHAKE_NO_ZEROES = 1 << 1

HAS_FLAGS = 1 << 0
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
ROTATIONAL = 1 << 4
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_CACHE = 1 << 10
SEND_FAST_ZERO = 1 << 11

CMD_FUA = 1 << 0
CMD_NO_HOLE = 1 << 1
CMD_DF = 1 << 2
CMD_REQ_ONE = 1 << 3
CMD_FAST_ZERO = 1 << 4

CHUNK_DONE = 1 << 0

STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1

BASE_ALLOCATION = "base:allocation"
REPLY_ERROR_BIT = 1 << 31
CHUNK_ERROR_BIT = 1 << 15


class Option(IntEnum):
    """What a client asks during the handshake ("Option types")."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """What a server answers during the handshake ("Option reply types"); errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = REPLY_ERROR_BIT + 1
    ERR_POLICY = REPLY_ERROR_BIT + 2
    ERR_INVALID = REPLY_ERROR_BIT + 3
    ERR_PLATFORM = REPLY_ERROR_BIT + 4
    ERR_TLS_REQD = REPLY_ERROR_BIT + 5
    ERR_UNKNOWN = REPLY_ERROR_BIT + 6
    ERR_SHUTDOWN = REPLY_ERROR_BIT + 7
    ERR_BLOCK_SIZE_REQD = REPLY_ERROR_BIT + 8
    ERR_TOO_BIG = REPLY_ERROR_BIT + 9


class Info(IntEnum):
    """The facts about an export ("NBD_REP_INFO")."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """What a client asks during transmission ("Request types")."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class ChunkType(IntEnum):
    """The kinds of structured reply chunk ("Structured reply types"); errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = CHUNK_ERROR_BIT + 1
    ERROR_OFFSET = CHUNK_ERROR_BIT + 2


class Error(IntEnum):
    """The only error numbers that may be sent ("Error values"); the same on every operating system."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_ERROR_OF_ERRNO = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOMEM: Error.ENOMEM,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.EOPNOTSUPP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}
_ERRNO_OF_ERROR = {
    Error.EPERM: errno.EPERM,
    Error.EIO: errno.EIO,
    Error.ENOMEM: errno.ENOMEM,
    Error.EINVAL: errno.EINVAL,
    Error.ENOSPC: errno.ENOSPC,
    Error.EOVERFLOW: errno.EOVERFLOW,
    Error.ENOTSUP: errno.EOPNOTSUPP,
    Error.ESHUTDOWN: errno.ESHUTDOWN,
}


def error_of_errno(number: int | None) -> Error:
    """The error that tells a client of a failed system call; EIO for those that the protocol has no number for."""
    return _ERROR_OF_ERRNO.get(number or 0, Error.EIO)


def errno_of_error(number: int) -> int:
    """This system's errno for an error received; EINVAL for a number that a server must not send ("Error values")."""
    return _ERRNO_OF_ERROR.get(number, errno.EINVAL)  # type: ignore[call-overload, no-any-return]


# --- transmission headers, met by every request ("Request message", "Simple reply message", ...) --------------------

REQUEST = Struct(">IHHQQI")
"""magic, command flags, type, cookie, offset, length."""
SIMPLE_REPLY = Struct(">IIQ")
"""magic, error or 0, cookie."""
CHUNK = Struct(">IHHQI")
"""magic, chunk flags, type, cookie, length of what follows."""
DATA_CHUNK = Struct(">IHHQIQ")
"""The header of a chunk and the offset that begins an OFFSET_DATA chunk; the data follow."""


class Request(NamedTuple):
    """One request of a client. A tuple, because a frozen dataclass takes four times as long to make."""

    flags: int
    command: int
    cookie: int
    """Chosen by the client, opaque to the server."""
    offset: int
    """Bytes from the start of the export."""
    length: int
    """Bytes; of data that follow in a WRITE, of effect in all others."""

    def pack(self) -> bytes:
        """The 28 bytes on the wire."""
        return REQUEST.pack(REQUEST_MAGIC, self.flags, self.command, self.cookie, self.offset, self.length)


# --- the generic codec ----------------------------------------------------------------------------------------------


class _Field:
    """One kind of field: how it is written, and how it is read at a place in a message."""

    def write(self, value: Any) -> bytes:
        raise NotImplementedError

    def read(self, data: memoryview, at: int) -> tuple[Any, int]:
        """The value and the place behind it. Raises `RemoteError`."""
        raise NotImplementedError


def _take(data: memoryview, at: int, length: int) -> memoryview:
    if length > len(data) - at:
        raise RemoteError(f"NBD message ends after {len(data)} bytes, {at + length} expected")
    return data[at : at + length]


def _text(data: memoryview) -> str:
    if len(data) > MAX_STRING:
        raise RemoteError(f"NBD string of {len(data)} bytes, at most {MAX_STRING} are allowed")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RemoteError(f"NBD string is not UTF-8: {error.reason} at byte {error.start}") from None


class _Integer(_Field):
    def __init__(self, code: str) -> None:
        self.struct = Struct(f">{code}")

    def write(self, value: int) -> bytes:
        return self.struct.pack(value)

    def read(self, data: memoryview, at: int) -> tuple[int, int]:
        (value,) = self.struct.unpack(_take(data, at, self.struct.size))
        return value, at + self.struct.size


class _Constant(_Integer):
    """An integer that is always the same: a magic, an information type."""

    def __init__(self, code: str, value: int) -> None:
        super().__init__(code)
        self.value = value

    def read(self, data: memoryview, at: int) -> tuple[int, int]:
        value, at = super().read(data, at)
        if value != self.value:
            raise RemoteError(f"NBD message has {value:#x} where {self.value:#x} is expected")
        return value, at


class _Rest(_Field):
    """A string that goes to the end of the message."""

    def write(self, value: str) -> bytes:
        return value.encode()

    def read(self, data: memoryview, at: int) -> tuple[str, int]:
        return _text(data[at:]), len(data)


class _String(_Field):
    """A string behind its length in bytes."""

    def __init__(self, length: _Integer) -> None:
        self.length = length

    def write(self, value: str) -> bytes:
        encoded = value.encode()
        return self.length.write(len(encoded)) + encoded

    def read(self, data: memoryview, at: int) -> tuple[str, int]:
        length, at = self.length.read(data, at)
        return _text(_take(data, at, length)), at + length


class _List(_Field):
    """Items of one kind behind their number."""

    def __init__(self, count: _Integer, item: _Field) -> None:
        self.count = count
        self.item = item

    def write(self, value: Sequence[Any]) -> bytes:
        return self.count.write(len(value)) + b"".join(map(self.item.write, value))

    def read(self, data: memoryview, at: int) -> tuple[tuple[Any, ...], int]:
        count, at = self.count.read(data, at)
        items = []
        for _ in range(count):  # ends at the end of the data, whatever the count says
            item, at = self.item.read(data, at)
            items.append(item)
        return tuple(items), at


class _Extents(_Field):
    """Pairs of length and flags up to the end of the message; at least one, none of length 0."""

    pair = Struct(">II")

    def write(self, value: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(self.pair.pack(*extent) for extent in value)

    def read(self, data: memoryview, at: int) -> tuple[tuple[tuple[int, int], ...], int]:
        rest = data[at:]
        if not rest or len(rest) % self.pair.size:
            raise RemoteError(f"NBD block status has {len(rest)} bytes of extents, a multiple of 8 is expected")
        extents = tuple(self.pair.iter_unpack(rest))
        if not all(length for length, _ in extents):
            raise RemoteError("NBD block status has an extent of length 0")
        return extents, len(data)


_U16, _U32, _U64 = _Integer("H"), _Integer("I"), _Integer("Q")
_Layout: TypeAlias = tuple[tuple[str, _Field] | _Constant, ...]
_M = TypeVar("_M", bound="Message")


class Message:
    """Base of the messages that are declared as tables: constants stand alone, fields with their attribute's name."""

    __slots__ = ()
    LAYOUT: ClassVar[_Layout] = ()

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return b"".join(
            entry.write(entry.value) if isinstance(entry, _Constant) else entry[1].write(getattr(self, entry[0]))
            for entry in self.LAYOUT
        )

    @classmethod
    def unpack(cls: type[_M], data: bytes | bytearray | memoryview) -> _M:
        """Read a message that is exactly `data`. Raises `RemoteError` when it is too short, too long or not well."""
        view = memoryview(data)
        values = {}
        at = 0
        for entry in cls.LAYOUT:
            if isinstance(entry, _Constant):
                _, at = entry.read(view, at)
            else:
                values[entry[0]], at = entry[1].read(view, at)
        if at != len(view):
            raise RemoteError(f"NBD message of {len(view)} bytes, {at} expected")
        return cls(**values)


# --- handshake ("Newstyle negotiation", "Option types", "Option reply types") ---------------------------------------


@dataclass(frozen=True, slots=True)
class Greeting(Message):
    """The server's first words."""

    flags: int
    LAYOUT = (_Constant("Q", INIT_MAGIC), _Constant("Q", OPTION_MAGIC), ("flags", _U16))


@dataclass(frozen=True, slots=True)
class ClientFlags(Message):
    """The client's answer to the greeting."""

    flags: int
    LAYOUT = (("flags", _U32),)


@dataclass(frozen=True, slots=True)
class OptionHeader(Message):
    """In front of every option; `length` bytes of data follow."""

    option: int
    length: int
    LAYOUT = (_Constant("Q", OPTION_MAGIC), ("option", _U32), ("length", _U32))


@dataclass(frozen=True, slots=True)
class ExportName(Message):
    """Data of EXPORT_NAME."""

    name: str
    LAYOUT = (("name", _Rest()),)


@dataclass(frozen=True, slots=True)
class ExportChoice(Message):
    """Data of INFO and GO: an export, and the `Info` that is wanted beside EXPORT."""

    name: str
    requests: tuple[int, ...]
    LAYOUT = (("name", _String(_U32)), ("requests", _List(_U16, _U16)))


@dataclass(frozen=True, slots=True)
class MetaQuery(Message):
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]
    LAYOUT = (("name", _String(_U32)), ("queries", _List(_U32, _String(_U32))))


@dataclass(frozen=True, slots=True)
class ExportNameReply(Message):
    """Answer to EXPORT_NAME; 124 zero bytes follow unless both sides set NO_ZEROES."""

    size: int
    flags: int
    LAYOUT = (("size", _U64), ("flags", _U16))


@dataclass(frozen=True, slots=True)
class OptionReplyHeader(Message):
    """In front of every answer to an option other than EXPORT_NAME; `length` bytes of data follow."""

    option: int
    reply: int
    length: int
    LAYOUT = (_Constant("Q", OPTION_REPLY_MAGIC), ("option", _U32), ("reply", _U32), ("length", _U32))


@dataclass(frozen=True, slots=True)
class ExportListed(Message):
    """Data of a SERVER reply."""

    name: str
    description: str
    LAYOUT = (("name", _String(_U32)), ("description", _Rest()))


@dataclass(frozen=True, slots=True)
class InfoExport(Message):
    """Data of an INFO reply: size in bytes and transmission flags."""

    size: int
    flags: int
    LAYOUT = (_Constant("H", Info.EXPORT), ("size", _U64), ("flags", _U16))


@dataclass(frozen=True, slots=True)
class InfoName(Message):
    """Data of an INFO reply: the export's canonical name."""

    name: str
    LAYOUT = (_Constant("H", Info.NAME), ("name", _Rest()))


@dataclass(frozen=True, slots=True)
class InfoDescription(Message):
    """Data of an INFO reply: words for a human."""

    description: str
    LAYOUT = (_Constant("H", Info.DESCRIPTION), ("description", _Rest()))


@dataclass(frozen=True, slots=True)
class InfoBlockSize(Message):
    """Data of an INFO reply: size constraints in bytes."""

    minimum: int
    preferred: int
    maximum: int
    LAYOUT = (_Constant("H", Info.BLOCK_SIZE), ("minimum", _U32), ("preferred", _U32), ("maximum", _U32))


@dataclass(frozen=True, slots=True)
class MetaContext(Message):
    """Data of a META_CONTEXT reply."""

    context: int
    name: str
    LAYOUT = (("context", _U32), ("name", _Rest()))


@dataclass(frozen=True, slots=True)
class ErrorText(Message):
    """Data of an error reply to an option."""

    message: str
    LAYOUT = (("message", _Rest()),)


# --- transmission, what is in chunks ("Structured reply types") -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hole(Message):
    """What an OFFSET_HOLE chunk says: this range reads as zeroes."""

    offset: int
    length: int
    LAYOUT = (("offset", _U64), ("length", _U32))


@dataclass(frozen=True, slots=True)
class Failure(Message):
    """What an ERROR chunk says."""

    error: int
    message: str
    LAYOUT = (("error", _U32), ("message", _String(_U16)))


@dataclass(frozen=True, slots=True)
class FailureAt(Message):
    """What an ERROR_OFFSET chunk says; everything before `offset` is good."""

    error: int
    message: str
    offset: int
    LAYOUT = (("error", _U32), ("message", _String(_U16)), ("offset", _U64))


@dataclass(frozen=True, slots=True)
class BlockStatus(Message):
    """What a BLOCK_STATUS chunk says: consecutive extents of `(bytes, STATE_ flags)` from the request's offset."""

    context: int
    extents: tuple[tuple[int, int], ...]
    LAYOUT = (("context", _U32), ("extents", _Extents()))


def pack_option(option: int, data: bytes = b"") -> bytes:
    """A whole option, as a client sends it."""
    return OptionHeader(option, len(data)).pack() + data


def pack_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """A whole answer to an option, as a server sends it."""
    return OptionReplyHeader(option, reply, len(data)).pack() + data


def pack_chunk(flags: int, kind: int, cookie: int, content: bytes = b"") -> bytes:
    """A whole structured reply chunk, for those that carry no data of the export."""
    return CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, len(content)) + content
