"""What ports that have timers of their own need of the loop that they run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Cancellable(Protocol):
    """A call that was asked for and can be called off."""

    def cancel(self) -> None:
        """Make it never happen; harmless when it has happened."""


class Scheduler(Protocol):
    """Turns, time and descriptors, all in one thread; `virtio.device.Scheduler` is such, and an asyncio loop
    nearly."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds since some moment; it never goes back."""

    def call_later(self, delay: float, call: Callable[[], None]) -> Cancellable:
        """Call after `delay` seconds; only from the thread."""

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Call in the thread; from any thread."""

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever there is something to read; only from the thread."""

    def remove_reader(self, fd: int) -> None:
        """End that, before the descriptor is closed; harmless when there is no reader."""
