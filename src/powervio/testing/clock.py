"""Time under a test's control."""

from __future__ import annotations


class Clock:
    """Time that passes only when a test says so. Seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now
