"""The errors of powervio: whose fault it was, and what has to happen now.

A `RemoteError` is the partner's doing (a bad descriptor, header, message or request); a `LocalError` is ours or our
user's. Both say in one sentence what was wrong and what was expected. A remote error carries a verdict, which the code
at the edge carries out; it never leaves a server as an exception.
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What the receiver of a `RemoteError` does about it."""

    REJECT = "reject"
    """Fail this one request or message with a status; everything else goes on."""
    NEEDS_RESET = "needs reset"
    """The shared state cannot be trusted any more: set DEVICE_NEEDS_RESET and wait for a reset."""
    CLOSE = "close"
    """End the connection."""


class PowervioError(Exception):
    """Base of everything powervio raises on purpose."""


class LocalError(PowervioError):
    """Our own side, or its user, asked for something that cannot be done."""


class RemoteError(PowervioError):
    """The partner did something that it must not do."""

    def __init__(self, message: str, verdict: Verdict = Verdict.REJECT) -> None:
        super().__init__(message)
        self.verdict = verdict
