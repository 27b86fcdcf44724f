"""Tfsync of one 9P connection, beside its other messages: what waits for a disk holds up nothing else.

One thread of the connection carries them out, in their order, and sends the answers itself; a slow disk is felt by its
own connection alone. An open file is held until then, whatever becomes of its fid. Tflush of one that is not answered
is answered behind it, so that a tag is free when the client thinks so.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from powervio.files import p9_codec as p9

if TYPE_CHECKING:
    from powervio.files.identity import Identity
    from powervio.files.tree_open import OpenFile

log = logging.getLogger(__name__)

MOST = 16
"""Messages that wait here; a further one is carried out in its place, and holds up those behind it."""
MOST_FLUSHES = 64
"""Tflush that wait for one of them; with a further one the connection waits."""


class _Sync:
    def __init__(self, opened: OpenFile, data_only: bool) -> None:
        self.opened = opened
        self.data_only = data_only
        self.flushes: list[int] = []


class Syncs:
    """`lock` is held by whoever sends on the connection. `sent` is bytes. `broken` is the errno that ended sending, by
    whomever: half an answer may have gone, and so nothing may follow."""

    def __init__(self, fd: int, identity: Identity) -> None:
        """`fd` is the connection's socket, open until after `close`. Raises `RuntimeError` when there can be no thread,
        and `OSError`."""
        self.lock = threading.Lock()
        self.sent = self.broken = 0
        self._changed = threading.Condition(self.lock)
        self._waiting: dict[int, _Sync] = {}
        self._ended = False
        self._identity = identity
        self._line = socket.socket(fileno=fd)
        self._thread = threading.Thread(target=self._run, name="9p-sync", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._line.detach()
            raise

    def take(self, tag: int, opened: OpenFile, data_only: bool) -> bool:
        """Carry one out, soon; False: there are too many, or its tag is in use, and nothing was done."""
        with self._changed:
            if self._ended or len(self._waiting) >= MOST or self._one_of(tag) is not None or not opened.hold():
                return False
            self._waiting[tag] = _Sync(opened, data_only)
            self._changed.notify_all()
            return True

    def flush(self, tag: int, old: int) -> bool:
        """A Tflush of the tag `old`; False: it is to be answered now."""
        with self._changed:
            one = self._one_of(old)
            if one is None:
                return False
            if len(one.flushes) < MOST_FLUSHES:
                one.flushes.append(tag)
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
            self._changed.notify_all()
        self._thread.join()
        self._line.detach()

    def _one_of(self, tag: int) -> _Sync | None:
        """What a tag has to wait for, of a Tfsync or of a Tflush of one."""
        return self._waiting.get(tag) or next((one for one in self._waiting.values() if tag in one.flushes), None)

    def _run(self) -> None:
        with self._identity.held():  # this thread may have been born as one of the clients
            pass
        try:
            while self._serve_next():
                pass
        except Exception:
            log.exception("9P server: fsync")
            with self.lock:
                self._break(errno.EIO)
        finally:
            self._give_up()

    def _serve_next(self) -> bool:
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            if self._is_over():
                return False
            tag, one = next(iter(self._waiting.items()))
        code = sync(one.opened, one.data_only)
        one.opened.let_go()
        with self._changed:
            del self._waiting[tag]
            if not self._is_over():
                first = p9.pack(p9.RLERROR, tag, -code) if code < 0 else p9.pack(p9.TFSYNC + 1, tag)
                self._send(first + b"".join(p9.pack(p9.TFLUSH + 1, other) for other in one.flushes))
            self._changed.notify_all()
        return True

    def _is_over(self) -> bool:
        """Whether nobody gets an answer any more."""
        return self._ended or self.broken != 0

    def _give_up(self) -> None:
        with self._changed:
            self._ended = True
            for one in self._waiting.values():
                one.opened.let_go()
            self._waiting.clear()
            self._changed.notify_all()

    def _send(self, answers: bytes) -> None:
        try:
            self._line.sendall(answers, socket.MSG_NOSIGNAL)
            self.sent += len(answers)
        except OSError as error:
            self._break(error.errno or errno.EIO)

    def _break(self, code: int) -> None:
        self.broken = self.broken or code
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)


def sync(opened: OpenFile, data_only: bool) -> int:
    """Make what was written to a held file stable; 0 or the negative errno."""
    return opened.sync_held(data_only)
