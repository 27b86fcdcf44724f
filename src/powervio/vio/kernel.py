"""The core of a partition's operating system: interrupts by H_XIRR and H_EOI, timers, and work from other threads.

One `PartitionKernel` serves one partition, always in one thread: its own or a host's (`start`), an asyncio loop's
(`attach`), or a test that calls `poll` of several partitions in turn, which makes every run the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from powervio.papr.port import HcallPort
from powervio.vio.dispatcher import Dispatcher, Timer
from powervio.vio.dma import DmaSpace, PartitionPages
from powervio.vio.engine import EngineWindow


class Cancellable(Protocol):
    """A timer of a loop."""

    def cancel(self) -> None:
        """Not at all."""


class Host(Protocol):
    """A loop that runs in one thread, and partitions in it."""

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, None while it does not run."""

    def add_reader(self, fd: int, call: Callable[..., object], *arguments: Any) -> object:
        """Call whenever the descriptor is readable."""

    def remove_reader(self, fd: int) -> object:
        """End that."""

    def call_later(self, delay: float, call: Callable[[], object]) -> Cancellable:
        """Call after `delay` seconds."""

    def call_soon_threadsafe(self, call: Callable[[], object]) -> object:
        """Call in the thread, from any thread."""


class PartitionKernel:
    """Interrupt dispatch, timers and deferred calls of one partition."""

    def __init__(self, port: HcallPort, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.port = port
        self.pages = PartitionPages(port.memory)
        self.engine = EngineWindow(port.engines[0]) if port.engines else None
        """The DMA engine of the partition's physical adapter, if it has one."""
        self.clock = clock
        self._readers: dict[int, Callable[[], None]] = {}
        # a copy: when the partition is terminated its line is closed, and the number may soon be somebody else's
        self._line_fd = os.dup(port.interrupt_fd)
        self.dispatcher = Dispatcher(port, self._line_fd, clock)
        """What `poll` does."""
        self._handlers = self.dispatcher.handlers
        self._soon = self.dispatcher.soon
        self._guard = self.dispatcher.guard
        self.poll: Callable[[], bool] = self.dispatcher.poll
        """One pass over interrupts, due timers and deferred calls, without waiting. True when anything was done.

        Descriptors of `add_reader` are looked at by `wait` or by the asyncio loop.
        """
        self.next_deadline: Callable[[], float | None] = self.dispatcher.next_deadline
        """When the next timer is due, in the clock's seconds."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.poll()
        self._poller.register(self._line_fd, select.POLLIN)
        self._poller.register(self._wake_fd, select.POLLIN)
        self._tree_generation = 0
        # in their order; a dict because there is one for each adapter, and each comes and goes by itself
        self._tree_watchers: dict[Callable[[], None], None] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._closed = False
        self._host: Host | None = None
        self._loop: asyncio.AbstractEventLoop | Host | None = None
        self._loop_timer: Cancellable | None = None
        self._loop_due: float | None = None
        self._loop_again: Cancellable | None = None
        self._awake = 0
        """The thread that looks at deadlines and deferred calls by itself before it sleeps, so that it needs no waking
        by what it does itself: the partition's own, or a loop's while it is in a pass. 0: none."""

    def request_interrupt(self, source: int, handler: Callable[[], None]) -> None:
        """Call `handler` for an interrupt source. It empties its queue; it is called once before and once after
        H_EOI, because a pulse that comes while the interrupt is pending leaves no trace (papr-vio 3.4)."""
        self._handlers[source] = handler

    def free_interrupt(self, source: int) -> None:
        """Forget the handler of a source."""
        self._handlers.pop(source, None)

    def take_over(self) -> None:
        """Boot in a partition whose earlier software was not told to stop (as after kexec): its mappings go, so that
        nobody reaches memory that is used for something else from now on. CRQs that it left are met by `CrqEnd`."""
        for node in self.port.nodes.values():
            for window in node.windows[:1]:
                DmaSpace(self.port, self.pages, window).wipe(window.size)

    def watch_tree(self, call: Callable[[], None]) -> None:
        """Call in the partition's thread after each change of `port.nodes`: adapters that came or went."""
        if not self._tree_watchers and self.port.tree_source:
            self.request_interrupt(self.port.tree_source, self._tree_event)
            self._tree_generation = self.port.watch_tree()
        self._tree_watchers[call] = None

    def unwatch_tree(self, call: Callable[[], None]) -> None:
        """End what `watch_tree` began; harmless when it has ended already."""
        self._tree_watchers.pop(call, None)

    def _tree_event(self) -> None:
        generation = self.port.watch_tree()
        if generation != self._tree_generation:
            self._tree_generation = generation
            for call in list(self._tree_watchers):
                self._guard(call)

    @property
    def threaded(self) -> bool:
        """Whether the partition runs in a thread of its own: then its objects are made and ended by `call`."""
        return self._thread is not None

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call after `delay` seconds."""
        timer = self.dispatcher.add_timer(delay, call)
        if self._loop is not None and not self._awake:
            self._wake()  # the loop has to learn of a deadline that may be earlier than the one it sleeps for
        return timer

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call in the next pass; for use in the partition's own thread."""
        self._soon.append(call)
        if self._loop is not None and not self._awake:
            self._wake()

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Call in the partition's thread, from any thread."""
        self._soon.append(call)
        if self._awake != threading.get_ident():
            self._wake()

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever there is something to read; for use in the partition's own thread."""
        self._readers[fd] = call
        self._poller.register(fd, select.POLLIN)
        if self._loop is not None:
            self._loop.add_reader(fd, self._loop_read, fd)

    def remove_reader(self, fd: int) -> None:
        """End that, before the descriptor is closed; harmless when there is no reader."""
        if self._readers.pop(fd, None) is not None:
            self._poller.unregister(fd)
            if self._loop is not None:
                self._loop.remove_reader(fd)

    def _timeout(self) -> float | None:
        if self._soon:
            return 0.0
        deadline = self.next_deadline()
        return None if deadline is None else max(0.0, deadline - self.clock())

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until an interrupt, a wake-up, the next timer, something to read or `timeout` seconds."""
        own = self._timeout()
        if own is not None:
            timeout = own if timeout is None else min(own, timeout)
        for fd, _ in self._poller.poll(None if timeout is None else timeout * 1000 + 0.5):
            if fd == self._wake_fd:
                self._unwake()
            elif fd in self._readers:
                self._guard(self._readers[fd])

    def _wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wake_fd, 1)

    def _unwake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    # -- a thread of its own

    def start(self, host: Host | None = None) -> None:
        """Run the partition in a thread of its own, or in that of `host`, which runs."""
        if host is not None:
            self._host, self._thread = host, host.thread
            host.call_soon_threadsafe(lambda: self.attach(host))
            return
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"partition-{self.port.partition_name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._awake = threading.get_ident()
        try:
            while not self._stopping:
                if not self.poll():
                    self.wait()
                elif self._readers:
                    self.wait(0)  # a partition that is always busy reads them too
        finally:
            self._awake = 0

    def stop(self, timeout: float = 10.0) -> bool:
        """End the partition's thread after what it is doing; False if that took more than `timeout` seconds.

        It ends as soon as it can then too, and this may be called again to wait for it.
        """
        thread = self._thread
        if thread is None:
            return True
        if self._host is not None:
            try:
                self.call(self.detach, timeout)
            except TimeoutError:
                return False
            self._host = self._thread = None
            return True
        self._stopping = True
        self._wake()
        thread.join(timeout)
        if thread.is_alive():
            return False
        self._thread = None
        return True

    def call(self, function: Callable[[], object], timeout: float = 10.0) -> object:
        """Call in the partition's thread and wait for the result; directly when it has no thread of its own.

        Raises what the function raised, or `TimeoutError`.
        """
        if self._thread is None or threading.current_thread() is self._thread:
            return function()
        done = threading.Event()
        box: list[object] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                box.append(function())
            except BaseException as error:
                failure.append(error)
            finally:
                done.set()

        self.call_soon_threadsafe(work)
        if not done.wait(timeout):
            raise TimeoutError(f"partition {self.port.partition_name} did not answer within {timeout} s")
        if failure:
            raise failure[0]
        return box[0]

    # -- in an asyncio loop

    def attach(self, loop: asyncio.AbstractEventLoop | Host) -> None:
        """Let a loop drive the partition."""
        self._loop = loop
        loop.add_reader(self._line_fd, self._loop_poll)
        loop.add_reader(self._wake_fd, self._loop_wake)
        for fd in self._readers:
            loop.add_reader(fd, self._loop_read, fd)
        self._loop_wake()

    def detach(self) -> None:
        """End what `attach` began."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._line_fd)
        self._loop.remove_reader(self._wake_fd)
        for fd in self._readers:
            self._loop.remove_reader(fd)
        for timer in (self._loop_timer, self._loop_again):
            if timer is not None:
                timer.cancel()
        self._loop = self._loop_timer = self._loop_again = None

    def _loop_read(self, fd: int) -> None:
        if fd in self._readers:
            self._awake = threading.get_ident()
            self._guard(self._readers[fd])
            self._loop_poll()

    def _loop_wake(self) -> None:
        self._unwake()
        self._loop_poll()

    def _loop_poll(self) -> None:
        self._awake = threading.get_ident()
        try:
            self.poll()
        finally:
            self._awake = 0
        loop = self._loop
        if loop is None:
            return
        if self._soon and self._loop_again is None:
            self._loop_again = loop.call_later(0.0, self._loop_poll_again)
        due = self.next_deadline()
        if self._loop_timer is not None:
            if due == self._loop_due:
                return
            self._loop_timer.cancel()
            self._loop_timer = None
        if due is not None:
            self._loop_due = due
            self._loop_timer = loop.call_later(max(0.0, due - self.clock()), self._loop_due_now)

    def _loop_poll_again(self) -> None:
        self._loop_again = None
        self._loop_poll()

    def _loop_due_now(self) -> None:
        self._loop_timer = None
        self._loop_poll()

    def close(self) -> None:
        """Release what the kernel holds of the machine; the partition is not run afterwards."""
        if self._closed:
            return
        self.stop()
        self.detach()
        self._closed = True  # the numbers may soon be somebody else's
        os.close(self._wake_fd)
        os.close(self._line_fd)
