"""The guest memory that a front end shares: mapped regions, rings and request data in them.

A region is a piece of a file that the front end sends. Descriptors name guest-physical addresses, rings user addresses
of the front end; with ACCESS_PLATFORM both are I/O virtual addresses, translated by an IOTLB whose entries give user
addresses. `GuestMemory` has all three kinds, and the dirty log.

A file must be as large as its region says when it is mapped. What a front end cuts off later cannot be prevented: its
rings break when that is met (`memory/mapping.py`), before anything more of them is served. Seal the file
(F_SEAL_SHRINK), as QEMU's memory-backend-memfd does with seal=on, the default.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterable, Sequence

from powervio.errors import RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.memory.mapping import GuardedMap
from powervio.transport.vhost_user.protocol import ACCESS_READ, ACCESS_WRITE, Region
from powervio.transport.vhost_user.translate import RegionMap, TranslationCache, mark

MAX_SLOTS = 509
"""Regions with CONFIGURE_MEM_SLOTS; what vhost in the Linux kernel takes too."""
_ADDRESSES = 1 << 64


class MappedFile:
    """A part of a file that somebody else made, mapped: its size was checked."""

    def __init__(self, fd: int, offset: int, size: int, what: str) -> None:
        """Map `size` bytes from `offset`; `fd` stays the caller's. Raises `RemoteError`."""
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise RemoteError(f"{what}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise RemoteError(f"{what}: its descriptor is no file that memory could be in")
        if size <= 0 or offset < 0 or offset + size > status.st_size:
            raise RemoteError(f"{what}: {size} bytes at {offset} of a file of {status.st_size}")
        # a mapping begins at a page of the file, which has large ones in hugetlbfs
        grain = max(mmap.ALLOCATIONGRANULARITY, status.st_blksize)
        before = offset % grain
        try:
            memory = GuardedMap.of(fd, before + size, offset - before)
        except (OSError, ValueError, OverflowError) as error:
            raise RemoteError(f"{what}: cannot be mapped ({error})") from error
        self.view = memoryview(memory)[before : before + size]
        self.identity = (status.st_dev, status.st_ino, offset)
        """The file, and where in it the mapping begins: two mappings of equal identity are the same bytes."""

    def close(self) -> None:
        """Unmap, when the last view of a ring or of a request is gone too."""
        self.view.release()

    @property
    def broken(self) -> bool:
        """Whether some of it was missing: what is read here is void, and what is stored lost."""
        memory = self.view.obj
        return isinstance(memory, GuardedMap) and memory.broken


class _Mapped:
    """A region and its mapping."""

    def __init__(self, region: Region, fd: int) -> None:
        what = f"memory region of {region.size} bytes at {region.guest:#x}"
        for address in (region.guest, region.user):
            if address + region.size > _ADDRESSES:
                raise RemoteError(f"{what}: goes beyond 2^64")
        self.region = region
        self.file = MappedFile(fd, region.offset, region.size, what)


def _check_overlaps(regions: Iterable[Region]) -> None:
    regions = list(regions)
    for ranges in ([(has.guest, has.size) for has in regions], [(has.user, has.size) for has in regions]):
        end = 0
        for address, size in sorted(ranges):
            if address < end:
                raise RemoteError(f"memory regions overlap at {address:#x}")
            end = address + size


class GuestMemory:
    """All that is shared: regions, IOTLB, log."""

    def __init__(self) -> None:
        self._mapped: list[_Mapped] = []
        self._map = RegionMap([])
        self._log: MappedFile | None = None
        self.logging = False
        """Whether LOG_ALL is negotiated."""
        self.iotlb: TranslationCache | None = None
        """Set while ACCESS_PLATFORM is negotiated."""
        self.miss: Callable[[int, int], None] | None = None
        """Asks the front end for `(I/O virtual address, access)`; returns when the entry is there. Raises
        `RemoteError`."""

    # -- regions

    @property
    def regions(self) -> list[Region]:
        """What is mapped now."""
        return [mapped.region for mapped in self._mapped]

    def set_table(self, regions: Sequence[Region], fds: Sequence[int]) -> None:
        """Take these regions instead of all others, or none of them. Raises `RemoteError`. `fds` stay the caller's."""
        if len(regions) != len(fds):
            raise RemoteError(f"a memory table of {len(regions)} regions with {len(fds)} descriptors")
        _check_overlaps(regions)
        new: list[_Mapped] = []
        try:
            for region, fd in zip(regions, fds, strict=True):
                new.append(_Mapped(region, fd))
        except BaseException:
            for mapped in new:
                mapped.file.close()
            raise
        old, self._mapped = self._mapped, new
        self._changed()
        for mapped in old:
            mapped.file.close()

    def add(self, region: Region, fd: int) -> None:
        """Add one region. Raises `RemoteError`."""
        if len(self._mapped) >= MAX_SLOTS:
            raise RemoteError(f"all {MAX_SLOTS} memory slots are taken")
        _check_overlaps([*self.regions, region])
        self._mapped.append(_Mapped(region, fd))
        self._changed()

    def remove(self, region: Region) -> None:
        """Take one region away, named by its addresses and size. Raises `RemoteError`."""
        for mapped in self._mapped:
            has = mapped.region
            if (has.guest, has.user, has.size) == (region.guest, region.user, region.size):
                self._mapped.remove(mapped)
                self._changed()
                mapped.file.close()
                return
        raise RemoteError(f"there is no memory region of {region.size} bytes at {region.guest:#x}")

    def _changed(self) -> None:
        self._map.set([(has.region.guest, has.region.user, has.region.size, has.file.view) for has in self._mapped])

    def close(self) -> None:
        """Unmap everything."""
        for mapped in self._mapped:
            mapped.file.close()
        self._mapped = []
        self._changed()
        self.set_log(None)
        self.logging = False
        self.iotlb = None

    # -- addresses

    @property
    def lost(self) -> bool:
        """Whether something of a region was missing (`RegionMap.check`)."""
        return any(mapped.file.broken for mapped in self._mapped)

    @property
    def map(self) -> RegionMap:
        """What guest-physical addresses are."""
        return self._map

    @property
    def space(self) -> RegionMap | None:
        """What addresses mean while no translation has to be asked for."""
        return self._map if self.iotlb is None else None

    def gather(self, address: int, length: int, access: int = ACCESS_READ) -> list[memoryview]:
        """The bytes that a descriptor names, in pieces. Raises `RemoteError`."""
        if self.iotlb is None:
            return self._map.guest(address, length)
        return [view for view, _ in self._translated(self.iotlb, address, length, access)]

    def _translated(
        self, iotlb: TranslationCache, address: int, length: int, access: int
    ) -> list[tuple[memoryview, int]]:
        """Pieces with their guest addresses."""
        pieces = []
        while length:
            user, room = iotlb.lookup(address, access)
            if not room:
                if self.miss is None:
                    raise RemoteError(f"I/O virtual address {address:#x} is not mapped")
                self.miss(address, access)
                user, room = iotlb.lookup(address, access)
                if not room:
                    raise RemoteError(f"I/O virtual address {address:#x} is not mapped for access {access}")
            count = min(room, length)
            pieces.append(self._map.user(user, count))
            address += count
            length -= count
            if address >= _ADDRESSES and length:
                raise RemoteError("an I/O virtual address beyond 2^64")
        return pieces

    def ring_area(self, address: int, length: int, align: int, what: str, access: int) -> memoryview:
        """One area of a ring. Raises `RemoteError` when it is not aligned, not mapped, or not in one piece."""
        if address % align:
            raise RemoteError(f"the {what} at {address:#x} is not aligned to {align} (virtio 1.4, 2.7)")
        if self.iotlb is None:
            view = self._map.user(address, length)[0]
        else:
            pieces = self._translated(self.iotlb, address, length, access)
            start = pieces[0][1]
            # entries of one page each are the rule; what they give has to be one run
            if any(guest != start + sum(len(each) for each, _ in pieces[:n]) for n, (_, guest) in enumerate(pieces)):
                raise RemoteError(f"the {what} at {address:#x} is scattered")
            views = self._map.guest(start, length)
            if len(views) != 1:
                raise RemoteError(f"the {what} at {address:#x} crosses memory regions")
            view = views[0]
        return view

    def identity(self, view_address: int, length: int) -> tuple[int, int, int] | None:
        """Which bytes of which file are at a user address, or None if they are not in one region."""
        for mapped in self._mapped:
            offset = view_address - mapped.region.user
            if offset >= 0 and offset + length <= mapped.region.size:
                device, inode, start = mapped.file.identity
                return device, inode, start + offset
        return None

    # -- log

    def set_log(self, log: MappedFile | None) -> None:
        """Mark in another log, or in none."""
        old, self._log = self._log, log
        if old is not None:
            old.close()

    def written(self, address: int, length: int) -> None:
        """Mark what was written at an address that descriptors name. Raises `RemoteError` when the log is too small."""
        if not self.logging or self._log is None:
            return
        if self.iotlb is None:
            mark(self._log.view, address, length)
        else:
            for view, guest in self._translated(self.iotlb, address, length, ACCESS_WRITE):
                mark(self._log.view, guest, len(view))
        self._check_log(self._log)

    def written_guest(self, address: int, length: int) -> None:
        """Mark what was written at a guest-physical address."""
        if self.logging and self._log is not None:
            mark(self._log.view, address, length)
            self._check_log(self._log)

    @staticmethod
    def _check_log(log: MappedFile) -> None:
        if log.broken:
            raise RemoteError("the file of the dirty log became shorter", Verdict.NEEDS_RESET)


class GuestRing(RingMemory):
    """The areas of one ring in guest memory."""

    def __init__(self, memory: GuestMemory, areas: Sequence[tuple[int, int, int, str]]) -> None:
        """`areas` are descriptors, available, used: `(address, bytes, alignment, name)`. Raises `RemoteError`."""
        self._memory = memory
        self.space = memory.space
        try:
            self.descriptors, self.available, self.used = (
                memory.ring_area(address, length, align, what, ACCESS_READ | ACCESS_WRITE)
                for address, length, align, what in areas
            )
        except RemoteError as error:
            raise RemoteError(str(error), Verdict.NEEDS_RESET) from error

    def fetch_table(self, address: int, length: int) -> memoryview:
        """See `RingMemory`."""
        pieces = self._memory.gather(address, length)
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
