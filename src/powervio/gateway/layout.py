"""The shared region of one partition as values: header, memory map, and where slots and device tree are.

Everything in the region is little-endian and naturally aligned (docs/gateway.md, G2). Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from powervio.errors import LocalError, RemoteError

MAGIC = int.from_bytes(b"PVIOGATE", "little")
VERSION = 1
HYPERVISOR_PEER = 0
"""Peer id of the hypervisor: a doorbell is a write of `HYPERVISOR_PEER << 16 | vector 0`."""
PARTITION_PEER = 1
CALL_VECTOR = 0
"""Vector of completed hcalls that somebody sleeps for."""
LINE_VECTOR = 1
"""Vector of the partition's external interrupt: H_XIRR has something to tell."""
FIRST_SOURCE_VECTOR = 2
"""Vectors from here on are for single interrupt sources (G_DIRECT)."""
MAX_VECTORS = 64

HEADER_SIZE = 0x100
_MAP_OFFSET = 0x200
_SLOTS_OFFSET = 0x1000
MAP_ROOM = (_SLOTS_OFFSET - _MAP_OFFSET) // 24
"""Most entries of the memory map."""

# Where the hypervisor's words stand that change during a session.
TREE_GENERATION = 0x80
TREE_LENGTH = 0x88
AWAKE = 0x8C
STATE = 0x90
ACCEPTED = 0x98

RUNNING = 0
ENDED = 1
"""`STATE`: the session is over; nothing that is posted will be taken."""

# A slot: the partition writes its first half, the hypervisor its second.
SLOT_SIZE = 256
POSTED = 0x00
TOKEN = 0x08
ARGUMENTS = 0x10
WAITING = 0x58
WITHDRAWN = 0x60
TAKEN = 0x80
DONE = 0x88
CODE = 0x90
RESULTS = 0x98
REGISTERS = 9
"""Argument registers (r4 to r12), and as many of results."""

# hcalls of the gateway itself, from the numbers that PAPR leaves to platforms (G7).
G_FEATURES = 0xFB00
G_TREE = 0xFB04
G_DIRECT = 0xFB08

FEATURE_SHARED_TCE = 1 << 0
"""The partition writes its TCE tables itself (G9)."""
FEATURE_DIRECT = 1 << 1
"""Interrupt sources may be directed to vectors of their own (G_DIRECT)."""
FEATURES = FEATURE_SHARED_TCE | FEATURE_DIRECT

_Q35_BELOW = 0x8000_0000
_Q35_MOST_BELOW = 0xB000_0000
_HEADER = struct.Struct("<QIIQQIIIIIIQIIIIII")
_ENTRY = struct.Struct("<QQQ")
MIN_REGION = 1 << 16
DEFAULT_REGION = 1 << 23
"""Room for the shared tables of 13 windows of 256 MiB."""
_TCE_OFFSET = 1 << 20
"""Where shared TCE tables begin in a region that is larger."""
DEFAULT_SLOTS = 64
MAX_SLOTS = 1024


