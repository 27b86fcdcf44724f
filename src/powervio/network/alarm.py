"""Calls at a time: one thread that sleeps until the next is due."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count


class Alarm:
    """It has its thread only when something was asked for."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock`: nanoseconds; it has to go on while the thread sleeps."""
        self._clock = clock
        self._condition = threading.Condition()
        self._calls: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, when: int, call: Callable[[], None]) -> None:
        """Have something called at a time, in nanoseconds of the clock, by the thread; it must not wait or raise."""
        with self._condition:
            if self._closed:
                return
            heapq.heappush(self._calls, (when, next(self._order), call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
                self._thread.start()
            elif self._calls[0][0] == when:
                self._condition.notify()

    def close(self) -> None:
        """Nothing is called any more."""
        with self._condition:
            self._closed = True
            self._calls.clear()
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._closed and (not self._calls or self._calls[0][0] > self._clock()):
                    left = (self._calls[0][0] - self._clock()) / 1e9 if self._calls else None
                    self._condition.wait(left)
                if self._closed:
                    return
                call = heapq.heappop(self._calls)[2]
            call()
