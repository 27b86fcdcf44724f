"""Rate limits of a device: token buckets, and requests that wait for their turn.

A bucket fills at its rate up to its burst. A request may start when every bucket holds what it costs, or is full if it
costs more than fits; what it costs beyond that is debt, so that in the long run the rate holds for requests of any
size. Requests of one device wait in a line for each queue, and the lines take turns: no queue can keep another waiting
by being full. Flushes have a line of their own and cost no bytes.

Nothing here waits or knows the time: the caller brings `now`, in seconds, and is told when to come again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from powervio.errors import LocalError
from powervio.virtio.queue import DeviceQueue, Request

_BURST_SECONDS = 0.1
"""What a burst is if nobody says: this much of the rate."""
_GRAIN = 1e-6
"""Seconds by which a request may be early: clocks and floating point are not exact."""
_MAX_RATE = 1 << 50


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device may do; None is no limit."""

    bytes_per_second: int | None = None
    """Data of reads and writes."""
    requests_per_second: int | None = None
    """Requests of every kind."""
    burst_bytes: int | None = None
    """Bytes at once after a pause; a tenth of a second's if None."""
    burst_requests: int | None = None
    """Requests at once after a pause; a tenth of a second's, at least one, if None."""

    def __post_init__(self) -> None:
        for rate, burst in (("bytes_per_second", "burst_bytes"), ("requests_per_second", "burst_requests")):
            for name in (rate, burst):
                value = getattr(self, name)
                if value is not None and not 1 <= value <= _MAX_RATE:
                    raise LocalError(f"{name} {value}: expected 1 to {_MAX_RATE}")
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise LocalError(f"{burst} without {rate} limits nothing")


class TokenBucket:
    """`rate` tokens a second, at most `burst` of them."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = max(1.0, rate * _BURST_SECONDS if burst is None else burst)
        self._level = self.burst
        self._then: float | None = None

    def wait(self, cost: float, now: float) -> float:
        """Seconds until `cost` may be taken; 0.0 is now."""
        if self._then is not None:
            self._level = min(self.burst, self._level + max(0.0, now - self._then) * self.rate)
        self._then = now
        missing = min(cost, self.burst) - self._level
        return 0.0 if missing <= self.rate * _GRAIN else missing / self.rate

    def take(self, cost: float) -> None:
        """Take it, whether it is there or not."""
        self._level -= cost


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that was popped and is not served yet."""

    queue: DeviceQueue
    request: Request
    header: bytes | None
    """Its first bytes, which are read once; None when they could not be."""
    size: int
    """Bytes of data."""
    is_flush: bool
    since: float
    """When it came."""
    served: bool = False


class Throttle:
    """The limits of one device, and the requests that wait because of them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = _bucket(limits.bytes_per_second, limits.burst_bytes)
        self._requests = _bucket(limits.requests_per_second, limits.burst_requests)
        self._lines: dict[DeviceQueue, deque[Waiting]] = {}
        self._turns: deque[DeviceQueue] = deque()
        self._flushes: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._flushes) + sum(map(len, self._lines.values()))

    def add(self, waiting: Waiting) -> None:
        """Let a request join its line."""
        if waiting.is_flush:
            self._flushes.append(waiting)
            return
        line = self._lines.get(waiting.queue)
        if line is None:
            line = self._lines[waiting.queue] = deque()
            self._turns.append(waiting.queue)
        line.append(waiting)

    def next(self, now: float, *, unlimited: bool = False) -> Waiting | float | None:
        """The request whose turn it is, paid for; or the seconds until there is one; None when nobody waits.

        `unlimited` lets it go at once and in debt.
        """
        wait = None
        if self._flushes:
            wait = self._wait(0, now)
            if not wait or unlimited:
                return self._pay(self._flushes.popleft(), 0)
        if self._turns:
            queue = self._turns[0]
            line = self._lines[queue]
            first = self._wait(line[0].size, now)
            if not first or unlimited:
                waiting = line.popleft()
                self._turns.rotate(-1)
                if not line:
                    self._turns.remove(queue)
                    del self._lines[queue]
                return self._pay(waiting, waiting.size)
            wait = first if wait is None else min(wait, first)
        return wait

    def forget(self, index: int) -> None:
        """Forget the requests of one queue."""
        for queue in [queue for queue in self._turns if queue.index == index]:
            self._turns.remove(queue)
            del self._lines[queue]
        self._flushes = deque(waiting for waiting in self._flushes if waiting.queue.index != index)

    def clear(self) -> None:
        """Forget the requests; the debts stay."""
        self._lines.clear()
        self._turns.clear()
        self._flushes.clear()

    def _wait(self, size: int, now: float) -> float:
        wait = 0.0
        if self._requests is not None:
            wait = self._requests.wait(1, now)
        if self._bytes is not None and size:
            wait = max(wait, self._bytes.wait(size, now))
        return wait

    def _pay(self, waiting: Waiting, size: int) -> Waiting:
        if self._requests is not None:
            self._requests.take(1)
        if self._bytes is not None:
            self._bytes.take(size)
        waiting.served = True
        return waiting


def _bucket(rate: int | None, burst: int | None) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate, burst)
