"""The messages of a client that wait for their replies, in order and with a limit (docs/protocol.md, P2.4)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from powervio.transport.crq.protocol import REPLY, Message, encode
from powervio.vio.crq import CrqEnd
from powervio.vio.dispatcher import Timer
from powervio.vio.kernel import PartitionKernel

_REPLY_LIMIT = 10.0
"""Seconds for the server to answer a configuration message."""
_CAN_WAIT = (Message.CONFIG_READ, Message.CONFIG_WRITE)
"""Messages that can wait until a SUSPEND is answered, which they would make the server give up (P5.12)."""


class AwaitedReplies:
    """Sends messages, and tells which reply answers which."""

    def __init__(self, kernel: PartitionKernel, crq: CrqEnd, on_overdue: Callable[[str], None]) -> None:
        """`on_overdue` is told, in words, of a message that was not answered in time."""
        self.awaited: deque[Message] = deque()
        """Kinds of the messages that were sent, oldest first."""
        self._kept: deque[tuple[Message, int, dict[str, int]]] = deque()
        self._kernel = kernel
        self._crq = crq
        self._on_overdue = on_overdue
        self._watchdog: Timer | None = None

    def __contains__(self, kind: Message) -> bool:
        return kind in self.awaited or any(kind == kept[0] for kept in self._kept)

    def send(self, kind: Message, session: int, **values: int) -> None:
        """Send a message, or keep it until the SUSPEND that is under way is answered."""
        if Message.SUSPEND in self.awaited and kind in _CAN_WAIT:
            self._kept.append((kind, session, values))
            return
        if kind is Message.RESET:
            self._kept.clear()  # the device that is described anew by ACKNOWLEDGE has no use for it
        self.awaited.append(kind)
        self._crq.post(*encode(kind, session, **values))
        if self._watchdog is None:
            self._watchdog = self._kernel.call_later(_REPLY_LIMIT, self._overdue)

    def take(self, kind: int) -> Message | None:
        """A message of type `kind` came: which one it answers, or None when nobody waits for such a reply."""
        if not self.awaited or kind != self.awaited[0] | REPLY:
            return None
        answered = self.awaited.popleft()
        if answered is Message.SUSPEND:
            kept, self._kept = self._kept, deque()
            for message, session, values in kept:
                self.send(message, session, **values)
        if not self.awaited:
            self._stop_waiting()
        return answered

    def forget(self) -> None:
        """The session is over: no reply of it is waited for."""
        self.awaited.clear()
        self._kept.clear()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _overdue(self) -> None:
        self._watchdog = None
        if self.awaited:
            self._on_overdue(f"the server did not answer {self.awaited[0].name} within {_REPLY_LIMIT:.0f} s")
