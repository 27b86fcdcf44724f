# cython: language_level=3, annotation_typing=False
"""FUSE's kernel protocol, both directions, between bytes and the values of `fuse_messages`, without any I/O.

On /dev/fuse integers are in the machine's byte order; over virtio-fs the driver chooses it, and its first message says
which (`byteorder_of`): hence a `FuseCodec` for each order. Whoever is at the other end may send any bytes: a frame is
decoded whole or is a `RemoteError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Literal, NamedTuple, TypeVar

from powervio.errors import RemoteError
from powervio.files.fuse_messages import (
    BODIES,
    EXT_GROUPS,
    NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_INODE,
    REQUESTS,
    Attr,
    AttrHead,
    Dirent,
    EntryHead,
    ForgetOne,
    InHeader,
    NotifyInvalEntry,
    NotifyInvalInode,
    Opcode,
    OutHeader,
    Row,
    SetxattrExtIn,
)

SHORT_INIT = 16
"""A body of INIT without `flags2`, as kernels before 5.17 send it."""

_B = TypeVar("_B")


class Request(NamedTuple):
    """One request of the kernel, or of a virtio-fs driver."""

    header: InHeader
    body: Any
    """Of the class that `REQUESTS` says; None if it has none."""
    names: tuple[bytes, ...] = ()
    data: memoryview = memoryview(b"")
    """A part of the frame: it is gone when the buffer is used again."""
    groups: tuple[int, ...] = ()
    """Supplementary groups that came as an extension."""


def byteorder_of(frame: bytes | bytearray | memoryview) -> Literal["little", "big"]:
    """The byte order of a session, by its first message, which has to be INIT (virtio 1.4, 5.11.6.1).

    Raises `RemoteError` when it is neither.
    """
    opcode = bytes(frame[4:8])
    for order in ("little", "big"):
        if int.from_bytes(opcode, order) == Opcode.INIT:
            return order
    raise RemoteError(f"FUSE session begins with opcode {opcode.hex()}, INIT is expected")


def dirent_size(namelen: int, *, plus: bool = False) -> int:
    """Bytes of one directory entry with a name of so many bytes."""
    return ((128 if plus else 0) + 24 + namelen + 7) & ~7


class FuseCodec:
    """Requests and replies in one byte order."""

    def __init__(self, byteorder: Literal["little", "big"] = sys.byteorder, *, setxattr_ext: bool = False) -> None:
        """`setxattr_ext` says that SETXATTR_EXT was negotiated."""
        self.byteorder = byteorder
        order = "<" if byteorder == "little" else ">"
        self._structs = {body: Struct(order + layout) for body, layout in BODIES.items()}
        self._rows = dict(REQUESTS)
        if setxattr_ext:
            self._rows[Opcode.SETXATTR] = Row(SetxattrExtIn, names=1, data=True)
        self._in_header = self._structs[InHeader]
        self._out_header = self._structs[OutHeader]
        self._entry = Struct(order + BODIES[EntryHead] + BODIES[Attr])
        self._dirent = self._structs[Dirent]
        self._extension = Struct(order + "II")
        # one lookup and no class of its own on the way of each request
        self._decoders = {
            opcode: (
                None if row.body is None else self._structs[row.body].unpack_from,
                0 if row.body is None else self._structs[row.body].size,
                None if row.body is None else row.body._make,
                row.names,
                row.data,
            )
            for opcode, row in self._rows.items()
        }

    def size(self, body: type[Any]) -> int:
        """Bytes of a body."""
        return self._structs[body].size

    def pack(self, body: Any) -> bytes:
        """The bytes of a body."""
        return self._structs[type(body)].pack(*body)

    def unpack(self, kind: type[_B], data: bytes | bytearray | memoryview, offset: int = 0) -> _B:
        """The body of a class at `offset`. Raises `RemoteError` if it is cut off."""
        struct = self._structs[kind]
        if len(data) - offset < struct.size:
            raise RemoteError(f"FUSE {kind.__name__} of {len(data) - offset} bytes, {struct.size} expected")
        made: _B = kind._make(struct.unpack_from(data, offset))  # type: ignore[attr-defined]
        return made

    # Requests

    def decode(self, frame: memoryview) -> Request:
        """One whole request. Raises `RemoteError` for one that is not well; unknown ones come with all as data."""
        size = len(frame)
        if size < 40:
            raise RemoteError(f"FUSE request of {size} bytes, 40 at least are expected")
        header = InHeader._make(self._in_header.unpack_from(frame))
        if header.length != size:
            raise RemoteError(f"FUSE request of {size} bytes says that it has {header.length}")
        groups: tuple[int, ...] = ()
        if header.extensions:
            size -= header.extensions * 8
            if size < 40:
                raise RemoteError(f"FUSE request of {header.length} bytes has {header.extensions * 8} of extensions")
            groups = self._groups(frame[size:])
        found = self._decoders.get(header.opcode)
        if found is None:
            return Request(header, None, (), frame[40:size], groups)
        unpack_from, body_size, make, names, has_data = found
        at = 40
        body = None
        if unpack_from is not None and make is not None:
            if size - at < body_size:
                if header.opcode != Opcode.INIT or size - at < SHORT_INIT:
                    raise RemoteError(f"FUSE request {header.opcode} has {size - at} bytes, {body_size} expected")
                body = make(unpack_from(bytes(frame[at:size]) + bytes(body_size)))
                at = size
            else:
                body = make(unpack_from(frame, at))
                at += body_size
        if names:
            found_names = []
            tail = bytes(frame[at:size])
            start = 0
            for _ in range(names):
                end = tail.find(b"\0", start)
                if end < 0:
                    raise RemoteError(f"FUSE request {header.opcode} has a name without an end")
                found_names.append(tail[start:end])
                start = end + 1
            data = frame[at + start : size] if has_data else frame[size:size]
            return Request(header, body, tuple(found_names), data, groups)
        return Request(header, body, (), frame[at:size] if has_data else frame[size:size], groups)

    def _groups(self, data: memoryview) -> tuple[int, ...]:
        """The supplementary groups among extensions."""
        at = 0
        while len(data) - at >= 8:
            size, kind = self._extension.unpack_from(data, at)
            if size < 8 or size > len(data) - at:
                raise RemoteError(f"FUSE extension of {size} bytes, {len(data) - at} are there")
            if kind == EXT_GROUPS and size >= 12:
                order = "<" if self.byteorder == "little" else ">"
                (count,) = Struct(order + "I").unpack_from(data, at + 8)
                if 12 + count * 4 > size:
                    raise RemoteError(f"FUSE extension of {size} bytes has {count} groups")
                return Struct(f"{order}{count}I").unpack_from(data, at + 12)
            at += (size + 7) & ~7
        return ()

    def encode_request(
        self,
        opcode: int,
        unique: int,
        nodeid: int,
        body: Any = None,
        names: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        uid: int = 0,
        gid: int = 0,
        pid: int = 0,
    ) -> bytes:
        """A whole request, as a kernel sends it."""
        tail = (b"" if body is None else self.pack(body)) + b"".join(name + b"\0" for name in names) + data
        header = InHeader(self._in_header.size + len(tail), opcode, unique, nodeid, uid, gid, pid)
        return self.pack(header) + tail

    def forgotten(self, request: Request) -> Iterator[ForgetOne]:
        """What a FORGET or a BATCH_FORGET gives back. Raises `RemoteError` when fewer items are there than it says."""
        if request.header.opcode == Opcode.FORGET:
            yield ForgetOne(request.header.nodeid, request.body.nlookup)
            return
        size = self._structs[ForgetOne].size
        if len(request.data) < request.body.nodes * size:
            raise RemoteError(f"FUSE BATCH_FORGET of {request.body.nodes} nodes has {len(request.data)} bytes")
        for index in range(request.body.nodes):
            yield ForgetOne._make(self._structs[ForgetOne].unpack_from(request.data, index * size))

    # Replies

    def header(self, unique: int, length: int, error: int = 0) -> bytes:
        """The header of a reply whose body has `length` bytes; `error` is a positive errno: then nothing follows."""
        return self._out_header.pack(16 if error else 16 + length, -error, unique)

    def entry(self, head: EntryHead, attr: Attr) -> bytes:
        """The body of an answer that says what a name is."""
        return self._entry.pack(*head, *attr)

    def attributes(self, head: AttrHead, attr: Attr) -> bytes:
        """The body of an answer to GETATTR and SETATTR."""
        return self.pack(head) + self.pack(attr)

    def dirent(self, ino: int, offset: int, kind: int, name: bytes) -> bytes:
        """One entry of an answer to READDIR."""
        return self._dirent.pack(ino, offset, len(name), kind) + name + bytes(-len(name) & 7)

    def direntplus(self, entry: bytes, ino: int, offset: int, kind: int, name: bytes) -> bytes:
        """One entry of an answer to READDIRPLUS; `entry` is of `entry`, with node 0 if it is not known."""
        return entry + self.dirent(ino, offset, kind, name)

    def dirents(self, data: memoryview, *, plus: bool = False) -> Iterator[tuple[EntryHead | None, Dirent, bytes]]:
        """What is in an answer to READDIR or READDIRPLUS. Raises `RemoteError` when an entry is cut off."""
        at = 0
        head: EntryHead | None = None
        while at < len(data):
            if plus:
                head = self.unpack(EntryHead, data, at)
                at += 128
            entry = self.unpack(Dirent, data, at)
            if entry.namelen > len(data) - at - 24:
                raise RemoteError(f"FUSE directory entry with a name of {entry.namelen} bytes is cut off")
            yield head, entry, bytes(data[at + 24 : at + 24 + entry.namelen])
            at += dirent_size(entry.namelen)

    def decode_reply(self, frame: memoryview) -> tuple[OutHeader, memoryview]:
        """Header and body of a reply. Raises `RemoteError` when its length is wrong."""
        header = self.unpack(OutHeader, frame)
        if header.length != len(frame):
            raise RemoteError(f"FUSE reply of {len(frame)} bytes says that it has {header.length}")
        return header, frame[16:]

    # Notifications, which are replies to nothing

    def invalidate_inode(self, nodeid: int, offset: int = -1, length: int = 0) -> bytes:
        """The whole notification that attributes, and with an offset of 0 or more data, are no longer true."""
        body = self.pack(NotifyInvalInode(nodeid, offset, length))
        return self._out_header.pack(16 + len(body), NOTIFY_INVAL_INODE, 0) + body

    def invalidate_entry(self, parent: int, name: bytes) -> bytes:
        """The whole notification that a name is no longer what it was."""
        body = self.pack(NotifyInvalEntry(parent, len(name), 0)) + name + b"\0"
        return self._out_header.pack(16 + len(body), NOTIFY_INVAL_ENTRY, 0) + body
