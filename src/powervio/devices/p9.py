"""The virtio 9P transport device: T-messages from the ring to a session of the 9P server, and R-messages back.

docs/virtio-9p.md says what device and driver owe each other. The device knows the first seven bytes of a message and
where the data of a read or a write stand in it, which are moved between file and driver without a stop on the way; what
messages mean is the session's business. A session lives as long as one of the device: from DRIVER_OK to reset.

Each access to a payload may cost the transport a hypervisor call. A small message is read by one, a small answer is
written by one; where the transport has a `Batch`, those of many requests share them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing, Payload
from powervio.virtio import p9
from powervio.virtio.batch import Batch
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request

_HEADER = Struct("<IBH")
_ERROR = Struct("<IBHI")
_RLERROR = 7
_TREAD = 116
_TWRITE = 118
WRITE_DATA = 23
"""Where the data of a Twrite begin."""
READ_DATA = 11
"""Where the data of an Rread and an Rreaddir begin."""
ERROR_ROOM = _ERROR.size
"""Bytes of an Rlerror, and what any answer may need."""
_TWALK = 110
_WALK_ROOM = 9
_QID = 13
_ROOM = {8: 67, 12: 24, 14: 24, 16: 20, 18: 20, 24: 160, 30: 15, 54: 30, 72: 20, 100: 13, 102: 20, 104: 20}
"""By the type of a T-message whose R-message is longer than `ERROR_ROOM`: bytes of it, but for strings (F3.3)."""
SMALL = 16 * 1024
"""Bytes of an answer up to which a read is gathered with its header before it goes to the driver, where a transport
charges for each step."""
SMALL_MESSAGE = 4096
"""Bytes of a message up to which all of it is read at once; of a longer one, which is a Twrite nearly always, what
stands before its data."""
LONGEST = 128 * 1024
"""Bytes of a message without data: far more than sixteen names and a link's target have."""
_GROUP = 64
"""Requests that share what they can."""


class P9Session(Protocol):
    """One conversation with the 9P server: its fids, its msize. It raises nothing but `RemoteError`, from payloads."""

    def handle(self, message: bytes, source: Payload, target: Payload) -> bytes:
        """Carry out a T-message and give the R-message, without the data of an Rread.

        `message` is the whole of it, but for the data of a Twrite, which stand in `source` from `WRITE_DATA` on. The
        data of an Rread are put into `target` from `READ_DATA` on; `target.length` is the room for the R-message.
        """

    def close(self) -> None:
        """It is over: all fids are clunked."""


@dataclass(slots=True)
class P9Counters:
    """What a device has done since it was made."""

    messages: int = 0
    bytes_read: int = 0
    """By the driver, from files."""
    bytes_written: int = 0
    errors: int = 0
    """Rlerror that was answered."""
    refused: int = 0
    """Buffers that held no message, or no room for an answer."""


