"""Network namespaces by name, as `ip netns` has them: /run/netns/NAME is a mount that keeps one alive.

One that was made here has a mark in itself, at its loopback interface: who made it. So it goes when its maker is done
with it, and when the maker was killed, the next one of the same name takes it over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from powervio.attach.rtnetlink import RouteSocket
from powervio.errors import LocalError

T = TypeVar("T")

FOLDER = Path("/run/netns")
_LOOPBACK = "lo"
_CLONE_NEWNET = 0x4000_0000
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2


class Namespace:
    """One that is in use, by one name or by none: then it is that of this process."""

    def __init__(self, name: str | None, owner: str) -> None:
        """Make it if it is not there; then it is `owner`'s, a short name. Raises `LocalError`."""
        self.name = name
        self.made = False
        """Whether it goes with `close`."""
        self._fd = -1
        self._mark = f"powervio: made for {owner}"
        if name is None:
            return
        path = FOLDER / name
        if not _is_namespace(path):
            _make(path)
            self.made = True
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"network namespace {name}: {error.strerror}") from error
        if self.made:
            self.run(self._begin)
        else:
            self.made = self.run(self._is_ours)

    def _begin(self) -> None:
        route = RouteSocket()
        try:
            route.change(route.find(_LOOPBACK).index, up=True, alias=self._mark)
        finally:
            route.close()

    def _is_ours(self) -> bool:
        route = RouteSocket()
        try:
            return route.find(_LOOPBACK).alias == self._mark
        finally:
            route.close()

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in the namespace, in a thread of its own; what it opens stays there. Raises what it raises,
        and `LocalError` when the namespace cannot be entered."""
        if self._fd < 0:
            return function()

        def entered() -> T:
            if _libc().setns(self._fd, _CLONE_NEWNET):
                raise LocalError(f"network namespace {self.name} cannot be entered: {_why(ctypes.get_errno())}")
            return function()

        return _in_thread(entered)

    def close(self) -> None:
        """Done with it: one that was made here goes, as soon as no process is in it."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self.made and self.name is not None:
            _remove(FOLDER / self.name)


def _is_namespace(path: Path) -> bool:
    """Whether it is a namespace, not only the file that somebody left who was stopped in the middle."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def _make(path: Path) -> None:
    try:
        FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise LocalError(f"network namespace {path.name}: {FOLDER}: {_why(error.errno or 0)}") from error

    def make() -> None:
        libc = _libc()
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        # so that namespaces that are made later are seen in mount namespaces that are there now, as `ip netns` does it
        if libc.mount(b"", os.fsencode(FOLDER), b"none", _MS_SHARED | _MS_REC, None):
            _mount(FOLDER, FOLDER, _MS_BIND | _MS_REC)
            libc.mount(b"", os.fsencode(FOLDER), b"none", _MS_SHARED | _MS_REC, None)
        _mount(Path("/proc/thread-self/ns/net"), path, _MS_BIND)

    try:
        _in_thread(make)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise LocalError(f"network namespace {path.name} cannot be made: {_why(error.errno or 0)}") from error


def _mount(source: Path, target: Path, flags: int) -> None:
    if _libc().mount(os.fsencode(source), os.fsencode(target), b"none", flags, None):
        raise OSError(ctypes.get_errno(), "mount")


def _remove(path: Path) -> None:
    _libc().umount2(os.fsencode(path), _MNT_DETACH)
    with suppress(OSError):
        path.unlink()


def _in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread that ends with it, for it changes the thread's namespace."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _why(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "that takes root (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
    return os.strerror(code)
