"""Lines between a benchmark and the program that works for it in a guest, over a virtio-console port."""

from __future__ import annotations

import socket
import time

from powervio.errors import LocalError

_MOST = 4096
"""Bytes of a line."""


class Talk:
    """Lines to the guest, and from it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._held = b""

    def say(self, line: str) -> None:
        """Raises `LocalError` when the guest is gone."""
        try:
            self._end.sendall(f"{line}\n".encode())
        except OSError as error:
            raise LocalError(f"the guest does not listen any more: {error.strerror}") from error

    def line(self, limit: float) -> str:
        """The next one within a time. Raises `LocalError`."""
        deadline = time.monotonic() + limit
        while b"\n" not in self._held:
            self._end.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = self._end.recv(_MOST)
            except TimeoutError:
                raise LocalError(f"waited {limit:g} s for the guest") from None
            except OSError as error:
                raise LocalError(f"the guest is gone: {error.strerror}") from error
            if not piece:
                raise LocalError("the guest ended before it had done everything")
            self._held += piece
            if len(self._held) > _MOST:
                raise LocalError("the guest says more than it was asked for")
        line, _, self._held = self._held.partition(b"\n")
        return line.decode(errors="replace").strip()

    def close(self) -> None:
        """Let the guest hear that there is nothing more to do."""
        self._end.shutdown(socket.SHUT_RDWR)
