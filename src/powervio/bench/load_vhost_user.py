"""A disk of a vhost-user back end, for `bench.load`: connected and negotiated as any front end does it."""

from __future__ import annotations

import os
from types import TracebackType

from powervio.bench.load import PATIENCE, EventPort, Load
from powervio.errors import LocalError
from powervio.transport.vhost_user.driver_memory import DriverMemory, VhostDriverQueue
from powervio.transport.vhost_user.front_session import FrontSession
from powervio.virtio import block as blk
from powervio.virtio import features as feature

RING_FEATURES = feature.VERSION_1 | feature.INDIRECT_DESC | feature.EVENT_IDX
"""What is accepted by default, as Linux's drivers do."""
QUEUE_SIZE = 128
_MEMORY = 8 << 20
_CONFIG = 8
"""Bytes of config space that are needed: the capacity."""


class VhostUserDisk:
    """One connection to a back end, with one queue; a context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ring_features: int = RING_FEATURES,
        queue_size: int = QUEUE_SIZE,
    ) -> None:
        """Connect. Raises `LocalError` when nobody listens or it is no disk, `RemoteError` for what goes wrong."""
        self._memory = DriverMemory(_MEMORY)
        self._closed = False
        self._queue: VhostDriverQueue | None = None
        self._session: FrontSession | None = None
        try:
            self._memory.area.populate()
            self._session = session = FrontSession(path, self._memory, config_size=_CONFIG)
            self.features = self._negotiate(session, ring_features)
            """Negotiated."""
            self.blocks = self._capacity(session)
            """Whole blocks of 4 KiB."""
            session.share_memory()
            self._queue = queue = VhostDriverQueue(0, queue_size, self._memory, self.features)
            session.set_up_queue(queue)
            session.start([queue])
            queue.ring_the_bell()
            self.port = EventPort(
                queue.ring,
                queue.kick_fd,
                queue.call_fd,
                indirect=bool(self.features & feature.INDIRECT_DESC),
                event_idx=bool(self.features & feature.EVENT_IDX),
            )
            """The driver's side of the queue."""
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _negotiate(session: FrontSession, ring_features: int) -> int:
        offered = session.greet()
        # the rings need one region only, and nothing of the block device's own is used
        # a driver that cannot flush has every write made stable before it completes (virtio 1.4, 5.2.6.2)
        features = feature.choose(offered, ring_features | blk.F_FLUSH, blk.DEVICE_ID)
        session.accept(features)
        return features

    @staticmethod
    def _capacity(session: FrontSession) -> int:
        sectors = int.from_bytes(session.read_config()[:8], "little")
        blocks = sectors * blk.SECTOR // 4096
        if blocks < 1:
            raise LocalError(f"a disk of {sectors} sectors has no block of 4096 bytes")
        return blocks

    def load(
        self, depth: int, *, writes: bool = False, first: int = 0, seed: int = 4096, patience: float = PATIENCE
    ) -> Load:
        """A load of reads, or of writes: see `Load`. Loads of one disk run one after the other."""
        return Load(
            self.port,
            self._memory.allocate,
            depth,
            self.blocks,
            writes=writes,
            first=first,
            seed=seed,
            patience=patience,
        )

    def close(self) -> None:
        """Disconnect; harmless the second time."""
        if self._closed:
            return
        self._closed = True
        if self._session is not None:
            self._session.close()
        if self._queue is not None:
            self._queue.release()
        self._memory.close()

    def __enter__(self) -> VhostUserDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
