# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Forwarding between mapped rings, without the interpreter lock: from the transmit ring of a port straight into the
receive rings of others, as the switch that they are ports of decides.

One `Forwarder` has one thread for all queues of a switch that it was given (`net_forwarded`), so no two threads ever
touch a ring. A frame that is on its way is its `Passage`'s. A receiver without buffers misses the frame; nobody waits
for it.

What is not as usual is the devices' Python's, in the same thread: frames that do not pass the checks here, that a
receiver takes in segments only, or whose receiver is no mapped ring.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cython
from cython.cimports.powervio.devices.net_forwarded import ForwardedQueue
from cython.cimports.powervio.devices.net_passage import Passage
from cython.cimports.powervio.memory.hw import clock_ns, event_take, ld8_acquire, pointer, relax, st8_release, wait_any
from cython.cimports.powervio.network.switch_core import SwitchCore
from cython.cimports.powervio.network.switch_decision import Decision

_log = logging.getLogger(__name__)

_TURN = cython.declare(cython.int, 32)
"""Frames of one ring before the next one's turn."""
_DROPPED = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)
_NOBODY = cython.declare(cython.int, -2)
"""Nobody here has a ring of that port: see `ForwardedQueue.put`."""


@cython.final
@cython.cclass
class Forwarder:
    """Forwards between the mapped queues of one switch, in a thread that is there while it has any."""

    core: SwitchCore
    decision: Decision
    passage: Passage
    sleeps: cython.ulonglong
    _stopping: cython.p_uchar
    _first: ForwardedQueue | None
    _first_receiver: ForwardedQueue | None
    _spin: cython.ulonglong
    _books: Any
    _switch: Any
    _queues: Any
    _thread: Any
    _lock: Any
    _gate: Any
    _resumed: Any
    _poller: Any
    _poll_fd: cython.int
    _wake_fd: cython.int
    _numbers: cython.uint

    def __init__(self, switch: Any, *, spin: float = 0.0) -> None:
        """For a `network.switch.Switch`. `spin` is the seconds for which empty rings are looked at before it sleeps."""
        stopping = bytearray(8)
        self.core = switch.core
        self.decision = Decision(switch.core)
        self.passage = Passage()
        self.sleeps = 0
        self._stopping = pointer(stopping)
        self._books = stopping
        self._switch = switch
        self._queues = {}
        self._thread = None
        self._lock = threading.Lock()
        self._gate = threading.RLock()
        self._resumed = threading.Event()
        self._resumed.set()
        self._spin = int(spin * 1e9)
        self._first = self._first_receiver = None
        self._numbers = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.epoll()
        self._poll_fd = self._poller.fileno()
        self._poller.register(self._wake_fd, select.EPOLLIN)

    # -- from other threads

    def wake(self) -> None:
        """Have the thread look, if it sleeps."""
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is forwarded meanwhile: what goes into decisions is about to change."""
        if self._thread is not None and threading.get_ident() == self._thread.ident:
            yield  # it is that thread's Python that changes it
            return
        with self._gate:
            self._resumed.clear()
            st8_release(self._stopping, 0, 1)
            self.wake()
            with self._lock:
                try:
                    yield
                finally:
                    st8_release(self._stopping, 0, 0)
                    self._resumed.set()

    def add(self, queue: ForwardedQueue) -> None:
        """Serve a queue from now on."""
        with self._gate:
            with self.still():
                self._numbers += 1
                queue.identity = self._numbers
                self._queues[queue.identity] = queue
                self._link()
                if queue.queue.kick >= 0:
                    self._poller.register(queue.queue.kick, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="forwarder", daemon=True)
                self._thread.start()
            self.wake()

    def remove(self, queue: ForwardedQueue) -> None:
        """Touch a queue no more."""
        with self._gate:
            with self.still():
                if self._queues.pop(queue.identity, None) is None:
                    return
                self._link()
                with suppress(OSError, ValueError):
                    self._poller.unregister(queue.queue.kick)
                queue.release()
            if not self._queues and self._thread is not None and threading.get_ident() != self._thread.ident:
                self.wake()
                self._thread.join()
                self._thread = None

    def close(self) -> None:
        """All queues have been removed."""
        self._poller.close()
        os.close(self._wake_fd)
        self._wake_fd = -1

    @cython.cfunc
    def _link(self) -> cython.void:
        """Make the chains of queues anew."""
        self._first = self._first_receiver = None
        queue: ForwardedQueue
        for one in self._queues.values():
            queue = one
            if queue.receives:
                queue.following = self._first_receiver
                self._first_receiver = queue
            else:
                queue.following = self._first
                self._first = queue

    # -- the thread

    def _work(self) -> None:
        while self._queues:
            self._resumed.wait()
            with self._lock:
                if not self._queues:
                    return
                try:
                    with cython.nogil:
                        self._run()
                except BaseException as error:
                    self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """The queue that was touched last cannot be served; a frame that was on its way from another one is lost."""
        queue = self._queues.pop(self.passage.current, None)
        if queue is None:
            _log.error("the forwarder failed", exc_info=error)
            return
        opened, self.passage.open = self.passage.open, False
        if opened and queue.receives:
            for other in self._queues.values():
                if not other.receives and other.identity == self.passage.opened_by:
                    other.queue.complete(self.passage.open_head, 0)
        self._link()
        with suppress(OSError, ValueError):
            self._poller.unregister(queue.queue.kick)
        queue.error = error
        if queue.on_end is not None:
            queue.on_end()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self) -> cython.int:
        """Forward until somebody wants it to stop."""
        until: cython.ulonglong = 0
        now: cython.ulonglong
        found: cython.int
        while not ld8_acquire(self._stopping, 0):
            now = clock_ns()
            found = 0
            if self._first is not None:
                found += self._turn(self._first, now)
            if self._first_receiver is not None:
                found += self._first_receiver.show()
            if found:
                until = now + self._spin
            elif now < until:
                relax()
            else:
                self._sleep()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _sleep(self) -> cython.int:
        ready: cython.int = 0
        found: cython.int = 0
        if self._first is not None:
            found |= self._first.arm()
        if self._first_receiver is not None:
            found |= self._first_receiver.arm()
        if not found and not ld8_acquire(self._stopping, 0):
            self.sleeps += 1
            ready = wait_any(self._poll_fd, -1, -1, 1000)
        event_take(self._wake_fd)
        if self._first is not None:
            self._first.disarm()
        if self._first_receiver is not None:
            self._first_receiver.disarm()
        return 0 if ready >= 0 else self._no_waiting(ready)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _no_waiting(self, code: cython.int) -> cython.int:
        with cython.gil:
            raise OSError(-code, "waiting for kicks failed")

    # -- frames

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _turn(self, queue: ForwardedQueue, now: cython.ulonglong) -> cython.int:
        """Forward what is in a transmit ring, up to a bound, then in the next one's; how many frames there were."""
        count: cython.int = 0
        self.passage.current = queue.identity
        if queue._ring.look():
            queue.bring_first()
            while count < _TURN and queue._queue.take():
                queue.bring_next()
                self.passage.open_head = queue._ring.head
                self.passage.open = True
                if self._forward(queue, now):
                    queue._ring.give(queue._ring.head, 0)
                self.passage.open = False
                count += 1
            queue._queue.shown(queue._ring.show())
            queue._queue.settle()
        if queue.following is not None:
            count += self._turn(queue.following, now)
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _forward(self, queue: ForwardedQueue, now: cython.ulonglong) -> cython.int:
        """Let the frame that a transmit queue took last go on; 0 when the buffer went back already."""
        kind: cython.int
        self.passage.opened_by = queue.identity
        if not queue.link_up or not self.passage.find(
            queue._ring, queue._space, queue._header_bytes, queue._features, queue._mtu
        ):
            queue.handed_over += 1
            with cython.gil:
                queue.device.take_apart(queue._queue)
            return 0
        if queue._steering.pairs > 1:
            self.passage.hand.view.look(self.passage.frame, self.passage.hand.have)
            queue._steering.learn(self.passage.hand.view, queue.pair)
        kind = self.core.decide(
            self.decision,
            queue.handle,
            self.passage.frame,
            0,
            self.passage.hand.length,
            self.passage.hand.checksum_begins(),
            now,
        )
        if kind == _DROPPED:
            queue.unheard += 1
            return 1
        if kind == _ONE:
            kind = self._deliver(self.decision.egress, self.decision.todo)
        else:
            kind = self._flood()
        self.passage.current = queue.identity
        if kind:
            queue.frames += 1
            queue.bytes += self.passage.hand.length
        else:
            queue.unheard += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _flood(self) -> cython.int:
        got: cython.int = 0
        number: cython.int = self.decision.next_receiver()
        while number >= 0:
            got |= self._deliver(number, self.decision.tag_change(self.decision.gets_tagged(number)))
            number = self.decision.next_receiver()
        return got

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _deliver(self, number: cython.int, change: cython.int) -> cython.int:
        """Give the frame to a port, with the tag that it gets; 1 when it got it."""
        pair: cython.int
        outcome: cython.int
        self.passage.change(change, self.decision.tci)
        if self._first_receiver is not None:
            pair = self._first_receiver.choose(number)
            if pair < 0:
                return 0
            outcome = self._first_receiver.put(number, pair)
            if outcome == _NOBODY and pair:
                outcome = self._first_receiver.put(number, 0)
            if outcome >= 0:
                return outcome
        with cython.gil:
            return self._deliver_apart(number)

    @cython.cfunc
    @cython.exceptval(-1)
    def _deliver_apart(self, number: cython.int) -> cython.int:
        """Give the frame to a port that is no mapped ring, or that takes less, as an object."""
        port = self._switch.ports_by_number[number]
        if port is None:
            return 0
        return 1 if port.deliver(self.passage.whole()) else 0
