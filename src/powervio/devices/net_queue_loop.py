"""One queue of a network device in the hands of a `Forwarder`, as a `QueueLoop`."""

from __future__ import annotations

import threading

from powervio.devices.net_counters import Counters
from powervio.devices.net_forwarded import ForwardedQueue
from powervio.devices.net_loop import Forwarder


class NetLoop:
    """Has a queue served from `run` until `stop`; the work is done in the forwarder's thread."""

    def __init__(self, forwarder: Forwarder, queue: ForwardedQueue) -> None:
        self.queue = queue
        self._forwarder = forwarder
        self._ended = threading.Event()
        queue.on_end = self._ended.set

    def run(self) -> None:
        """See `QueueLoop`."""
        self._forwarder.add(self.queue)
        self._ended.wait()
        self._forwarder.remove(self.queue)
        if self.queue.error is not None:
            raise self.queue.error

    def stop(self) -> None:
        """See `QueueLoop`."""
        self._ended.set()

    def close(self) -> None:
        """See `QueueLoop`."""

    def add_to(self, counters: Counters) -> None:
        """Count what was forwarded in `counters`."""
        counters.frames += self.queue.frames
        counters.bytes += self.queue.bytes
        for reason, count in self.queue.lost.items():
            counters.drop(reason, count)
