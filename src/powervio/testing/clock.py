"""Time under a test's control."""

from __future__ import annotations

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

    @property
    def busy(self) -> bool:
        """Whether a call is due now."""
        return bool(self._soon) or any(call.call and call.due <= self.clock() for call in self._later)

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
        while self._soon:
            self._soon.popleft()()
        due = [call for call in self._later if call.due <= self.clock()]
        self._later = [call for call in self._later if call.due > self.clock()]
        for entry in sorted(due, key=lambda entry: entry.due):
            if entry.call is not None:
                entry.call()
