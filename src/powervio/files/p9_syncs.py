"""Tfsync of one 9P connection, beside its other messages: what waits for a disk holds up nothing else.

One thread carries them out, in their order (`SyncThread`); a slow disk is felt by its own connection alone. An open
file is held until then, whatever becomes of its fid. Tflush of one that is not answered is answered behind it, so that
a tag is free when the client thinks so. `Syncs` is what a connection over a socket has, whose thread sends the answers
itself; what a device has is in `powervio.devices.p9_syncs`.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from powervio.files import p9_codec as p9

if TYPE_CHECKING:
    from powervio.files.identity import Identity
    from powervio.files.tree_open import OpenFile

log = logging.getLogger(__name__)

MOST = 16
"""Messages of a connection that wait here; a further one is carried out in its place, and holds up those behind it."""
MOST_FLUSHES = 64
"""Tflush that wait for one of them; with a further one the connection waits."""


class Sync:
    """One Tfsync that is not answered. `flushes` are those that wait for it: tags, each with what `request` has."""

    def __init__(
        self, tag: int, opened: OpenFile, data_only: bool, done: Callable[[Sync, int], None], request: Any = None
    ) -> None:
        """`done` is called in the thread, with 0 or the negative errno. `request` is whoever's who takes it."""
        self.tag = tag
        self.opened = opened
        self.data_only = data_only
        self.done = done
        self.request = request
        self.flushes: list[tuple[int, Any]] = []

    def forget(self) -> None:
        """Nobody is answered any more: what the disk is busy with keeps no request, and so no driver's memory."""
        self.request = None
        self.flushes.clear()


def waited_for(tag: int, waiting: Iterable[Sync]) -> Sync | None:
    """The Tfsync of a tag, or the one that a Tflush of that tag waits for."""
    return next((one for one in waiting if one.tag == tag or any(tag == flush for flush, _ in one.flushes)), None)


def answer_to(one: Sync, code: int) -> bytes:
    """What a Tfsync is answered with."""
    return p9.pack(p9.RLERROR, one.tag, -code) if code < 0 else p9.pack(p9.TFSYNC + 1, one.tag)


class SyncThread:
    """Makes files stable, one after the other. The thread begins with the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Sync] = deque()
        self._ended = False
        self._thread: threading.Thread | None = None

    def add(self, one: Sync, identity: Identity) -> bool:
        """Carry one out behind those before it; False: there can be no thread, or the file is closed."""
        with self._changed:
            if self._ended or not self._begin(identity) or not one.opened.hold():
                return False
            self._waiting.append(one)
            self._changed.notify_all()
            return True

    def _begin(self, identity: Identity) -> bool:
        if self._thread is None:
            made = threading.Thread(target=self._run, args=(identity,), name="9p-sync", daemon=True)
            try:
                made.start()
            except RuntimeError:
                return False
            self._thread = made
        return True

    def forget(self) -> None:
        """Do not begin what has not begun; nobody is told."""
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.opened.let_go()

    def close(self, limit: float | None = None) -> None:
        """End, after what the kernel is busy with, for which `limit` seconds are waited; None: as long as it takes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.forget()
        if self._thread is not None:
            self._thread.join(limit)

    def _run(self, identity: Identity) -> None:
        with identity.held():  # this thread may have been born as one of the clients
            pass
        while (one := self._next()) is not None:
            self._carry_out(one)
            del one  # nothing of it is kept until the next one comes

    def _carry_out(self, one: Sync) -> None:
        try:
            code = sync(one.opened, one.data_only)
        except Exception:
            log.exception("9P server: Tfsync")
            code = -errno.EIO
        one.opened.let_go()
        try:
            one.done(one, code)
        except Exception:
            log.exception("9P server: Rfsync")

    def _next(self) -> Sync | None:
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            return None if self._ended else self._waiting.popleft()


class Syncs:
    """Those of a socket. `lock` is held by whoever sends on it. `sent` is bytes. `broken` is the errno that ended
    sending, by whomever: half an answer may have gone, and so nothing may follow."""

    def __init__(self, fd: int, identity: Identity) -> None:
        """`fd` is the connection's socket, open until after `close`. Raises `OSError`."""
        self.lock = threading.Lock()
        self.sent = self.broken = 0
        self._changed = threading.Condition(self.lock)
        self._waiting: dict[int, Sync] = {}
        self._ended = False
        self._identity = identity
        self._line = socket.socket(fileno=fd)
        self._thread = SyncThread()

    def take(self, tag: int, opened: OpenFile, data_only: bool) -> bool:
        """Carry one out, soon; False: there are too many, or its tag is in use, and nothing was done."""
        with self._changed:
            if len(self._waiting) >= MOST or waited_for(tag, self._waiting.values()) is not None:
                return False
            one = Sync(tag, opened, data_only, self._done)
            if self.broken or not self._thread.add(one, self._identity):
                return False
            self._waiting[tag] = one
            return True

    def flush(self, tag: int, old: int) -> bool:
        """A Tflush of the tag `old`; False: it is to be answered now."""
        with self._changed:
            one = waited_for(old, self._waiting.values())
            if one is None:
                return False
            if len(one.flushes) < MOST_FLUSHES:
                one.flushes.append((tag, None))
                return True
        self.wait()
        return False

    def wait(self) -> None:
        """Until all are answered, which takes what the disk takes."""
        with self._changed:
            while self._waiting:
                self._changed.wait()

    def close(self) -> None:
        """Answer no more. What the kernel is busy with is waited for: a client that comes and goes has no more threads
        than connections."""
        with self._changed:
            self._ended = True
        self._thread.close()
        self._line.detach()

    def _done(self, one: Sync, code: int) -> None:
        with self._changed:
            del self._waiting[one.tag]
            if not self._is_over():
                self._answer(one, code)
            if self._is_over():
                self._thread.forget()
                self._waiting.clear()
            self._changed.notify_all()

    def _is_over(self) -> bool:
        """Whether nobody gets an answer any more."""
        return self._ended or self.broken != 0

    def _answer(self, one: Sync, code: int) -> None:
        try:
            flushes = (p9.pack(p9.TFLUSH + 1, tag) for tag, _ in one.flushes)
            answers = b"".join((answer_to(one, code), *flushes))
            self._line.sendall(answers, socket.MSG_NOSIGNAL)
            self.sent += len(answers)
        except (OSError, MemoryError) as error:
            self.broken = getattr(error, "errno", None) or errno.ENOMEM
            with suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)


def sync(opened: OpenFile, data_only: bool) -> int:
    """Make what was written to a held file stable; 0 or the negative errno."""
    return opened.sync_held(data_only)
