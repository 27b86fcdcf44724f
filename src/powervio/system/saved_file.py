"""The file of a saved partition: a manifest, and the partition's memory without what is zero.

    magic (16 bytes), version, length of the manifest, its CRC-32 (4 bytes each, big-endian)
    the manifest, MessagePack
    for each piece of memory: address (8 bytes), length, CRC-32 of address and data (4 bytes each), then the data
    the end: all ones, the number of pieces, 0

It is written beside its place and renamed when it is complete and on disk. Whoever can read it can read the partition's
memory, so it is its owner's alone.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from powervio.errors import LocalError
from powervio.phyp.saved import PartitionState

MAGIC = b"powervio saved\0\n"
VERSION = 1
PIECE = 1 << 20
"""Bytes of memory in one piece, at most."""
MANIFEST_LIMIT = 1 << 30
_HEAD = struct.Struct(">16sIII")
_PIECE = struct.Struct(">QII")
_END = (1 << 64) - 1


class SavedImage(Struct, forbid_unknown_fields=True):
    """How a disk's image was left, to find out whether somebody wrote to it since."""

    name: str
    size: int
    """Bytes."""
    modified: int = 0
    """Nanoseconds since 1970; 0 where the image does not tell."""


class SavedDevice(Struct, forbid_unknown_fields=True):
    """One adapter's device and driver."""

    slot: int
    section: str
    """`[[lpar.SECTION]]`, of which there may be several, in their order."""
    device: dict[str, Any]
    driver: dict[str, Any]
    image: SavedImage | None = None


class Manifest(Struct, forbid_unknown_fields=True):
    """Everything but the memory."""

    powervio: str
    """Version of who wrote it."""
    system: str
    saved_at: str
    """ISO 8601."""
    lpar: dict[str, Any]
    """The partition's section of the system file, paths absolute, each device with its slot."""
    partition: PartitionState
    devices: list[SavedDevice]


def partial_path(path: Path) -> Path:
    """Where the file is while it is being written."""
    return path.with_name(f".{path.name}.partial")


def check_free(path: Path) -> None:
    """Raises `LocalError` when no file can be made there."""
    if not path.parent.is_dir():
        raise LocalError(f"the folder {path.parent} does not exist")
    if os.path.lexists(path):
        raise LocalError(f"{path} exists already")


def write(path: Path, manifest: Manifest, memory_fd: int) -> int:
    """Write the file; `memory_fd` is the partition's memory. Returns the bytes written. Raises `LocalError`."""
    partial = partial_path(path)
    try:
        check_free(path)
        with suppress(FileNotFoundError):
            partial.unlink()  # of an attempt that was killed
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                _write(file, manifest, memory_fd)
                file.flush()
                os.fsync(fd)
                written = file.tell()
            os.link(partial, path)  # fails where `rename` would replace
            try:
                _sync_folder(path.parent)
            except OSError:
                path.unlink()  # the partition goes on here, so it must not be somewhere else too
                raise
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror or error}") from error
    return written


def _write(file: BinaryIO, manifest: Manifest, memory_fd: int) -> None:
    encoded = msgspec.msgpack.encode(manifest)
    file.write(_HEAD.pack(MAGIC, VERSION, len(encoded), zlib.crc32(encoded)))
    file.write(encoded)
    pieces = 0
    for address, length in _used(memory_fd, manifest.partition.memory):
        data = os.pread(memory_fd, length, address)
        if len(data) != length:
            raise LocalError(f"the memory of {manifest.partition.name} ends at {address + len(data):#x}")
        if data.count(0) == length:
            continue
        file.write(_PIECE.pack(address, length, _check(address, data)))
        file.write(data)
        pieces += 1
    file.write(_PIECE.pack(_END, pieces, 0))


def _check(address: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(address.to_bytes(8, "big")))


def _used(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Pieces of a sparse file that are not holes."""
    position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: holes up to the end
            return
        end = min(size, os.lseek(fd, position, os.SEEK_HOLE))
        while position < end:
            length = min(PIECE, end - position)
            yield position, length
            position += length


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SavedFile:
    """A file to restore from; a context manager."""

    def __init__(self, path: Path) -> None:
        """Read the manifest. Raises `LocalError` when there is no file, or it is none of these, or damaged."""
        self.path = path
        try:
            # nobody waits for whoever may be at the other end of a FIFO
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise LocalError(f"{path} is not a saved partition: it is no regular file")
        self._file = open(fd, "rb")  # noqa: SIM115 - closed by `__exit__`
        try:
            self.manifest = self._manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SavedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_memory(self, memory: memoryview) -> int:
        """Fill the memory of a new partition, which is all zeroes; once. Returns the bytes. Raises `LocalError`."""
        pieces = total = 0
        while True:
            address, length, check = _PIECE.unpack(self._read(_PIECE.size))
            if address == _END:
                if length != pieces:
                    raise self._damaged(f"it has {pieces} pieces of memory and says {length}")
                return total
            if not 0 < length <= PIECE or address + length > len(memory):
                raise self._damaged(f"a piece of {length} bytes at {address:#x}, in a memory of {len(memory)}")
            data = self._read(length)
            if _check(address, data) != check:
                raise self._damaged(f"the memory at {address:#x} does not have the checksum that was written")
            memory[address : address + length] = data
            pieces += 1
            total += length

    def _manifest(self) -> Manifest:
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            raise LocalError(f"{self.path} is not a saved partition")
        _, version, length, check = _HEAD.unpack(head)
        if version != VERSION:
            raise LocalError(f"{self.path} is a saved partition of version {version}; expected version {VERSION}")
        if length > MANIFEST_LIMIT:
            raise self._damaged(f"a manifest of {length} bytes")
        data = self._read(length)
        if zlib.crc32(data) != check:
            raise self._damaged("the manifest does not have the checksum that was written")
        try:
            return msgspec.msgpack.decode(data, type=Manifest)
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from None

    def _read(self, length: int) -> bytes:
        try:
            data = self._file.read(length)
        except OSError as error:
            raise LocalError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(data) < length:
            raise self._damaged("it ends in the middle")
        return data

    def _damaged(self, what: str) -> LocalError:
        return LocalError(f"{self.path} is damaged: {what}")
