"""Doing something in a network namespace: a socket or TAP belongs to the one in which it was made, whoever uses it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from powervio.errors import LocalError

T = TypeVar("T")

NAMED = Path("/run/netns")
"""Where `ip netns add` puts them."""
_CLONE_NEWNET = 0x4000_0000


def inside(netns: str | None, call: Callable[[], T]) -> T:
    """What a call returns or raises that is made in a namespace: a name of `ip netns`, or a path; None: ours.

    It is made in a thread of its own, which ends with it, for a thread cannot be sure to come back. Raises `LocalError`
    when the namespace is not there, or is not for us.
    """
    if netns is None:
        return call()
    path = Path(netns) if "/" in netns else NAMED / netns
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _enter(netns, path)
            results.append(call())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, name=f"netns {netns}", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _enter(netns: str, path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalError(f"network namespace {netns}: {error.strerror} ({path})") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            why = os.strerror(ctypes.get_errno())
            raise LocalError(f"network namespace {netns} cannot be entered: {why}")
    finally:
        os.close(fd)
