"""A Shared Ethernet Adapter on real ports, in a loop that somebody else runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from powervio.network.port import Port
from powervio.network.scheduler import Cancellable, Scheduler
from powervio.network.sea import Sea

LOG = logging.getLogger(__name__)
LINK_INTERVAL = 0.1
"""Seconds after which the uplink is asked for its link."""
_EARLY = 0.001


class SeaRunner:
    """Polls an adapter when there are frames, and advances it when it is time. All in the loop's thread but `wake`."""

    def __init__(self, sea: Sea, ports: list[Port], link: Callable[[], bool], scheduler: Scheduler) -> None:
        """`ports`: all that the adapter has; `link`: whether the uplink has one. The scheduler's clock is the
        adapter's.
        """
        self.sea = sea
        self.failed: OSError | None = None
        """Why nothing is bridged any more."""
        self._ports = ports
        self._link = link
        self._scheduler = scheduler
        self._called = False
        self._stopped = False
        self._timer: Cancellable | None = None
        self._timer_due = 0.0
        self._state = ""
        self._fds: list[int] = []

    def start(self) -> None:
        """Begin."""
        for port in self._ports:
            port.on_arrival = self.wake
            fd = port.fileno()
            if fd >= 0:
                self._fds.append(fd)
                self._scheduler.add_reader(fd, self._turn)
        self._advance()

    def stop(self) -> None:
        """Touch nothing any more; the ports are the owner's to close."""
        self._stopped = True
        for port in self._ports:
            port.on_arrival = None
        for fd in self._fds:
            self._scheduler.remove_reader(fd)
        self._fds.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """There is something to do; from any thread."""
        if not self._called:
            self._called = True
            self._scheduler.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._called = False
        if self._stopped:
            return
        try:
            more = self.sea.poll()
        except OSError as error:
            self._fail(error)
            return
        if more:
            self.wake()
        self._tell()
        if self.sea.due() < self._timer_due - _EARLY:
            self._set_timer()

    def _advance(self) -> None:
        if self._stopped:
            return
        try:
            self.sea.set_link(self._link())
            self.sea.advance()
            self._tell()
        except OSError as error:
            self._fail(error)
        finally:
            if not self._stopped:  # whatever it was, the next time comes
                self._set_timer()
                self.wake()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._scheduler.clock()
        self._timer_due = min(max(self.sea.due(), now), now + LINK_INTERVAL)
        self._timer = self._scheduler.call_later(self._timer_due - now, self._advance)

    def _tell(self) -> None:
        state = self.sea.failover.state
        if state != self._state:
            self._state = state
            LOG.info("%s is %s", self.sea.options.name, state)

    def _fail(self, error: OSError) -> None:
        """The uplink is of no use any more."""
        LOG.error("%s: %s", self.sea.options.name, error.strerror or error)
        self.failed = error
        self.sea.set_link(False)
        self.stop()
