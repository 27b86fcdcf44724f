"""A disk on an NBD server as a `Backing`: blocking, over a Unix socket or TCP, and surviving the server's death.

Theory of operation. Each call becomes a few requests on one connection and waits for their replies. When the connection
is lost the server is looked for again, up to `reconnect_limit` seconds; then what it may have forgotten is written
again, and the requests that were in flight are sent again.

**Nothing acknowledged as flushed is lost.** A server that dies may take with it every write that was completed and not
flushed: NBD promises no more, and QEMU keeps tables of a qcow2 image in its process. A driver that was told "done"
expects that the *next flush* covers that write, so a copy of each change since the last successful flush is kept in a
journal, in its order, and is replayed to the server's successor before anything else is sent. The journal is bounded
(`JOURNAL_BYTES`, `JOURNAL_ENTRIES`): a change that would not fit any more is preceded by a flush, which empties it. A
flush that fails makes the next one replay the journal first, for a server may have dropped what it could not write. A
server without FLUSH has no volatile cache by its own word, and no journal.

While a server is away calls wait, in the thread of whoever makes them. Once it stayed away for `reconnect_limit`
seconds calls fail with EIO at once, after one attempt to connect each, until it is back; the journal waits for it.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Backing
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.client import ClientConnection, Ready, RemoteExport, Replied, Send
from powervio.storage.nbd.protocol import Command

_log = logging.getLogger(__name__)

Address: TypeAlias = str | tuple[str, int]
"""The path of a Unix socket, or host and port."""

SECTOR = 512
RECONNECT_LIMIT = 10.0
"""Seconds for which a server that went away is waited for."""
REQUEST_LIMIT = 60.0
"""Seconds without a byte of an answer after which a connection counts as lost."""
CONNECT_LIMIT = 5.0
"""Seconds for one attempt to connect and to settle the export."""
JOURNAL_BYTES = 32 << 20
"""Bytes of writes kept between flushes."""
JOURNAL_ENTRIES = 16384
"""Changes kept between flushes, data or not."""
_DEPTH = 16
"""Requests sent before the first is answered; what QEMU's server takes at once."""
_ATTEMPTS = 5
"""How often a call is made anew on a further connection before it fails."""
_PAUSE = 0.02
"""Seconds between two attempts to connect."""
_CHANGE_BYTES = 1 << 30
"""Largest TRIM or WRITE_ZEROES; the length on the wire has 32 bits."""
_STATUS_BYTES = 1 << 30


class _Lost(Exception):
    """The connection is gone; the call can be made again on another."""


class _Operation:
    """One request, through as many connections as it takes."""

    __slots__ = ("command", "data", "done", "error", "extents", "flags", "length", "memory", "message", "offset")

    def __init__(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: bytes | memoryview = b"",
        memory: memoryview | None = None,
    ) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.flags = flags
        self.data = data
        self.memory = memory
        self.done = False
        self.error = 0
        self.message = ""
        self.extents: tuple[tuple[int, int], ...] = ()

    def again(self) -> _Operation:
        """The same change for the journal, with data of its own."""
        return _Operation(self.command, self.offset, self.length, flags=self.flags, data=bytes(self.data))


