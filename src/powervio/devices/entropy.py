"""The virtio entropy device (virtio 1.4, 5.4): random bytes of the host's kernel.

Each buffer gets at least one byte and is completed with the number that it got. A token bucket bounds how much a
client gets: what it asks for beyond that waits in its ring, so a greedy client costs the others nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from powervio.errors import LocalError, RemoteError
from powervio.virtio import entropy
from powervio.virtio.device import Cancellable, Device
from powervio.virtio.queue import ByteOrder, DeviceQueue

MOST_BYTES = 64 * 1024
"""In one buffer; a longer one gets so many (5.4.6.2 lets the device give less)."""
RATE = 4 << 20
"""Bytes a second."""
_TURN = 16
"""Buffers before others of the partition get their turn."""


class EntropyDevice(Device):
    """A source of randomness."""

    device_id = entropy.DEVICE_ID
    queue_size = 64

    def __init__(self, rate: int = RATE, source: Callable[[int], bytes] = os.getrandom) -> None:
        """`rate` is bytes a second; `source` gives up to so many random bytes, at least one."""
        super().__init__()
        if rate <= 0:
            raise LocalError(f"a rate of {rate} bytes a second; expected more than 0")
        self.rate = rate
        self.bytes_given = 0
        self.errors = 0
        """Buffers that could not be filled: no room in them, or memory that cannot be reached."""
        self._source = source
        self._burst = float(min(rate, MOST_BYTES))
        self._tokens = self._burst
        self._since: float | None = None
        self._pause: Cancellable | None = None

    @property
    def features(self) -> int:
        """There are none (5.4.3)."""
        return 0

    def config(self, byteorder: ByteOrder) -> bytes:
        """There is none (5.4.4)."""
        return b""

    def reset(self) -> None:
        """See `Device`. What the client has used of its rate is not given back by a reset."""
        super().reset()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def process(self, queue: DeviceQueue) -> None:
        """Fill buffers as far as the rate allows; the rest stays in the ring until there is more."""
        for _ in range(_TURN):
            if not queue.available:
                return
            allowed = self._allowed()
            if allowed < 1:
                self._wait()
                return
            request = queue.pop()
            if request is None:
                return
            self.requests += 1
            length = min(request.writable.length, MOST_BYTES, allowed)
            if not length:
                self.errors += 1
                request.complete(0)
                continue
            data = self._source(length)
            try:
                request.writable.write(0, data)
            except RemoteError:
                self.errors += 1
                request.complete(0)
                continue
            self._tokens -= len(data)
            self.bytes_given += len(data)
            request.complete(len(data))
        queue.wake()

    def _allowed(self) -> int:
        if self.scheduler is None:
            return MOST_BYTES
        now = self.scheduler.clock()
        if self._since is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._since) * self.rate)
        self._since = now
        return int(self._tokens)

    def _wait(self) -> None:
        if self._pause is not None or self.scheduler is None:
            return

        def go_on() -> None:
            self._pause = None
            if self.session is not None and 0 in self.session.queues:  # not the queue of before: it may be another now
                self.session.queues[0].wake()

        # Until a quarter of the burst is there: many small turns would cost more than they give.
        self._pause = self.scheduler.call_later(max(0.001, self._burst / 4 / self.rate), go_on)
