"""A port that gives every frame back: for measurements, and for tests of devices and drivers."""

from __future__ import annotations

from collections import deque

from powervio.network.port import Frame, Port

LIMIT = 1024
"""Frames that wait to be received."""


class LoopbackPort(Port):
    """What is sent is received, in its order; the frame for which there is no room is dropped."""

    name = "loopback"

    def __init__(self, mtu: int = 1500, limit: int = LIMIT) -> None:
        """`limit` is frames."""
        super().__init__()
        self.mtu = mtu
        self._limit = limit
        self._frames: deque[Frame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def send(self, frame: Frame) -> bool:
        """See `Port`."""
        if not self.put(frame):
            return False
        self.sent += 1
        return True

    def put(self, frame: Frame) -> bool:
        """Let a frame arrive that nobody sent; from any thread. False when there was no room for it."""
        if len(self._frames) >= self._limit:
            return self.drop("queue full")
        self._frames.append(frame)
        if self.on_arrival is not None:
            self.on_arrival()
        return True

    def receive(self) -> Frame | None:
        """See `Port`."""
        while self._rest or self._frames:
            frame = self._fit(self._rest.popleft() if self._rest else self._frames.popleft())
            if frame is not None:
                self.received += 1
                return frame
        return None