class NbdBacking(Backing):
    """An NBD export that is open. Positions and lengths are bytes and may be any; `block_size` is the fast unit.

    `OSError`s carry what the server said; EIO when it cannot be reached. Calls may come from any thread, one at a time
    is carried out.
    """

    def __init__(
        self,
        address: Address,
        export: str = "",
        *,
        read_only: bool = False,
        name: str | None = None,
        reconnect_limit: float = RECONNECT_LIMIT,
        request_limit: float = REQUEST_LIMIT,
        connect_limit: float = CONNECT_LIMIT,
        journal_bytes: int = JOURNAL_BYTES,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Connect. `name` is what messages call it; `on_close` is called at the end of `close`.

        Raises `LocalError` when the server cannot be reached in `connect_limit` seconds or refuses the export.
        """
        self.address = address
        self.export_name = export
        self.name = name or _show(address, export)
        self.reconnections = 0
        """How often the server was found again."""
        self.replayed = 0
        """Changes that were written again after a reconnection or a failed flush."""
        self._reconnect_limit = reconnect_limit
        self._request_limit = request_limit
        self._connect_limit = connect_limit
        self._journal_limit = journal_bytes
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._socket: socket.socket | None = None
        self._connection = ClientConnection()
        self._cookie = 0
        self._journal: list[_Operation] = []
        self._journal_size = 0
        self._owed = False
        """Whether the server may lack what is in the journal."""
        self._away = False
        """Whether the server stayed away for longer than it is waited for."""
        self._export = RemoteExport(0, 0)
        try:
            self._export = export_told = self._connect(time.monotonic() + connect_limit)
        except _Lost as error:
            raise LocalError(f"{self.name}: {error}") from None
        self.size = export_told.size // SECTOR * SECTOR
        """What is behind the last whole sector of an odd export is not used."""
        if not self.size:
            self._drop()
            raise LocalError(f"{self.name} has {export_told.size} bytes; expected one sector of {SECTOR} at least")
        self.read_only = read_only or bool(export_told.flags & nbd.READ_ONLY)
        self.block_size = max(SECTOR, export_told.minimum_block)
        self._unit = export_told.minimum_block
        self.can_discard = not self.read_only and bool(export_told.flags & nbd.SEND_TRIM)
        self._can_flush = bool(export_told.flags & nbd.SEND_FLUSH)

    # -- what a backing does

    def _check(self, position: int, length: int) -> None:
        if position < 0 or position + length > self.size:
            raise OSError(errno.EINVAL, f"{length} bytes at {position} are outside the disk's {self.size}", self.name)

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `Backing`."""
        self._check(position, len(buffer))
        if (position | len(buffer)) % self._unit:
            start, end = self._whole_units(position, len(buffer))
            whole = memoryview(bytearray(end - start))
            with self._lock:
                self._do(self._reads(start, whole))
            buffer[:] = whole[position - start : position - start + len(buffer)]
            return
        with self._lock:
            self._do(self._reads(position, buffer))

    def write_from(self, position: int, buffer: memoryview) -> None:
        """See `Backing`. A part of a server's block is read, changed and written."""
        self._check_change(position, len(buffer))
        with self._lock:
            if (position | len(buffer)) % self._unit:
                start, end = self._whole_units(position, len(buffer))
                whole = memoryview(bytearray(end - start))
                self._do(self._reads(start, whole))
                whole[position - start : position - start + len(buffer)] = buffer
                position, buffer = start, whole
            step = self._export.maximum_payload
            self._change(
                [
                    _Operation(Command.WRITE, position + at, len(part), data=part)
                    for at in range(0, len(buffer), step)
                    for part in (buffer[at : at + step],)
                ]
            )

    def flush(self) -> None:
        """See `Backing`."""
        with self._lock:
            self._flush()

    def discard(self, position: int, length: int) -> None:
        """See `Backing`: a hint, for whole blocks of the server."""
        self._check_change(position, length)
        start = position + -position % self._unit
        end = (position + length) // self._unit * self._unit
        if self.can_discard and end > start:
            with self._lock:
                self._change(self._ranges(Command.TRIM, start, end - start))

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        """See `Backing`: by the server where it can, else zeroes are sent."""
        self._check_change(position, length)
        start = position + -position % self._unit
        end = (position + length) // self._unit * self._unit
        if end <= start or not self._export.flags & nbd.SEND_WRITE_ZEROES:
            start = end = position + length
        self._write_zero_bytes(position, start - position)
        if end > start:
            with self._lock:
                flags = 0 if unmap else nbd.CMD_NO_HOLE
                self._change(self._ranges(Command.WRITE_ZEROES, start, end - start, flags))
        self._write_zero_bytes(end, position + length - end)

    def _write_zero_bytes(self, position: int, length: int) -> None:
        for at in range(0, length, 1 << 20):
            self.write_from(position + at, memoryview(bytes(min(1 << 20, length - at))))

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        """See `Backing`: by block status; all data where the server has none."""
        self._check(position, length)
        if not length:
            return []
        if not self._export.has_extents:
            return [(length, True)]
        runs: list[tuple[int, bool]] = []
        at, end = self._whole_units(position, length)
        skip = position - at
        while at < end:
            status = _Operation(Command.BLOCK_STATUS, at, min(end - at, _STATUS_BYTES))
            with self._lock:
                self._do([status])
            for count, flags in status.extents:
                count = min(count, end - at)
                at += count
                count, skip = max(0, count - skip), max(0, skip - count)
                data = not flags & nbd.STATE_ZERO
                if count and runs and runs[-1][1] == data:
                    runs[-1] = (runs[-1][0] + count, data)
                elif count:
                    runs.append((count, data))
        over = sum(count for count, _ in runs) - length
        if over > 0:  # the rest of the last unit
            runs[-1] = (runs[-1][0] - over, runs[-1][1])
        return runs

    def close(self) -> None:
        """See `Backing`. What was not flushed is the server's to keep, as with a file; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()  # ends a wait for the server in another thread
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.sendall(self._connection.goodbye())
                    self._socket.shutdown(socket.SHUT_WR)
                    self._socket.settimeout(2.0)
                    while self._socket.recv(65536):
                        pass  # until the server has ended what it does
            self._drop()
        if self._on_close is not None:
            self._on_close()

    # -- changes and the journal

    def _check_change(self, position: int, length: int) -> None:
        self._check(position, length)
        if self.read_only:
            raise OSError(errno.EROFS, "the disk is read-only", self.name)

    def _whole_units(self, position: int, length: int) -> tuple[int, int]:
        end = position + length
        return position // self._unit * self._unit, end + -end % self._unit

    def _reads(self, position: int, buffer: memoryview) -> list[_Operation]:
        step = self._export.maximum_payload
        return [
            _Operation(Command.READ, position + at, len(part), memory=part)
            for at in range(0, len(buffer), step)
            for part in (buffer[at : at + step],)
        ]

    def _ranges(self, command: Command, position: int, length: int, flags: int = 0) -> list[_Operation]:
        return [
            _Operation(command, position + at, min(_CHANGE_BYTES, length - at), flags=flags)
            for at in range(0, length, _CHANGE_BYTES)
        ]

    def _change(self, operations: list[_Operation]) -> None:
        """Carry out changes, and remember them until they are flushed."""
        if not self._can_flush:
            self._do(operations)
            return
        size = sum(len(operation.data) for operation in operations)
        full = self._journal_size + size > self._journal_limit or len(self._journal) >= JOURNAL_ENTRIES
        if self._journal and full:
            self._flush()
        self._do(operations)
        self._journal += [operation.again() for operation in operations]
        self._journal_size += size

    def _flush(self) -> None:
        if self.read_only or not self._can_flush:
            return
        try:
            self._do([_Operation(Command.FLUSH)])
        except OSError:
            self._owed = True
            raise
        self._journal.clear()
        self._journal_size = 0

    # -- carrying out

    def _do(self, operations: Sequence[_Operation]) -> None:
        """Carry out operations, on several connections if need be. Raises the first `OSError`."""
        attempts = 0
        while True:
            try:
                self._ensure_connected()
                self._exchange(operations)
                break
            except _Lost as error:
                self._drop()
                for operation in operations:
                    operation.done = False  # also those that were answered: they are not in the journal yet
                attempts += 1
                if self._closing.is_set() or self._away or attempts > _ATTEMPTS:
                    raise OSError(errno.EIO, str(error), self.name) from None
                _log.warning("%s: %s; connecting again", self.name, error)
        for operation in operations:
            if operation.error:
                code = nbd.errno_of_error(operation.error)
                raise OSError(code, operation.message or f"the server reports error {operation.error}", self.name)

    def _ensure_connected(self) -> None:
        """Have a server that lacks nothing. Raises `_Lost` when there is none."""
        if self._socket is None:
            deadline = time.monotonic() + (0.0 if self._away else self._reconnect_limit)
            export = self._find_again(deadline)
            was = self._export
            if export.size < was.size or export.minimum_block != was.minimum_block or was.flags & ~export.flags:
                self._away = True
                raise _Lost(f"the server came back with another export ({export}; it was {was})")
            self._export = export
            self._away = False
            self.reconnections += 1
            self._owed = bool(self._journal)
        if self._owed:
            self._replay()
            self._owed = False

    def _find_again(self, deadline: float) -> RemoteExport:
        while True:
            if self._closing.is_set():
                raise _Lost("it is being closed")
            try:
                return self._connect(max(deadline, time.monotonic() + 1.0))
            except (_Lost, LocalError) as error:
                if time.monotonic() >= deadline:
                    if not self._away:
                        _log.error("%s: not reachable for %g s: %s", self.name, self._reconnect_limit, error)
                    self._away = True
                    raise _Lost(str(error)) from None
            self._closing.wait(_PAUSE)

    def _replay(self) -> None:
        """Write everything that was not flushed again, in its order where ranges overlap."""
        batch: list[_Operation] = []
        for operation in self._journal:
            operation.done, operation.error = False, 0
            end = operation.offset + operation.length
            if len(batch) >= _DEPTH or any(
                one.offset < end and operation.offset < one.offset + one.length for one in batch
            ):
                self._replay_batch(batch)
                batch = []
            batch.append(operation)
        self._replay_batch(batch)
        if self._journal:
            _log.warning("%s: %d changes that were not flushed were written again", self.name, len(self._journal))

    def _replay_batch(self, batch: list[_Operation]) -> None:
        self._exchange(batch)
        for operation in batch:
            # A discard is a hint; any other that worked before and does not now must not be forgotten.
            if operation.error and operation.command != Command.TRIM:
                raise OSError(
                    nbd.errno_of_error(operation.error),
                    f"a change that was not flushed could not be written again: {operation.message}",
                    self.name,
                )
            self.replayed += 1

    def _exchange(self, operations: Sequence[_Operation]) -> None:
        """Send what is not done yet and wait for the replies. Raises `_Lost`."""
        waiting: dict[int, _Operation] = {}
        connection, link = self._connection, self._socket
        assert link is not None
        link.settimeout(self._request_limit)
        try:
            for operation in operations:
                if operation.done:
                    continue
                while len(waiting) >= _DEPTH:
                    self._take_reply(link, connection, waiting)
                self._cookie += 1
                header = connection.request(
                    operation.command,
                    self._cookie,
                    operation.offset,
                    operation.length,
                    flags=operation.flags,
                    memory=operation.memory,
                )
                waiting[self._cookie] = operation
                _send(link, header, operation.data)
            while waiting:
                self._take_reply(link, connection, waiting)
        except TimeoutError:
            raise _Lost(f"no answer for {self._request_limit:g} s") from None
        except OSError as error:
            raise _Lost(f"connection lost ({error.strerror or error})") from None
        except RemoteError as error:
            raise _Lost(str(error)) from None

    def _take_reply(self, link: socket.socket, connection: ClientConnection, waiting: dict[int, _Operation]) -> None:
        while (event := connection.next_event()) is None:
            _receive(link, connection)
        assert isinstance(event, Replied)
        operation = waiting.pop(event.cookie)
        if event.error == nbd.Error.ESHUTDOWN:
            raise _Lost("the server is shutting down")
        operation.error, operation.message, operation.extents = event.error, event.message, event.extents
        operation.done = True

    # -- the connection

    def _connect(self, deadline: float) -> RemoteExport:
        """Connect and settle the export. Raises `_Lost` when nobody is there, `LocalError` when somebody refuses."""
        connection = ClientConnection(self.export_name)
        link: socket.socket | None = None
        try:
            link = _open(self.address, min(self._connect_limit, max(0.05, deadline - time.monotonic())))
            while True:
                event = connection.next_event()
                if event is None:
                    _receive(link, connection)
                elif isinstance(event, Send):
                    link.sendall(event.data)
                elif isinstance(event, Ready):
                    break
            self._socket, self._connection, link = link, connection, None
            return event.export
        except TimeoutError:
            raise _Lost("no answer in time") from None
        except OSError as error:
            raise _Lost(f"cannot connect ({error.strerror or error})") from None
        except RemoteError as error:
            raise LocalError(f"{self.name}: {error}") from None
        finally:
            if link is not None:
                link.close()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _open(address: Address, timeout: float) -> socket.socket:
    if isinstance(address, tuple):
        link = socket.create_connection(address, timeout=timeout)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return link
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout)
        link.connect(address)
    except BaseException:
        link.close()
        raise
    return link


def _receive(link: socket.socket, connection: ClientConnection) -> None:
    count = link.recv_into(connection.buffer())
    if not count:
        raise ConnectionResetError(errno.ECONNRESET, "the server closed it")
    connection.received(count)


def _send(link: socket.socket, header: bytes, data: bytes | memoryview) -> None:
    if not len(data):
        link.sendall(header)
        return
    sent = link.sendmsg((header, data))
    if sent < len(header):
        link.sendall(header[sent:])
        sent = len(header)
    if sent < len(header) + len(data):
        link.sendall(memoryview(data)[sent - len(header) :])


def _show(address: Address, export: str) -> str:
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"nbd://{host}:{address[1]}/{export}"
    return f"nbd+unix:///{export}?socket={address}"
