"""A system beside code that is not asyncio's: in a thread of its own, from `with` to its end."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from powervio.errors import LocalError
from powervio.system.config import Config
from powervio.system.doors import GuestDoor
from powervio.system.system import System


class ThreadedSystem:
    """`with ThreadedSystem(config) as running:` starts a system and ends it; `running.door(name)` is a guest's way in.

    Starting raises `LocalError`, and nothing of it is left then; so does ending, after everything was tried.
    """

    def __init__(self, config: Config) -> None:
        self.system = System(config)
        """To be used in its thread only (`call`), but for `doors`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"system-{config.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()  # each step of it has a limit
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.system.start()
        self._started.set()
        await self._stop.wait()
        await self.system.stop()

    def door(self, name: str) -> GuestDoor:
        """The door of the guest of this name. Raises `LocalError`."""
        found = self.system.doors.get(name)
        if found is None:
            raise LocalError(f'there is no guest "{name}"')
        return found
