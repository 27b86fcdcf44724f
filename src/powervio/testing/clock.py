"""Time under a test's control."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable


class Clock:
    """Time that passes only when a test says so. Seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class ManualCall:
    """A call that a `ManualScheduler` owes."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget it."""
        self.call = None


class ManualScheduler:
    """A device's `Scheduler` whose calls are made by `run`, and whose time passes by `advance`."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = Clock()
        self._soon: deque[Callable[[], None]] = deque()
        self._later: list[ManualCall] = []
        self._readers: dict[int, Callable[[], None]] = {}

    @property
    def busy(self) -> bool:
        """Whether a call is due now."""
        due = any(call.call and call.due <= self.clock() for call in self._later)
        return bool(self._soon) or due or bool(self._readable())

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """See `Scheduler`."""
        self._readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        """See `Scheduler`."""
        self._readers.pop(fd, None)

    def _readable(self) -> list[int]:
        if not self._readers:
            return []
        poller = select.poll()
        for fd in self._readers:
            poller.register(fd, select.POLLIN)
        return [fd for fd, _ in poller.poll(0)]

    def call_later(self, delay: float, call: Callable[[], None]) -> ManualCall:
        """See `Scheduler`."""
        made = ManualCall(self.clock() + delay, call)
        self._later.append(made)
        return made

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """See `Scheduler`."""
        self._soon.append(call)

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due then is called by the next `run`."""
        assert isinstance(self.clock, Clock)
        self.clock.now += seconds

    def run(self) -> None:
        """Make every call that is due."""
        for fd in self._readable():
            if fd in self._readers:
                self._readers[fd]()
        while self._soon:
            self._soon.popleft()()
        due = [call for call in self._later if call.due <= self.clock()]
        self._later = [call for call in self._later if call.due > self.clock()]
        for entry in sorted(due, key=lambda entry: entry.due):
            if entry.call is not None:
                entry.call()
