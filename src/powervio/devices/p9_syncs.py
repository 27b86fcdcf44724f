"""Tfsync of one session of a 9P device, beside its other messages (`powervio.files.p9_syncs`).

What is taken keeps its buffer, of which there are no more than the ring has, until the disk is done; then it is
answered in the partition's thread, where rings are touched and nowhere else. All here but `_done` is called there.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from typing import TYPE_CHECKING

from powervio.errors import RemoteError
from powervio.files import p9_codec as p9
from powervio.files.p9_syncs import Sync, SyncThread, answer_to, waited_for

if TYPE_CHECKING:
    from powervio.files.identity import Identity
    from powervio.files.tree_open import OpenFile
    from powervio.virtio.device import Scheduler
    from powervio.virtio.queue import Request

_CANCELLED = -errno.ECANCELED


class DeviceSyncs:
    """`errors` and `refused` are what `P9Counters` has, of the answers that were given here."""

    def __init__(self, thread: SyncThread, scheduler: Scheduler, identity: Identity) -> None:
        """`thread` is the device's, for all of its sessions: one that a slow disk keeps busy has no second."""
        self.errors = self.refused = 0
        self.waiting: dict[int, Sync] = {}
        """By tag: what is not answered yet."""
        self._thread = thread
        self._scheduler = scheduler
        self._identity = identity
        self._changed = threading.Condition()
        self._finished: deque[tuple[Sync, int]] = deque()

    def take(self, request: Request, tag: int, opened: OpenFile, data_only: bool) -> bool:
        """Carry one out, soon; False: its tag is in use or there is no thread, and nothing was done."""
        if waited_for(tag, self.waiting.values()) is not None:
            return False
        one = Sync(tag, opened, data_only, self._done, request)
        self.waiting[tag] = one  # before the disk can be done with it
        if not self._thread.add(one, self._identity):
            del self.waiting[tag]
            return False
        return True

    def flush(self, request: Request, tag: int, old: int) -> bool:
        """A Tflush of the tag `old`; False: it is to be answered now."""
        one = waited_for(old, self.waiting.values())
        if one is None:
            return False
        one.flushes.append((tag, request))
        return True

    def cancel(self) -> None:
        """A new conversation begins on the same ring: what waits has an answer before it, if not the wanted one."""
        for one in self._taken_back():
            self._answer(one, _CANCELLED)
            one.forget()

    def forget(self) -> None:
        """The buffers are the driver's own again."""
        for one in self._taken_back():
            one.forget()

    def settle(self) -> None:
        """Until all are answered, which takes what the disk takes; nothing else is done in the partition meanwhile."""
        while self.waiting:
            with self._changed:
                while not self._finished:
                    self._changed.wait()
            self._answer_finished()

    def _taken_back(self) -> list[Sync]:
        taken = list(self.waiting.values())
        self.waiting.clear()
        self._thread.forget()
        return taken

    def _done(self, one: Sync, code: int) -> None:
        """In the other thread."""
        if self.waiting.get(one.tag) is not one:  # it was taken back, and there may be no scheduler any more
            return
        with self._changed:
            self._finished.append((one, code))
            self._changed.notify_all()
        self._scheduler.call_soon_threadsafe(self._answer_finished)

    def _answer_finished(self) -> None:
        queues = set()
        while self._finished:
            one, code = self._finished.popleft()
            if self.waiting.get(one.tag) is one:  # else it was taken back
                del self.waiting[one.tag]
                self._answer(one, code)
                queues.add(one.request.queue)
        for queue in queues:
            queue.flush()

    def _answer(self, one: Sync, code: int) -> None:
        if code < 0:
            self.errors += 1
        self._put(one.request, answer_to(one, code))
        for tag, request in one.flushes:
            self._put(request, p9.pack(p9.TFLUSH + 1, tag))

    def _put(self, request: Request, answer: bytes) -> None:
        if not request.queue.live:
            return
        written = len(answer)
        try:
            request.writable.write(0, answer)
        except RemoteError:
            self.refused += 1
            written = 0
        request.complete(written)
