"""A disk that is as slow as is wished, for tests of what goes on beside an fsync."""

from __future__ import annotations

import threading

from tests.files.test_identity import own_identity

from powervio.files import p9_syncs
from powervio.files.tree_open import OpenFile

LIMIT = 20.0


class SlowDisk:
    """In place of `p9_syncs.sync`: the kernel's fsync is done when the gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.calls: list[bool] = []
        """Whether only data were asked for."""
        self.callers: list[list[str]] = []
        self.threads: set[int] = set()
        self.fails = 0
        self._sync = p9_syncs.sync

    def sync(self, opened: OpenFile, data_only: bool) -> int:
        self.calls.append(data_only)
        self.callers.append(own_identity())
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.gate.wait(LIMIT)
        return self._sync(opened, data_only) or -self.fails

    def wait(self) -> None:
        """Until one has begun that was not waited for before."""
        assert self.begun.acquire(timeout=LIMIT)