class P9Device(Device):
    """A share, as a driver finds it by its mount tag. Messages are carried out one after the other."""

    device_id = p9.DEVICE_ID
    queue_size = p9.QUEUE_SIZE

    def __init__(self, tag: str, session: Callable[[], P9Session], *, close: Callable[[], None] | None = None) -> None:
        """`session` makes one; `close` gives back what all of them stood on. Raises `LocalError` for a bad tag."""
        super().__init__()
        self.tag = tag
        self.counters = P9Counters()
        self._tag = p9.check_tag(tag)
        self._make = session
        self._close = close
        self._session: P9Session | None = None

    @property
    def features(self) -> int:
        """MOUNT_TAG is always offered (F2.1)."""
        return p9.F_MOUNT_TAG

    def config(self, byteorder: ByteOrder) -> bytes:
        """See `p9.pack_config`."""
        return p9.pack_config(self._tag, byteorder)

    def start(self, session: DeviceSession) -> None:
        """A session of the device is one of 9P (F4.1)."""
        super().start(session)
        self._end()
        self._session = self._make()

    def reset(self) -> None:
        """All fids are gone (F4.1)."""
        super().reset()
        self._end()

    def close(self) -> None:
        """The server was terminated."""
        self._end()
        if self._close is not None:
            self._close()
            self._close = None

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- requests

    def process(self, queue: DeviceQueue) -> None:
        """Serve what is available, in its order."""
        if queue.batch is None:
            super().process(queue)
            return
        more = True
        while more:
            group: list[Request] = []
            try:
                while len(group) < _GROUP and (request := queue.pop()) is not None:
                    group.append(request)
            finally:  # also those before the place where the ring broke
                more = len(group) == _GROUP
                if group:
                    self._serve_together(group, queue.batch)

    def handle(self, request: Request) -> None:
        """Serve one request where memory is mapped."""
        readable, writable = request.readable, request.writable
        written = 0
        try:
            head = readable.read(0, readable.length if readable.length <= SMALL_MESSAGE else WRITE_DATA)
            answer, data = self._answer(head, readable, writable, None)
            if answer:
                writable.write(0, answer)
                written = len(answer) + data
        except RemoteError:
            self.counters.refused += 1
        request.complete(written)

    def _serve_together(self, group: list[Request], batch: Batch) -> None:
        small = [request for request in group if request.readable.length <= SMALL_MESSAGE]
        heads: dict[int, bytes | None] = {
            id(request): head
            for request, head in zip(small, batch.read([request.readable for request in small]), strict=True)
        }
        answers: list[tuple[Request, bytes, int]] = []
        for request in group:
            readable, writable = request.readable, request.writable
            answer, data = b"", 0
            try:
                head = heads[id(request)] if id(request) in heads else readable.read(0, WRITE_DATA)
                if head is None:
                    self.counters.refused += 1
                else:
                    local = _Gathered(min(writable.length, SMALL))
                    answer, data = self._answer(head, readable, writable, local)
                    if data and local.used:
                        answer += local.data[READ_DATA : READ_DATA + data]
                        data = 0
            except RemoteError:
                self.counters.refused += 1
                answer = b""
            answers.append((request, answer, data))
        # what was put behind an answer's header may not be touched by the others' copy
        apart = [row for row in answers if row[2]]
        together = [row for row in answers if row[1] and not row[2]]
        told = batch.write([(request.writable, 0, answer) for request, answer, _ in together]) if together else []
        good = {id(request): len(answer) for (request, answer, _), done in zip(together, told, strict=True) if done}
        for request, answer, data in apart:
            try:
                request.writable.write(0, answer)
                good[id(request)] = len(answer) + data
            except RemoteError:
                self.counters.refused += 1
        for request in group:
            request.complete(good.get(id(request), 0))

    def _answer(self, head: bytes, readable: Payload, writable: Payload, local: _Gathered | None) -> tuple[bytes, int]:
        """The answer to a message that begins with `head`, and how many bytes of data are behind it at the driver, or
        in `local`. No answer: there was no message, or no room (F3.2, F3.3)."""
        self.requests += 1
        counters = self.counters
        counters.messages += 1
        session = self._session
        if len(head) < p9.HEADER_BYTES or writable.length < ERROR_ROOM or session is None:
            counters.refused += 1
            return b"", 0
        size, kind, tag = _HEADER.unpack_from(head)
        if size < p9.HEADER_BYTES or size > readable.length:
            return self._error(tag, errno.EPROTO)
        wanted = min(size, WRITE_DATA) if kind == _TWRITE else size
        if wanted > LONGEST:
            return self._error(tag, errno.EMSGSIZE)
        message = head[:wanted] if wanted <= len(head) else head + readable.read(len(head), wanted - len(head))
        if writable.length < _room_of(kind, message):
            return self._error(tag, errno.EMSGSIZE)
        target: Payload = writable
        if local is not None and kind == _TREAD and READ_DATA + _count_of(message) <= local.length:
            target = local
            local.use()
        answer = session.handle(message, readable, target)
        if len(answer) < p9.HEADER_BYTES:  # nothing more is said to this driver
            counters.refused += 1
            return b"", 0
        size, kind, _ = _HEADER.unpack_from(answer)
        if kind == _RLERROR:
            counters.errors += 1
        if len(answer) > writable.length:
            return self._error(tag, errno.EMSGSIZE)
        if kind == _TREAD + 1:
            counters.bytes_read += size - READ_DATA
            return answer, size - len(answer)
        if kind == _TWRITE + 1:
            counters.bytes_written += int.from_bytes(answer[7:11], "little")
        return answer, 0

    def _error(self, tag: int, number: int) -> tuple[bytes, int]:
        self.counters.errors += 1
        return _ERROR.pack(ERROR_ROOM, _RLERROR, tag, number), 0


def _room_of(kind: int, message: bytes) -> int:
    """Bytes that the answer to a message may have, without strings and data."""
    if kind == _TWALK:
        return _WALK_ROOM + _QID * min(int.from_bytes(message[15:17], "little"), 16)
    return _ROOM.get(kind, ERROR_ROOM)


def _count_of(message: bytes) -> int:
    """Bytes that a Tread asks for; more than there can be room for when the message is too short to say."""
    return int.from_bytes(message[19:23], "little") if len(message) >= 23 else 1 << 32


class _Gathered(Payload):
    """Room in the server's own memory for a small answer."""

    __slots__ = ("data", "length", "used")

    def __init__(self, length: int) -> None:
        self.length = length
        self.data = bytearray()
        self.used = False

    def use(self) -> None:
        """It is needed."""
        self.used = True
        self.data = bytearray(self.length)

    def _part(self, offset: int, length: int) -> memoryview:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} of a payload of {self.length}")
        return memoryview(self.data)[offset : offset + length]

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload`."""
        return bytes(self._part(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """See `Payload`."""
        self._part(offset, len(data))[:] = data

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`."""
        backing.read_into(position, self._part(offset, length))

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`."""
        backing.write_from(position, self._part(offset, length))
