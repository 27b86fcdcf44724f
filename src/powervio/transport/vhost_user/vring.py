"""One ring of a back end: what the front end told of it, and the device's queue while it is started."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field

from powervio.errors import RemoteError, Verdict
from powervio.memory import hw
from powervio.memory.abstract import RingMemory
from powervio.transport.vhost_user.inflight import InflightQueue, PackedInflight, SplitInflight
from powervio.transport.vhost_user.memory import GuestMemory
from powervio.transport.vhost_user.protocol import VRING_F_LOG, VringAddress
from powervio.transport.vhost_user.queue import VhostQueue
from powervio.transport.vhost_user.ring_state import Phase
from powervio.virtio import features as feature
from powervio.virtio.device_ring import DeviceRing
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_layout import EVENT_BYTES, FIRST_POSITION, descriptors_between, ring_bytes
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_layout import available_bytes, descriptors_bytes, used_bytes


@dataclass(slots=True)
class Vring:
    """What a front end told of one ring. Descriptors of files are the ring's own."""

    index: int
    phase: Phase = Phase.STOPPED_DISABLED
    size: int = 0
    """Entries."""
    address: VringAddress | None = None
    base: int = 0
    """As SET_VRING_BASE and GET_VRING_BASE have it: where to go on when it is started."""
    kick: int = -1
    call: int = -1
    error: int = -1
    polled: bool = False
    """Whether there are no kicks, so that it has to be looked at all the time."""
    broken: str = ""
    """Why it is not served any more until it is stopped."""
    queue: VhostQueue | None = None
    forgotten: bool = False
    """Whether what is on record of it is void at the next start: `base` says where it stands, and nothing is in flight.
    So it is after a reset, and after a stop with nothing left; not with a record that the front end brought since."""
    places: list[object] = field(default_factory=list)
    """Which bytes of which files the areas of `queue` are."""

    def replace_fd(self, name: str, fd: int) -> None:
        """Take a descriptor, -1 for none, in place of the one of that name: `kick`, `call` or `error`."""
        old = getattr(self, name)
        setattr(self, name, fd)
        if old >= 0:
            with suppress(OSError):
                os.close(old)

    def signal(self, name: str) -> None:
        """Write to the descriptor of that name; one that nobody reads is full, and that is as good."""
        fd = getattr(self, name)
        if fd >= 0:
            with suppress(OSError):
                os.write(fd, _ONE)

    def log_used(self, memory: GuestMemory, features: int) -> None:
        """Mark the ring's own memory that may have been written. Raises `RemoteError` when the log is too small."""
        address = self.address
        if address is not None and address.flags & VRING_F_LOG:
            areas = self.areas(features)
            # of a packed ring the descriptors are written; the log address is that of the descriptor ring then
            memory.written_guest(address.log, areas[0][1] if features & feature.RING_PACKED else areas[2][1])

    def areas(self, features: int) -> list[tuple[int, int, int, str]]:
        """Address, bytes, alignment and name of the three areas. Raises `RemoteError` when it is not set up."""
        address = self.address
        if address is None or not self.size:
            raise RemoteError(f"ring {self.index} has no addresses or no size", Verdict.NEEDS_RESET)
        if features & feature.RING_PACKED:
            return [
                (address.descriptors, ring_bytes(self.size), 16, "descriptor ring"),
                (address.available, EVENT_BYTES, 4, "driver event suppression"),
                (address.used, EVENT_BYTES, 4, "device event suppression"),
            ]
        return [
            (address.descriptors, descriptors_bytes(self.size), 16, "descriptor table"),
            (address.available, available_bytes(self.size), 2, "available ring"),
            (address.used, used_bytes(self.size), 4, "used ring"),
        ]


_ONE = (1).to_bytes(8, "little")
_USED = 1 << 15  # of a packed descriptor's flags (virtio 1.4, 2.8.1)


