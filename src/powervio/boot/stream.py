"""The machines behind a guest's ports: bytes in, what they mean out."""

from __future__ import annotations

import re

from powervio.errors import RemoteError, Verdict

_LINE = 256
"""Bytes of the longest line of the control port."""


class Marked:
    """A stream of any bytes that ends with a token."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._held = b""
        self.ended = False
        """Whether the token was there; what follows it is dropped."""

    def feed(self, data: bytes) -> bytes:
        """What is certainly before the token."""
        if self.ended:
            return b""
        data = self._held + data
        place = data.find(self._token)
        if place >= 0:
            self.ended = True
            self._held = b""
            return data[:place]
        keep = next((n for n in range(len(self._token) - 1, 0, -1) if data.endswith(self._token[:n])), 0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def close(self) -> bytes:
        """What is left when the stream ends without its token."""
        held, self._held = self._held, b""
        return held


class Control:
    """What a guest says on its control port."""

    def __init__(self) -> None:
        self._line = b""
        self.ready = False
        """Whether it has started."""
        self.status: int | None = None
        """Exit status of its command, when that has ended."""
        self.disks: int | None = None
        """How many disks it has, if those it waited for did not come."""

    def feed(self, data: bytes) -> None:
        """Take what was received; raises `RemoteError` for what a guest does not say."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LINE:
            raise RemoteError("the guest sent an endless line on its control port", Verdict.CLOSE)
        for line in lines:
            if line == b"ready":
                self.ready = True
            elif found := re.fullmatch(rb"status (\d{1,3})", line):
                self.status = int(found[1]) & 0xFF
            elif found := re.fullmatch(rb"disks (\d{1,4})", line):
                self.disks = int(found[1])
            else:
                raise RemoteError(f"the guest sent {line[:_LINE]!r} on its control port", Verdict.CLOSE)


def reason_of_end(console: bytes) -> str | None:
    """The line in which a kernel says why it died, if its console has one."""
    found = re.search(rb"(?:Initramfs unpacking failed|Kernel panic|kernel BUG|Oops|Unable to handle)[^\r\n]*", console)
    return found[0].decode(errors="replace").strip() if found else None
