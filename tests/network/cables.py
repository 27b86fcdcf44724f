"""Ports that are joined by cables, for tests; a cable may be pulled, or lose frames silently."""

from __future__ import annotations

from collections import deque

from powervio.network.port import Frame, Port


class Cable:
    """Two ports; what one sends the other receives, as it is."""

    def __init__(self, name: str = "cable", limit: int = 4096) -> None:
        self.plugged = True
        self.silent = False
        self.limit = limit
        self.ends = (CablePort(self, f"{name}.0"), CablePort(self, f"{name}.1"))

    def other(self, port: CablePort) -> CablePort:
        return self.ends[port is self.ends[0]]


class CablePort(Port):
    def __init__(self, cable: Cable, name: str) -> None:
        super().__init__()
        self.name = name
        self.mtu = 1500
        self.cable = cable
        self.frames: deque[Frame] = deque()
        self.closed = False

    def send(self, frame: Frame) -> bool:
        if not self.cable.plugged:
            return self.drop("interface down")
        self.sent += 1
        other = self.cable.other(self)
        if not self.cable.silent and len(other.frames) < self.cable.limit:
            other.frames.append(frame)
            if other.on_arrival is not None:
                other.on_arrival()
        return True

    def receive(self) -> Frame | None:
        if self.closed:
            raise OSError(19, "No such device")
        if not self.frames:
            return None
        self.received += 1
        return self.frames.popleft()

    def close(self) -> None:
        self.closed = True


class CableLink:
    """The link of a port with a cable."""

    def __init__(self, cable: Cable, address: bytes) -> None:
        self.cable = cable
        self.address = address
        self.closed = False

    def up(self) -> bool:
        return self.cable.plugged

    def fileno(self) -> int:
        return -1

    def hear(self) -> None:
        raise AssertionError("it has no news")

    def close(self) -> None:
        self.closed = True
