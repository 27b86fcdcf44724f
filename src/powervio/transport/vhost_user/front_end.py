"""The driver's side of vhost-user: what a hypervisor does for its guest, done for a `Driver` of ours.

`FrontEnd` connects to a back end, negotiates, shares memory and rings, and runs one driver in an asyncio loop::

    front_end = FrontEnd(path, BlockDriver())
    await front_end.start()

When the back end goes away it connects again. If the back end keeps a record of requests in flight (INFLIGHT_SHMFD),
the rings stay as they are and the driver notices nothing but the pause; if not, the driver is stopped and started, and
submits again what had not completed.

Control messages are exchanged in the loop's thread, and it waits for replies (`front_session`): the back end has to be
in another thread or process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from powervio.errors import PowervioError, RemoteError, Verdict
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.driver_memory import GUEST_BASE, DriverMemory, VhostDriverQueue
from powervio.transport.vhost_user.front_session import PROTOCOL_FEATURES, FrontSession
from powervio.virtio import features as feature
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport

__all__ = ["PROTOCOL_FEATURES", "RING_FEATURES", "FrontEnd"]

_log = logging.getLogger(__name__)

_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before each try to connect again; the last one for all that follow."""
RING_FEATURES = feature.VERSION_1 | feature.INDIRECT_DESC | feature.EVENT_IDX
"""What is accepted by default."""


class _Transport(DriverTransport):
    """One session as the driver sees it."""

    def __init__(self, front_end: FrontEnd, features: int, queues: Sequence[DriverQueue]) -> None:
        self.features = features
        self.byteorder: ByteOrder = "little"
        self.queues = queues
        self._front_end = front_end

    def config(self) -> bytes:
        return self._front_end.read_config()

    def write_config(self, offset: int, data: bytes) -> None:
        self._front_end.write_config(offset, data)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        return self._front_end.memory.allocate(length)

    def release(self, buffer: Buffer) -> None:
        self._front_end.memory.release(buffer)