@dataclass(frozen=True, slots=True)
class MapEntry:
    """A run of the partition's memory as a guest sees it (G3)."""

    guest: int
    """Guest physical address of its first byte."""
    length: int
    """Bytes, a multiple of 4096."""
    logical: int
    """Logical address: where in the memory file it is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The header: what the hypervisor says of the region before the partition sees it, and that never changes."""

    region_size: int
    """Bytes, a power of two: the size of BAR2."""
    memory_size: int
    """Bytes of the partition's memory: logical addresses are below this."""
    partition_id: int
    memory_map: tuple[MapEntry, ...]
    slots: int = DEFAULT_SLOTS
    """Slots in the ring of hcalls, a power of two."""
    vectors: int = 2
    """Interrupt vectors of the partition."""
    features: int = FEATURES
    """Feature bits that are offered."""
    slots_offset: int = _SLOTS_OFFSET
    tree_offset: int = 0
    """Where the device tree is; 0 lets `plan` choose."""
    tree_room: int = 0
    tce_offset: int = 0
    """Where shared TCE tables are; 0 for none."""
    tce_room: int = 0

    def encode(self) -> bytes:
        """The header's first 128 bytes."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            HEADER_SIZE,
            self.region_size,
            self.features,
            self.slots_offset,
            SLOT_SIZE,
            self.slots,
            self.vectors,
            self.tree_offset,
            self.tree_room,
            self.memory_size,
            _MAP_OFFSET,
            len(self.memory_map),
            self.partition_id,
            HYPERVISOR_PEER,
            self.tce_offset,
            self.tce_room,
        ).ljust(TREE_GENERATION, b"\0")

    def encode_map(self) -> bytes:
        """The entries of the memory map."""
        return b"".join(_ENTRY.pack(entry.guest, entry.length, entry.logical) for entry in self.memory_map)

    def write(self, region: memoryview) -> None:
        """Fill a region of zeroes."""
        header, entries = self.encode(), self.encode_map()
        region[: len(header)] = header
        region[_MAP_OFFSET : _MAP_OFFSET + len(entries)] = entries


def plan(
    memory_size: int,
    partition_id: int,
    *,
    memory_map: Sequence[MapEntry] = (),
    region_size: int = DEFAULT_REGION,
    slots: int = DEFAULT_SLOTS,
    vectors: int = 2,
    features: int = FEATURES,
) -> Layout:
    """A region for a partition. Without a map, guest physical and logical addresses are the same.

    Raises `LocalError` for what does not fit.
    """
    if region_size < MIN_REGION or region_size & (region_size - 1):
        raise LocalError(f"a region of {region_size} bytes; a power of two of {MIN_REGION} or more is needed")
    if not 1 <= slots <= MAX_SLOTS or slots & (slots - 1):
        raise LocalError(f"{slots} slots; a power of two up to {MAX_SLOTS} is needed")
    if not FIRST_SOURCE_VECTOR <= vectors <= MAX_VECTORS:
        raise LocalError(f"{vectors} vectors; {FIRST_SOURCE_VECTOR} to {MAX_VECTORS} are possible")
    entries = tuple(memory_map) or (MapEntry(0, memory_size, 0),)
    check_map(entries, memory_size)
    tree_offset = _SLOTS_OFFSET + -(-slots * SLOT_SIZE // 4096) * 4096
    tree_end = min(region_size, _TCE_OFFSET)
    if tree_offset >= tree_end:
        raise LocalError(f"{slots} slots leave no room for a device tree in a region of {region_size} bytes")
    if vectors == FIRST_SOURCE_VECTOR:
        features &= ~FEATURE_DIRECT
    if region_size == tree_end:
        features &= ~FEATURE_SHARED_TCE
    shared = bool(features & FEATURE_SHARED_TCE)
    return Layout(
        region_size,
        memory_size,
        partition_id,
        entries,
        slots,
        vectors,
        features,
        tree_offset=tree_offset,
        tree_room=tree_end - tree_offset,
        tce_offset=tree_end if shared else 0,
        tce_room=region_size - tree_end if shared else 0,
    )


def check_map(entries: Sequence[MapEntry], memory_size: int) -> None:
    """Raise `LocalError` unless the entries are runs of pages of the memory that do not overlap at either side."""
    if not 1 <= len(entries) <= MAP_ROOM:
        raise LocalError(f"a memory map of {len(entries)} entries; 1 to {MAP_ROOM} are possible")
    for entry in entries:
        if (
            entry.length <= 0
            or (entry.guest | entry.length | entry.logical) % 4096
            or min(entry.guest, entry.logical) < 0
        ):
            raise LocalError(f"{entry}: addresses and length are multiples of 4096 bytes")
        if entry.logical + entry.length > memory_size or entry.guest + entry.length > 1 << 64:
            raise LocalError(f"{entry}: not within a memory of {memory_size} bytes")
    for starts in ([(e.guest, e.length) for e in entries], [(e.logical, e.length) for e in entries]):
        end = 0
        for start, length in sorted(starts):
            if start < end:
                raise LocalError(f"entries of the memory map overlap at {start:#x}")
            end = start + length


def split_map(memory_size: int, below: int, above: int = 1 << 32) -> tuple[MapEntry, ...]:
    """The map of a machine with at most `below` bytes of memory under 4 GiB and the rest at `above`, in one file."""
    if memory_size <= below:
        return (MapEntry(0, memory_size, 0),)
    return MapEntry(0, below, 0), MapEntry(above, memory_size - below, below)


def vectors_of(header: bytes) -> int:
    """How many vectors the header of a region says that there are: so many eventfds come. Raises `RemoteError`."""
    if len(header) < _HEADER.size:
        raise RemoteError(f"a region of {len(header)} bytes has no room for the mailbox")
    vectors: int = _HEADER.unpack_from(header)[8]
    if not FIRST_SOURCE_VECTOR <= vectors <= MAX_VECTORS:
        raise RemoteError(f"the mailbox has {vectors} vectors; {FIRST_SOURCE_VECTOR} to {MAX_VECTORS} are possible")
    return vectors


def machine_map(arch: str, memory_size: int) -> tuple[MapEntry, ...]:
    """The map of QEMU's machine for an architecture as `uname -m` names it: x86_64 (q35) or ppc64le (pseries).

    q35 has all of it below 4 GiB up to 2.75 GiB, and 2 GiB there if there is more; pseries has it in one piece. Raises
    `LocalError` for another architecture.
    """
    if arch == "x86_64":
        return split_map(memory_size, _Q35_BELOW if memory_size >= _Q35_MOST_BELOW else memory_size)
    if arch in ("ppc64le", "ppc64"):
        return (MapEntry(0, memory_size, 0),)
    raise LocalError(f"where a machine of architecture {arch} has its memory is not known")


def decode(region: memoryview) -> Layout:
    """Read a header, as a partition does. Raises `RemoteError` for a region that it cannot use."""
    if len(region) < MIN_REGION:
        raise RemoteError(f"a region of {len(region)} bytes has no room for the mailbox")
    values = _HEADER.unpack_from(region)
    (
        magic, version, header_size, size, features, slots_offset, slot_size, slots, vectors, tree_offset, tree_room,
        memory_size, map_offset, map_count, partition_id, peer, tce_offset, tce_room,
    ) = values  # fmt: skip
    if magic != MAGIC:
        raise RemoteError(f"the region begins with {magic:#x}, which is no mailbox")
    if version != VERSION:
        raise RemoteError(f"the mailbox has version {version}; this side speaks version {VERSION}")
    if header_size < HEADER_SIZE or size != len(region) or slot_size != SLOT_SIZE or peer != HYPERVISOR_PEER:
        raise RemoteError(f"the mailbox's header is not one of version {VERSION}")
    if not slots or slots & (slots - 1) or slots_offset % 64 or slots_offset + slots * slot_size > size:
        raise RemoteError(f"{slots} slots at {slots_offset:#x} are not in a region of {size} bytes")
    if max(tree_offset + tree_room, map_offset + map_count * _ENTRY.size, tce_offset + tce_room) > size:
        raise RemoteError("the mailbox's header names places outside the region")
    entries = tuple(MapEntry(*_ENTRY.unpack_from(region, map_offset + i * _ENTRY.size)) for i in range(map_count))
    return Layout(
        size, memory_size, partition_id, entries, slots, vectors, features, slots_offset, tree_offset, tree_room,
        tce_offset, tce_room,
    )  # fmt: skip
