"""A bounded run of bytes between a device or driver and whoever is on its other side.

The two sides may be in different threads. Nothing here waits: a writer learns how much was taken and is told when
there is room again, a reader is told when there is something. So back-pressure goes through, and memory is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class ByteQueue:
    """First in, first out; at most `limit` bytes, but for `put_all`. The callbacks come in the other side's thread."""

    def __init__(self, limit: int = 64 * 1024) -> None:
        self.limit = limit
        self.on_data: Callable[[], None] | None = None
        """Called after bytes were put."""
        self.on_room: Callable[[], None] | None = None
        """Called after bytes were taken from a queue that was full."""
        self.on_consumed: Callable[[], None] | None = None
        """Called after any bytes were taken."""
        self._data = bytearray()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._data)

    @property
    def room(self) -> int:
        """How many bytes `put` takes now."""
        return max(0, self.limit - len(self._data))

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Append what there is room for; returns how many bytes that was."""
        with self._lock:
            taken = min(len(data), self.limit - len(self._data))
            if taken <= 0:
                return 0
            self._data += data[:taken]
        self._tell(self.on_data)
        return taken

    def put_all(self, data: bytes) -> None:
        """Append all of it, above the limit too: for one who looked at `room` before and cannot cut."""
        with self._lock:
            self._data += data
        self._tell(self.on_data)

    def put_back(self, data: bytes) -> None:
        """Put bytes that were taken, but did not arrive, in front again."""
        with self._lock:
            self._data[:0] = data
        self._tell(self.on_data)

    def peek(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; they stay."""
        with self._lock:
            return bytes(self._data[offset : offset + length])

    def consume(self, length: int) -> None:
        """Forget the first `length` bytes."""
        with self._lock:
            was_full = len(self._data) >= self.limit
            del self._data[:length]
        self._taken(length, was_full)

    def take(self, length: int) -> bytes:
        """Up to `length` bytes from the front."""
        with self._lock:
            was_full = len(self._data) >= self.limit
            data = bytes(self._data[:length])
            del self._data[: len(data)]
        self._taken(len(data), was_full)
        return data

    def trim(self) -> int:
        """Forget the oldest bytes above the limit; returns how many."""
        with self._lock:
            over = len(self._data) - self.limit
            if over > 0:
                del self._data[:over]
        return max(0, over)

    def _taken(self, length: int, was_full: bool) -> None:
        if length:
            self._tell(self.on_consumed)
            if was_full:
                self._tell(self.on_room)

    def _tell(self, call: Callable[[], None] | None) -> None:
        if call is not None:
            call()
