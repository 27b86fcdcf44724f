"""The virtio 9P transport device: T-messages from the ring to a session of the 9P server, and R-messages back.

docs/virtio-9p.md says what device and driver owe each other. The device knows a message's header and where the data of
a read or a write stand (`p9_serve`); what messages mean is the session's business. A session lives as long as one of
the device: from DRIVER_OK to reset. Tfsync is carried out beside the others (`p9_syncs`).

Each access to a payload may cost the transport a hypervisor call. A small message is read by one, a small answer is
written by one; where the transport has a `Batch`, those of many requests share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from powervio.devices.p9_serve import P9Server, P9Session
from powervio.devices.p9_syncs import DeviceSyncs
from powervio.files.p9_session import Session
from powervio.files.p9_syncs import SyncThread
from powervio.virtio import p9
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue

ENDING = 5.0
"""Seconds that a Tfsync may take when the server ends."""


@dataclass(slots=True)
class P9Counters:
    """What a device has done since it was made."""

    messages: int = 0
    bytes_read: int = 0
    """By the driver, from files."""
    bytes_written: int = 0
    errors: int = 0
    """Rlerror that was answered."""
    refused: int = 0
    """Buffers that held no message, or no room for an answer."""


class P9Device(Device):
    """A share, as a driver finds it by its mount tag. Messages are carried out one after the other, but for Tfsync."""

    device_id = p9.DEVICE_ID
    queue_size = p9.QUEUE_SIZE
    repeatable = False

    def __init__(self, tag: str, session: Callable[[], P9Session], *, close: Callable[[], None] | None = None) -> None:
        """`session` makes one; `close` gives back what all of them stood on. Raises `LocalError` for a bad tag."""
        self._server: P9Server | None = None
        self._syncs: DeviceSyncs | None = None
        self._thread = SyncThread()
        self._counters = P9Counters()
        super().__init__()
        self.tag = tag
        self._tag = p9.check_tag(tag)
        self._make = session
        self._close = close

    @property
    def features(self) -> int:
        """MOUNT_TAG is always offered (F2.1)."""
        return p9.F_MOUNT_TAG

    def config(self, byteorder: ByteOrder) -> bytes:
        """See `p9.pack_config`."""
        return p9.pack_config(self._tag, byteorder)

    def start(self, session: DeviceSession) -> None:
        """A session of the device is one of 9P (F4.1)."""
        super().start(session)
        self._end()
        made = self._make()
        if isinstance(made, Session) and self.scheduler is not None:
            self._syncs = DeviceSyncs(self._thread, self.scheduler, made.tree.identity)
        self._server = P9Server(made, self._syncs)

    def reset(self) -> None:
        """All fids are gone (F4.1)."""
        super().reset()
        self._end()

    def queue_reset(self, index: int) -> None:
        """What waits for a disk is forgotten; fids stay."""
        if self._syncs is not None:
            self._syncs.forget()

    def drain(self) -> None:
        """What waits for a disk is answered (F4.4)."""
        if self._syncs is not None:
            self._syncs.settle()

    def close(self) -> None:
        """The server was terminated."""
        self._end()
        self._thread.close(ENDING)
        if self._close is not None:
            self._close()
            self._close = None

    def _end(self) -> None:
        self._counters = self.counters
        if self._syncs is not None:
            self._syncs.forget()
            self._syncs = None
        if self._server is not None:
            self._server.close()
            self._server = None

    # -- requests

    @property
    def counters(self) -> P9Counters:
        """What it has done."""
        counted = replace(self._counters)
        if self._server is not None:
            counted.messages += self._server.messages
            counted.bytes_read += self._server.bytes_read
            counted.bytes_written += self._server.bytes_written
        for part in (self._server, self._syncs):
            if part is not None:
                counted.errors += part.errors
                counted.refused += part.refused
        return counted

    @property
    def requests(self) -> int:
        """Messages since the device was made."""
        return self.counters.messages

    @requests.setter
    def requests(self, count: int) -> None:
        """See `Device`: there are none in the beginning."""

    def process(self, queue: DeviceQueue) -> None:
        """Serve what is available, in its order; a Tfsync is answered later."""
        server = self._server
        if server is None:
            return
        if queue.batch is not None:
            server.serve_all(queue)
        else:
            server.serve_mapped(queue)
