"""The virtio 9P transport driver: carries the messages of a 9P client (docs/virtio-9p.md), whatever they say.

The client hands over whole T-messages and is handed whole R-messages; sessions of the device are its connections. Each
message has a slot, 4 KiB for itself and 8 KiB for its answer, and a large buffer where data are longer than these. All
of this memory stays mapped: nothing is in it but what this device is told or says. What finds no slot waits.

What the device says is checked as far as it is this layer's (F5.3): the length, against `size` and the room. An
offence raises `RemoteError`, and the transport ends the session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from powervio.drivers.p9_core import P9Channel
from powervio.errors import LocalError, RemoteError
from powervio.virtio import p9
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, DriverQueue, DriverTransport

SLOTS = 64
"""Messages that are at the device at a time."""
MESSAGE_BYTES = 4096
"""Of a slot, for the message."""
ANSWER_BYTES = 8192
"""Of a slot, for the answer; it is the room of all that ask for no data."""
LARGE = 512 * 1024
"""Bytes of a large buffer, and so of the longest message."""
LARGE_BUFFERS = 8
_TREADDIR = 40
_TREAD = 116
_HEAD_OF_DATA = 11
"""Bytes before the data in the answer to a Tread or Treaddir."""


class P9Connection(Protocol):
    """What a client is to its channel."""

    def received(self, message: memoryview) -> None:
        """One whole R-message; it may be overwritten after this. Raises `RemoteError`."""

    def lost(self) -> None:
        """The channel is gone, and what was sent by it has no answer any more."""

    def ended(self) -> None:
        """No channel comes any more."""


class _Slot:
    """One message on its way."""

    __slots__ = ("answer", "buffer", "large", "offset", "room")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.large: Buffer | None = None
        self.answer = buffer
        self.offset = MESSAGE_BYTES
        self.room = ANSWER_BYTES


class P9Driver(Driver, P9Channel):
    """The channel of one client, through as many sessions as there are."""

    device_id = p9.DEVICE_ID
    most_bytes = LARGE
    """The longest message that it can carry."""

    def __init__(
        self,
        client: P9Connection,
        connected: Callable[[], None],
        *,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`connected` is called when a session begins, in which the client may send at once.

        `soon` calls later in this turn (an event loop's `call_soon`): then one kick is for all that is sent in it.
        """
        self.client = client
        self.requests = 0
        """Messages that were answered."""
        self.tag = ""
        """The device's mount tag, once a session has begun."""
        self._connected = connected
        self._soon = soon
        self._kick_is_due = False
        self._transport: DriverTransport | None = None
        self._waiting: deque[tuple[bytes, memoryview | bytes | None]] = deque()
        self._slots: list[_Slot] = []
        self._slot_count = 0
        self._large: list[Buffer] = []
        self._large_count = 0
        self._large_limit = LARGE_BUFFERS
        self._in_flight: set[_Slot] = set()

    # -- sessions

    def select_features(self, offered: int) -> int:
        """MOUNT_TAG, the only one."""
        return offered & p9.F_MOUNT_TAG

    def start(self, transport: DriverTransport) -> None:
        """See `Driver`: a connection begins. Raises `RemoteError` for a config space without a tag."""
        self.tag = p9.unpack_config(transport.config(), transport.byteorder)
        self._transport = transport
        self._large_limit = LARGE_BUFFERS
        self._connected()

    def stop(self) -> None:
        """See `Driver`: the connection is lost, with all that is not answered."""
        if self._transport is None:
            return
        self._transport = None
        self._kick_is_due = False
        self._waiting.clear()
        for slot in self._in_flight:
            self._free(slot)
        self._in_flight.clear()
        self.client.lost()

    def removed(self, reason: str) -> None:
        """See `Driver`."""
        self.client.ended()

    def close(self) -> None:
        """The client partition ends."""
        self.client.ended()

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """See `Driver`."""
        for slot in self._slots:
            give_back(slot.buffer)
        for buffer in self._large:
            give_back(buffer)
        self._slots.clear()
        self._large.clear()

    # -- messages

    def send(self, message: bytes, payload: memoryview | bytes | None) -> None:
        """Send a T-message; `payload`, if there is one, follows it and stays as it is until the answer.

        Without a session nothing happens: the client was told that the connection is lost, or is about to be.
        """
        if self._transport is None:
            return
        if self._waiting or not self._put(message, payload):
            self._waiting.append((message, payload))
        else:
            self._kick()

    def _kick(self) -> None:
        if self._soon is None:
            self._kick_now()
        elif not self._kick_is_due:
            self._kick_is_due = True
            self._soon(self._kick_now)

    def _kick_now(self) -> None:
        self._kick_is_due = False
        if self._transport is not None:
            self._transport.queues[0].kick()

    def _put(self, message: bytes, payload: memoryview | bytes | None) -> bool:
        """Make a message available; False when there is no room for it now."""
        transport = self._transport
        assert transport is not None
        length = len(message) + (0 if payload is None else len(payload))
        room = ANSWER_BYTES
        if message[4] in (_TREAD, _TREADDIR):
            room = _HEAD_OF_DATA + int.from_bytes(message[19:23], "little")
        if length > LARGE or room > LARGE or (length > MESSAGE_BYTES and room > ANSWER_BYTES):
            raise LocalError(f"a message of {length} bytes with an answer of {room}; expected at most {LARGE}")
        slot = self._take(large=length > MESSAGE_BYTES or room > ANSWER_BYTES)
        if slot is None:
            return False
        place = slot.buffer
        slot.answer, slot.offset, slot.room = slot.buffer, MESSAGE_BYTES, room
        if slot.large is not None:
            if length > MESSAGE_BYTES:
                place = slot.large
            else:
                slot.answer, slot.offset = slot.large, 0
        place.view[: len(message)] = message
        if payload is not None:
            place.view[len(message) : length] = payload
        try:
            added = transport.queues[0].add(((place, 0, length),), ((slot.answer, slot.offset, slot.room),), slot)
        except RemoteError:  # the session is about to end, and `stop` tells the client
            self._free(slot)
            return True
        if added:
            self._in_flight.add(slot)
        else:
            self._free(slot)
        return added

    def _take(self, *, large: bool) -> _Slot | None:
        transport = self._transport
        assert transport is not None
        if large and not self._large:
            if self._large_count >= self._large_limit:
                return None
            try:
                self._large.append(transport.allocate(LARGE, mapped=True))
                self._large_count += 1
            except LocalError:
                if not self._large_count:
                    raise
                self._large_limit = self._large_count
                return None
        if not self._slots:
            if self._slot_count >= SLOTS:
                return None
            try:
                self._slots.append(_Slot(transport.allocate(MESSAGE_BYTES + ANSWER_BYTES, mapped=True)))
                self._slot_count += 1
            except LocalError:
                if not self._slot_count:
                    raise
                return None
        slot = self._slots.pop()
        if large:
            slot.large = self._large.pop()
        return slot

    def _free(self, slot: _Slot) -> None:
        if slot.large is not None:
            self._large.append(slot.large)
            slot.large = None
        self._slots.append(slot)

    def completed(self, queue: DriverQueue) -> None:
        """See `Driver`. Raises `RemoteError` for an answer that cannot be one (F3.5, F5.3)."""
        while (used := queue.reap()) is not None:
            slot, written = used
            assert isinstance(slot, _Slot)
            self._in_flight.discard(slot)
            try:
                self._received(slot, written)
            finally:
                self._free(slot)
        self._go_on()

    def _received(self, slot: _Slot, written: int) -> None:
        self.requests += 1
        view = slot.answer.view[slot.offset : slot.offset + slot.room]
        if not p9.HEADER_BYTES <= written <= slot.room:
            raise RemoteError(f"an answer of {written} bytes; expected {p9.HEADER_BYTES} to {slot.room} (F3.5)")
        size = int.from_bytes(view[:4], "little")
        if size != written:
            raise RemoteError(f"an answer of {written} bytes says that it has {size} (F3.5)")
        # the device can still write there: what is looked into is a copy
        self.client.received(view[:written] if slot.large is not None else memoryview(bytes(view[:written])))

    def _go_on(self) -> None:
        sent = False
        while self._waiting and self._transport is not None and self._put(*self._waiting[0]):
            self._waiting.popleft()
            sent = True
        if sent:
            self._kick()
