"""What keeps a `P9Core` connected, whatever its messages travel on, and for how long operations wait for it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

from powervio.drivers.p9_core import P9Core


class P9Link(ABC):
    """Connections of one core, one after the other."""

    core: P9Core

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the server is, in words."""

    @abstractmethod
    async def start(self) -> None:
        """Connect for the first time. Raises `LocalError`."""

    @abstractmethod
    async def close(self) -> None:
        """End; every operation that waits fails."""


class Patience:
    """Ends the waiting of operations while there is no connection, every so many seconds."""

    SECONDS: ClassVar[float] = 30.0

    def __init__(self, core: P9Core, seconds: float) -> None:
        self.seconds = seconds
        self._core = core
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The connection was lost."""
        self.end()
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._out)

    def end(self) -> None:
        """There is one again, or there will be none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out(self) -> None:
        self._core.impatient()
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._out)
