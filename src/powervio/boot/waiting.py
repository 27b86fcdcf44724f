"""Waiting for several descriptors, whatever their numbers: `select.select` takes none from 1024 on."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Sequence
from typing import IO, Any, TypeAlias

Waited: TypeAlias = "int | socket.socket | IO[Any]"
"""A descriptor, or what has one."""


def wait(
    reading: Sequence[Waited], writing: Sequence[Waited], seconds: float | None
) -> tuple[list[Waited], list[Waited]]:
    """Which can be read, or are at their end, and which written, after a time at most; None waits for as long as it
    takes."""
    with selectors.PollSelector() as selector:
        for one in {*reading, *writing}:
            events = (selectors.EVENT_READ if one in reading else 0) | (selectors.EVENT_WRITE if one in writing else 0)
            selector.register(one, events)
        found = selector.select(seconds)
    readable = [key.fileobj for key, events in found if events & selectors.EVENT_READ]
    writable = [key.fileobj for key, events in found if events & selectors.EVENT_WRITE]
    return readable, writable  # type: ignore[return-value]  # they are what was registered