class FrontEnd:
    """One driver, one back end."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        driver: Driver,
        *,
        ring_features: int = RING_FEATURES,
        protocol_features: int = PROTOCOL_FEATURES,
        queue_size: int = 128,
        memory: int = 256 << 20,
        config_size: int = 60,
        reconnect: bool = True,
    ) -> None:
        """`ring_features` and `protocol_features` are accepted where they are offered. `memory` is bytes.

        `config_size` is how much of the config space is asked for: some back ends refuse more than they have.
        """
        self.path = os.fspath(path)
        self.driver = driver
        self.memory = DriverMemory(memory)
        self.features = 0
        """Negotiated."""
        self.protocol_features = 0
        self.queues: list[VhostDriverQueue] = []
        self.sessions = 0
        """Connections that came as far as running rings."""
        self.failure = ""
        """Why the last connection ended or could not be made."""
        self.broken: set[int] = set()
        """Queues of which the back end said that it cannot serve them."""
        self._ring_features = ring_features
        self._wanted_protocol = protocol_features
        self._queue_size = queue_size
        self._config_size = config_size
        self._reconnect = reconnect
        self._session: FrontSession | None = None
        self._inflight: tuple[wire.Inflight, int] | None = None
        self._driving = False
        self._log_area: MappedArea | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._tries = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life

    async def start(self) -> None:
        """Connect and begin. Raises `PowervioError` when that cannot be done now; it is not tried again then."""
        self._loop = asyncio.get_running_loop()
        try:
            self._connect()
        except PowervioError:
            self._disconnect()
            raise

    async def close(self) -> None:
        """Stop the rings, then the driver, and give everything back."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._session is not None:
            with suppress(PowervioError):
                self.stop_rings()
        self._disconnect()
        self._end_driving()
        self._drop_inflight()
        self.driver.release(self.memory.release)
        if self._log_area is not None:
            self._log_area.close()
        self.memory.close()

    @property
    def connected(self) -> bool:
        """Whether the rings run."""
        return self._session is not None

    def _connect(self) -> None:
        session = self._session = FrontSession(
            self.path,
            self.memory,
            protocol_features=self._wanted_protocol,
            config_size=self._config_size,
            config_changed=self._config_changes,
        )
        logging = self._log_area is not None
        count, new = self._negotiate(session)
        session.share_memory()
        if new:
            self._make_queues(count)
        self._set_up_inflight(session, new)
        for queue in self.queues:
            session.set_up_queue(queue, logging=logging)
        session.start(self.queues)
        self.sessions += 1
        self._tries = 0
        self._watch(session)
        if new:
            self.driver.start(_Transport(self, self.features, self.queues))
        for queue in self.queues:
            queue.ring_the_bell()  # starts the ring; what is in it already, of before, is seen too
            self._completed(queue)

    def _negotiate(self, session: FrontSession) -> tuple[int, bool]:
        """How many queues there are to be, and whether the driver begins anew."""
        offered = session.greet()
        self.protocol_features = session.protocol_features
        wanted = self.driver.select_features(offered) | self._ring_features
        features = feature.choose(offered, wanted, self.driver.device_id)
        recorded = self.protocol_features & wire.P_INFLIGHT_SHMFD and self._inflight is not None
        new = not self._driving or not recorded or features != self.features
        if self._driving and new:
            self._end_driving()
        self.features = features
        session.accept(features, logging=self._log_area is not None)
        config = session.read_config() if self.protocol_features & wire.P_CONFIG else b""
        count = self.driver.queue_count(features, config, "little")
        most = session.most_queues()
        return min(count, max(count, 1) if most is None else most), new

    def _make_queues(self, count: int) -> None:
        self.queues = [VhostDriverQueue(index, self._queue_size, self.memory, self.features) for index in range(count)]
        self.broken.clear()
        self._driving = True

    def _set_up_inflight(self, session: FrontSession, new: bool) -> None:
        if not self.protocol_features & wire.P_INFLIGHT_SHMFD:
            self._drop_inflight()
            return
        if new or self._inflight is None:
            self._drop_inflight()
            self._inflight = session.new_inflight(len(self.queues), self._queue_size)
        if self._inflight is not None:
            session.use_inflight(*self._inflight)

    def _drop_inflight(self) -> None:
        if self._inflight is not None:
            os.close(self._inflight[1])
            self._inflight = None

    def _need(self) -> FrontSession:
        if self._session is None:
            raise RemoteError("there is no connection to a back end", Verdict.CLOSE)
        return self._session

    def stop_rings(self) -> list[int]:
        """Disable and stop all rings; where each stands. `start` of another front end goes on there."""
        return self._need().stop(self.queues)

    def read_config(self) -> bytes:
        """The config space, as far as `config_size`. Raises `RemoteError` when the back end has none."""
        return self._need().read_config()

    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the config space. Raises `RemoteError` when that is refused."""
        self._need().write_config(offset, data)

    def start_log(self) -> memoryview:
        """Have everything that the device writes marked, as at a migration; the log, a bit for each 4 KiB."""
        session = self._need()
        size = (GUEST_BASE + self.memory.area.size) // PAGE_SIZE // 8
        self._log_area = MappedArea.create("log", size + -size % PAGE_SIZE)
        session.set_log(self._log_area.size, self._log_area.fd)
        session.send_features(logging=True)
        for queue in self.queues:
            session.send_address(queue, logging=True)
        return self._log_area.view

    # -- events

    def _watch(self, session: FrontSession) -> None:
        loop = self._loop
        assert loop is not None
        loop.add_reader(session.connection.fileno(), self._connection_readable)
        if session.channel is not None:
            loop.add_reader(session.channel.fileno(), self._channel_readable)
        for queue in self.queues:
            loop.add_reader(queue.call_fd, self._called, queue)
            loop.add_reader(queue.error_fd, self._queue_failed, queue)

    def _losing(self) -> _Losing:
        return _Losing(self)

    def _connection_readable(self) -> None:
        with self._losing():
            self._need().expect_nothing()

    def _channel_readable(self) -> None:
        with self._losing():
            self._need().serve_channel()

    def _config_changes(self) -> None:
        assert self._loop is not None
        self._loop.call_soon(self._config_changed)

    def _config_changed(self) -> None:
        if self.connected and self._driving:
            with self._losing():
                self.driver.config_changed()

    def _called(self, queue: VhostDriverQueue) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(queue.call_fd)
        self._completed(queue)

    def _completed(self, queue: VhostDriverQueue) -> None:
        with self._losing():
            self.driver.completed(queue)
            while not queue.ending and queue.ring.enable_interrupts():
                self.driver.completed(queue)

    def _queue_failed(self, queue: VhostDriverQueue) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(queue.error_fd)
        self.broken.add(queue.index)

    def lost(self, why: str) -> None:
        """The back end is gone, or did what it must not: leave it, and connect again."""
        if self._closed or self._session is None:
            return
        self.failure = why
        _log.info("back end %s: %s", self.path, why)
        self._disconnect()
        if self._inflight is None:
            self._end_driving()
        if self._reconnect:
            self._try_later()
        else:
            self._end_driving()

    def _try_later(self) -> None:
        assert self._loop is not None
        pause = _PAUSES[min(self._tries, len(_PAUSES) - 1)]
        self._tries += 1
        self._retry = self._loop.call_later(pause, self._try)

    def _try(self) -> None:
        self._retry = None
        try:
            self._connect()
        except PowervioError as error:
            self.failure = str(error)
            self._disconnect()
            self._try_later()

    def _disconnect(self) -> None:
        loop, session = self._loop, self._session
        self._session = None
        if session is not None:
            if loop is not None:
                for connection in (session.connection, session.channel):
                    if connection is not None and not connection.closed:
                        loop.remove_reader(connection.fileno())
            session.close()
        if loop is not None:
            for queue in self.queues:
                loop.remove_reader(queue.call_fd)
                loop.remove_reader(queue.error_fd)

    def _end_driving(self) -> None:
        """The driver's session is over; what it had in flight is its own again."""
        if not self._driving:
            return
        self._driving = False
        for queue in self.queues:
            queue.ending = True
        self.driver.stop()
        for queue in self.queues:
            queue.release()
        self.queues = []


class _Losing:
    """Around what may find that the back end is gone."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> bool:
        if isinstance(error, RemoteError):
            self._front_end.lost(str(error))
            return True
        return False
