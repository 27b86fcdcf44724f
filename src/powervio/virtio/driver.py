"""What a driver type is: which features it wants and what it does when a session starts, goes on and ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport


class Driver(ABC):
    """One virtio driver. The transport's client end calls it, always in the thread of its partition.

    A session begins with `start` and ends with `stop`; it may happen many times in the life of a driver, because
    servers restart and either side may reset. A request that was in flight when `stop` came is the driver's to
    submit again or to fail: its buffers are its own again, and nothing of the old session touches them any more.
    """

    device_id: ClassVar[int]

    @abstractmethod
    def select_features(self, offered: int) -> int:
        """Which of the offered device-type feature bits to accept."""

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """How many queues to set up, given what was negotiated."""
        return 1

    @abstractmethod
    def start(self, transport: DriverTransport) -> None:
        """DRIVER_OK was accepted: queues may be used."""

    @abstractmethod
    def stop(self) -> None:
        """The session is over: its transport and queues are not to be used any more."""

    def fenced(self) -> None:
        """Nothing of an earlier session is at work at the device any more; may come at any time, also again.

        Between `stop` and this, what was in flight may still reach the medium: it may be submitted in a later session
        of the same device, which comes after, and nowhere else.
        """

    @abstractmethod
    def completed(self, queue: DriverQueue) -> None:
        """The device has used buffers of this queue."""

    def config_changed(self) -> None:
        """The device's config space changed; read it again."""

    def removed(self, reason: str) -> None:
        """The device is gone for good; `stop` follows if a session is on. Fail what waits, and what comes later."""

    def snapshot(self) -> dict[str, Any]:
        """What has to survive a move of the partition and is not in its memory; asked for between two sessions."""
        return {}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over what `snapshot` of another instance gave, before the first `start`. Raises `LocalError`."""

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """The driver is not used any more: give back every buffer that it allocated, those in use when they return."""