def notification_fd(fd: int, what: str) -> int:
    """Make a descriptor of notifications ready: it never blocks. Raises `RemoteError` for what is none, and closes it.

    Files and devices are none: they are always readable, and a loop that waits for them would never sleep.
    """
    try:
        mode = os.fstat(fd).st_mode
        eventfd = stat.S_IFMT(mode) == 0 and os.readlink(f"/proc/self/fd/{fd}").startswith("anon_inode:[eventfd")
        if not (eventfd or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise RemoteError(f"{what}: the descriptor is neither an eventfd nor a pipe or socket")
        os.set_blocking(fd, False)
    except OSError as error:
        os.close(fd)
        raise RemoteError(f"{what}: {error.strerror}") from error
    except RemoteError:
        os.close(fd)
        raise
    return fd


def make_ring(
    size: int, memory: RingMemory, features: int, base: int, record: InflightQueue | None, forgotten: bool
) -> tuple[DeviceRing, list[int]]:
    """The ring that was negotiated, the one place that chooses it, and what `retake` is to be given first, in order.

    It goes on at `base`; with a record of requests in flight, where the used ring and the record say. `forgotten`: what
    is on record is void, and it begins anew at `base`. Raises `RemoteError` for a ring and a record that do not fit.
    """
    event_idx = bool(features & feature.EVENT_IDX)
    indirect = bool(features & feature.INDIRECT_DESC)
    in_order = bool(features & feature.IN_ORDER)
    again: list[int] = []
    ring: DeviceRing
    if features & feature.RING_PACKED:
        base = packed_base(base, size, memory)
        used_index, last_available = base >> 16, base & 0xFFFF
        if isinstance(record, PackedInflight):
            if record.begun and not forgotten:
                again = record.recover(memory.descriptors, used_index)
                used_index, last_available = record.used_index, record.last_available
            else:
                record.start(used_index)
        if descriptors_between(last_available, used_index, size) > size:
            raise RemoteError(f"base {base:#x} of a packed ring of {size} entries", Verdict.NEEDS_RESET)
        ring = PackedDeviceRing(
            size,
            memory,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            last_available=last_available,
            used_index=used_index,
        )
    else:
        used_index = hw.le16(hw.ld16(memory.used, 2))
        last_available = base
        if isinstance(record, SplitInflight):
            if forgotten:
                record.start(used_index)
            else:
                again = record.recover(used_index, used_ids(memory, size), in_order)
                last_available = used_index + len(again)
        ring = SplitDeviceRing(
            size,
            memory,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            last_available=last_available,
            used_index=used_index,
        )
    if record is not None:
        ring.keep_record(record)
    return ring, again


def packed_base(base: int, size: int, memory: RingMemory) -> int:
    """Where a packed ring of which a front end said `base` goes on: as it said, unless the ring is new.

    The wrap counters of a new ring are 1 (virtio 1.4, 2.8.1). Linux's virtio_uml says 0 of it: slot 0 with both wrap
    counters 0, where a ring stands after an odd number of whole rounds. DPDK's virtio-user says the available position
    alone, and 0 for the used one: where a ring stands then, with as many descriptors in flight as it has. The
    descriptors tell which it is: in a new ring no USED bit is set, neither by the driver, for its wrap counter is 1,
    nor by the device. In one that was gone round, the device has set it at least once, for no chain is longer than the
    ring, and a driver that makes such a place available again sets it too, for its wrap counter is 0 now (2.8.1).
    """
    if base not in (0, FIRST_POSITION) or any(
        hw.le16(hw.ld16(memory.descriptors, 16 * slot + 14)) & _USED for slot in range(size)
    ):
        return base
    return FIRST_POSITION << 16 | FIRST_POSITION


def base_of(ring: DeviceRing, features: int) -> int:
    """Where a ring stands, as GET_VRING_BASE tells it; of a packed one both positions."""
    if features & feature.RING_PACKED:
        return ring.used_index << 16 | ring.last_available & 0xFFFF
    return ring.last_available & 0xFFFF


def used_ids(memory: RingMemory, size: int) -> list[int]:
    """The ids in the slots of a split used ring; what is no descriptor is left to the reader."""
    return [hw.le32(hw.ld32(memory.used, 4 + 8 * slot)) for slot in range(size)]
