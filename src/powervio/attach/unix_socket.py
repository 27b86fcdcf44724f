"""Listening on a Unix socket: a stale file is replaced, a living server's is not, and errors say what is in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from powervio.errors import LocalError

MAX_PATH = 107
"""Longest path of a Unix socket in bytes: sun_path of unix(7) holds 108 with the terminating zero."""


class UnixListener:
    """A non-blocking listening socket and its file."""

    def __init__(self, path: str | Path, mode: int = 0o600) -> None:
        """Listen at `path`; `mode` are the permissions of the file, less the umask.

        A socket file that nobody answers on is replaced. Raises `LocalError` when somebody answers, when something
        else is there, or when no socket can be made there.
        """
        check_path(path)
        self.path = Path(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind(mode)
        except OSError as error:
            self.socket.close()
            raise LocalError(f"cannot listen at {path}: {error.strerror or error}") from error
        except LocalError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def close(self) -> None:
        """Stop listening and remove the file, unless it is one that another server put there since."""
        self.socket.close()
        with suppress(OSError):
            if self._identity() == self._file:
                os.unlink(self.path)

    def _identity(self) -> tuple[int, int]:
        status = os.lstat(self.path)
        return status.st_dev, status.st_ino

    def _bind(self, mode: int) -> None:
        # The directory is locked: of two servers that replace a stale file one would remove the other's new one.
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            self._remove_stale()
            os.fchmod(self.socket.fileno(), mode)  # before bind: Linux gives the file the socket's own permissions
            self.socket.bind(os.fspath(self.path))
            self._file = self._identity()
            self.socket.listen(128)
        finally:
            os.close(directory)

    def _remove_stale(self) -> None:
        try:
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise LocalError(f"cannot listen at {self.path}: it exists and is not a socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(os.fspath(self.path))
        if answer != errno.ECONNREFUSED:  # EAGAIN is a full backlog, EACCES somebody else's: neither is stale
            reason = os.strerror(answer) if answer else "somebody answers there already"
            raise LocalError(f"cannot listen at {self.path}: {reason}")
        os.unlink(self.path)


def check_path(path: str | Path) -> None:
    """Raises `LocalError` when a path is too long for a Unix socket."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise LocalError(f"the path of a Unix socket has at most {MAX_PATH} bytes, this one has {length}: {path}")
