"""9P over a client partition's virtio device: a `P9Core` whose connections are the sessions of `drivers/p9_channel`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from powervio.attach.p9_link import P9Link, Patience
from powervio.drivers.p9_channel import P9Driver
from powervio.drivers.p9_core import P9Core
from powervio.errors import LocalError


class P9Device(P9Link):
    """What a mount or a library needs of a device. `driver` is the partition's, in whose thread all of this runs."""

    def __init__(
        self,
        core: P9Core,
        *,
        name: str = "",
        patience: float = Patience.SECONDS,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`name` is for people; `patience` and `soon`: see `Patience` and `P9Driver`."""
        self.core = core
        self.connections = 0
        """How many there were."""
        self.driver = P9Driver(self, self._connected, soon=soon)
        self._name = name
        self._patience = Patience(core, patience)
        self._first = asyncio.Event()
        self._closed = False

    @property
    def place(self) -> str:
        """The device in words."""
        return self._name or self.driver.tag

    async def start(self) -> None:
        """Wait for the first session. Raises `LocalError` when none comes in time."""
        try:
            async with asyncio.timeout(self._patience.seconds):
                await self._first.wait()
        except TimeoutError:
            raise LocalError(f"{self.place}: the device has not answered for {self._patience.seconds:g} s") from None

    async def close(self) -> None:
        """No more calls; the driver goes with its partition."""
        self.ended()

    def ended(self) -> None:
        """See `p9_channel.P9Connection`."""
        self._closed = True
        self._patience.end()
        self.core.close()

    # What the channel says

    def _connected(self) -> None:
        if not self._closed:
            self.core.connect(self.driver, self._agreed)

    def _agreed(self) -> None:
        self.connections += 1
        self._patience.end()
        self._first.set()

    def received(self, message: memoryview) -> None:
        """See `p9_channel.P9Connection`."""
        if not self._closed:
            self.core.received(message)

    def lost(self) -> None:
        """See `p9_channel.P9Connection`."""
        if not self._closed:
            self._patience.begin()
            self.core.lost()
