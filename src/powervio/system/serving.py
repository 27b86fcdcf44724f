"""What a VIO server has of one disk: the image, the device on it, and its end of the connection to the client.

The same for a VIO server in the hypervisor's process and for one in a process of its own (`server_main`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.throttle import Limits
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.papr.nodes import VdeviceNode
from powervio.storage.image import Image
from powervio.storage.nbd_backing import NbdBacking
from powervio.storage.open import open_disk
from powervio.system.config import Disk
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel


def open_image(declared: Disk, folder: str | None) -> Backing:
    """Open a disk's image; blocks. `folder` is for the sockets of QEMU's daemons. Raises `LocalError`."""
    return open_disk(
        declared.image,
        image_format=declared.format,
        read_only=declared.readonly,
        direct=declared.direct,
        create_size=size_to_make(declared),
        folder=folder,
    )


def size_to_make(declared: Disk) -> int | None:
    """`size` makes an image that is not there; one that is there may have any size."""
    return None if declared.size is None or os.path.exists(declared.image) else int(declared.size)


class DiskEnd:
    """A disk at its VIO server. Made in any thread; all from `serve` on but `flush` and `close` is for the server's."""

    def __init__(self, declared: Disk, image: Backing) -> None:
        """Take over the image. Raises `LocalError` for one that does not fit the options; it stays open then."""
        self.image = image
        self.device = _make_device(declared, image)
        self.server: VirtioCrq
        """From `serve` on."""

    def serve(self, kernel: PartitionKernel, node: VdeviceNode) -> None:
        """Have the device behind an adapter, not started yet."""
        self.server = VirtioCrq(kernel, node, self.device)

    def start(self) -> None:
        """Wait for the client."""
        self.server.start()

    def stop(self) -> None:
        """See `VirtioCrq.stop`."""
        self.server.stop()

    def retire(self) -> None:
        """See `VirtioCrq.retire`."""
        self.server.retire()

    def flush(self) -> None:
        """Make what was completed stable; in any thread. Raises `OSError`."""
        self.image.flush()

    def close(self) -> None:
        """Close the image; in any thread, when nothing serves it. Raises `OSError`; it is closed all the same."""
        self.image.close()

    # -- size

    @property
    def size(self) -> int:
        """Of the image, in bytes."""
        return self.image.size

    @property
    def capacity(self) -> int:
        """Of the device, in bytes."""
        return self.device.capacity

    @property
    def block_size(self) -> int:
        """Bytes of a logical block."""
        return self.device.block_size

    @property
    def read_only(self) -> bool:
        """Whether the client can only read it."""
        return self.device.read_only

    @property
    def is_raw(self) -> bool:
        """Whether the image is one that can be resized here."""
        return isinstance(self.image, Image)

    def resize_image(self, size: int) -> None:
        """Change the image itself. Raises `LocalError`."""
        assert isinstance(self.image, Image)
        self.image.resize(size)

    def image_resized(self, size: int) -> None:
        """Somebody else changed the image."""
        assert isinstance(self.image, Image)
        self.image.resized(size)

    def resize_device(self, size: int) -> None:
        """Let the client have so many bytes."""
        self.device.resize(size)

    # -- looking

    def facts(self) -> dict[str, Any]:
        """What `ps` shows of it: plain values; in any thread."""
        device, server, image = self.device, self.server, self.image
        return {
            "state": server.state,
            "revision": server.revision,
            "capacity": image.size,
            "requests": device.requests,
            "rejected": server.rejected,
            "counters": {
                **dataclasses.asdict(device.counters),
                "throttled_seconds": round(device.counters.throttled_seconds, 3),
            },
            "limits": None if device.options.limits is None else dataclasses.asdict(device.options.limits),
            "delayed": device.delayed,
            "reconnections": image.reconnections if isinstance(image, NbdBacking) else 0,
        }


def _make_device(declared: Disk, image: Backing) -> BlockDevice:
    block_size = declared.block_size or image.block_size
    if image.size % block_size:
        raise LocalError(f"image {declared.image} has {image.size} bytes; expected whole blocks of {block_size}")
    options = BlockOptions(
        serial=declared.serial,
        read_only=declared.readonly,
        queues=declared.queues,
        queue_size=declared.queue_size,
        block_size=declared.block_size,
        writeback=declared.write_cache,
        discard=declared.discard,
        limits=_limits(declared),
    )
    return BlockDevice(image, options)


def _limits(declared: Disk) -> Limits | None:
    """What one VIO server may let through. Several that take turns have a part each, so that together they keep it."""
    parts = declared.paths if declared.policy == "round-robin" else 1
    names = ("bytes_per_second", "requests_per_second", "burst_bytes", "burst_requests")
    values = [getattr(declared, name) for name in names]
    if values[0] is None and values[1] is None:
        return None
    return Limits(*(None if value is None else max(1, value // parts) for value in values))
