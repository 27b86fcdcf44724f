"""Block device: feature bits, config layout, requests (virtio 1.4, 5.2).

Sectors are 512 bytes in all fields, whatever the block size (5.2.5). Integers are little-endian, or in the guest's
order in legacy devices (5.2.4.1, 5.2.6.3); byte orders are "little" and "big".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from struct import Struct

from powervio.virtio import features, ids
from powervio.virtio.config import Field, Layout
from powervio.virtio.features import Feature

DEVICE_ID = ids.BLOCK
SECTOR = 512
"""Bytes of the unit in which capacity and positions are told."""
ID_BYTES = 20
"""Length of what GET_ID answers: ASCII, padded with NUL."""

# Feature bits (5.2.3), as masks
F_BARRIER = 1 << 0
"""Legacy only."""
F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_SCSI = 1 << 7
"""Legacy only."""
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14
F_LIFETIME = 1 << 15
F_SECURE_ERASE = 1 << 16
F_ZONED = 1 << 17

features.register(
    DEVICE_ID,
    (
        Feature(F_BARRIER, "BARRIER", legacy_only=True),
        Feature(F_SIZE_MAX, "SIZE_MAX"),
        Feature(F_SEG_MAX, "SEG_MAX"),
        Feature(F_GEOMETRY, "GEOMETRY"),
        Feature(F_RO, "RO"),
        Feature(F_BLK_SIZE, "BLK_SIZE"),
        Feature(F_SCSI, "SCSI", legacy_only=True),
        Feature(F_FLUSH, "FLUSH"),
        Feature(F_TOPOLOGY, "TOPOLOGY"),
        Feature(F_CONFIG_WCE, "CONFIG_WCE", offered_with=F_FLUSH),  # 5.2.5.2
        Feature(F_MQ, "MQ"),
        Feature(F_DISCARD, "DISCARD"),
        Feature(F_WRITE_ZEROES, "WRITE_ZEROES"),
        Feature(F_LIFETIME, "LIFETIME"),
        Feature(F_SECURE_ERASE, "SECURE_ERASE"),
        Feature(F_ZONED, "ZONED", (features.VERSION_1,)),  # it needs FEATURES_OK (5.2.5.2)
    ),
)

# Request types (5.2.6)
T_IN = 0
"""Read: the data is device-writable."""
T_OUT = 1
"""Write: the data is device-readable."""
T_SCSI_CMD = 2
"""Legacy only, as is FLUSH_OUT, a synonym of FLUSH (5.2.6.3)."""
T_FLUSH = 4
T_FLUSH_OUT = 5
T_GET_ID = 8
T_GET_LIFETIME = 10
T_DISCARD = 11
T_WRITE_ZEROES = 13
T_SECURE_ERASE = 14
T_ZONE_APPEND = 15
T_ZONE_REPORT = 16
T_ZONE_OPEN = 18
T_ZONE_CLOSE = 20
T_ZONE_FINISH = 22
T_ZONE_RESET = 24
T_ZONE_RESET_ALL = 26

# Status: the last device-writable byte (5.2.6)
S_OK = 0
S_IOERR = 1
S_UNSUPP = 2
S_ZONE_INVALID_CMD = 3
S_ZONE_UNALIGNED_WP = 4
S_ZONE_OPEN_RESOURCE = 5
S_ZONE_ACTIVE_RESOURCE = 6

REQUEST_HEADER = {"little": Struct("<IIQ"), "big": Struct(">IIQ")}
"""By byte order: type, reserved (legacy: ioprio), sector (5.2.6)."""
SEGMENT = {"little": Struct("<QII"), "big": Struct(">QII")}
"""By byte order: first sector, number of sectors, flags; of discard, write zeroes and secure erase (5.2.6)."""
SEGMENT_UNMAP = 1
"""The one defined flag of a segment: write zeroes may give the space back. Any other is UNSUPP (5.2.6.2)."""

LAYOUT = Layout(
    (
        Field("capacity", 0, 8),
        Field("size_max", 8, 4, F_SIZE_MAX),
        Field("seg_max", 12, 4, F_SEG_MAX),
        Field("cylinders", 16, 2, F_GEOMETRY),
        Field("heads", 18, 1, F_GEOMETRY),
        Field("sectors", 19, 1, F_GEOMETRY),
        Field("blk_size", 20, 4, F_BLK_SIZE),
        Field("physical_block_exp", 24, 1, F_TOPOLOGY),
        Field("alignment_offset", 25, 1, F_TOPOLOGY),
        Field("min_io_size", 26, 2, F_TOPOLOGY),
        Field("opt_io_size", 28, 4, F_TOPOLOGY),
        Field("writeback", 32, 1, F_CONFIG_WCE, writable=True),
        Field("num_queues", 34, 2, F_MQ),
        Field("max_discard_sectors", 36, 4, F_DISCARD),
        Field("max_discard_seg", 40, 4, F_DISCARD),
        Field("discard_sector_alignment", 44, 4, F_DISCARD),
        Field("max_write_zeroes_sectors", 48, 4, F_WRITE_ZEROES),
        Field("max_write_zeroes_seg", 52, 4, F_WRITE_ZEROES),
        Field("write_zeroes_may_unmap", 56, 1, F_WRITE_ZEROES),
        Field("unused1", 57, 3, F_WRITE_ZEROES, raw=True),
        Field("max_secure_erase_sectors", 60, 4, F_SECURE_ERASE),
        Field("max_secure_erase_seg", 64, 4, F_SECURE_ERASE),
        Field("secure_erase_sector_alignment", 68, 4, F_SECURE_ERASE),
        Field("zone_sectors", 72, 4, F_ZONED),
        Field("max_open_zones", 76, 4, F_ZONED),
        Field("max_active_zones", 80, 4, F_ZONED),
        Field("max_append_sectors", 84, 4, F_ZONED),
        Field("write_granularity", 88, 4, F_ZONED),
        Field("zone_model", 92, 1, F_ZONED),
        Field("unused2", 93, 3, F_ZONED, raw=True),
    )
)
"""The config space (5.2.4)."""
WRITEBACK_OFFSET = 32
"""Of the one field that a driver may write."""

_ALL_FIELDS = (1 << 24) - 1
USUAL_FIELDS = _ALL_FIELDS & ~F_SECURE_ERASE & ~F_ZONED
"""Those whose fields every config space of ours has."""


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """The values of the config space (5.2.4); 0 for a field that is not there."""

    capacity: int = 0
    """Sectors."""
    size_max: int = 0
    """Bytes of the largest data segment."""
    seg_max: int = 0
    """Most data segments of a request."""
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = 0
    """Logical block in bytes."""
    physical_block_exp: int = 0
    """Logical blocks of a physical one, log2."""
    alignment_offset: int = 0
    """Of the first aligned logical block."""
    min_io_size: int = 0
    """Logical blocks."""
    opt_io_size: int = 0
    """Logical blocks."""
    writeback: int = 0
    """1: completed writes may be volatile."""
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    """Sectors."""
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0
    max_secure_erase_sectors: int = 0
    max_secure_erase_seg: int = 0
    secure_erase_sector_alignment: int = 0
    """Sectors."""
    zone_sectors: int = 0
    max_open_zones: int = 0
    max_active_zones: int = 0
    max_append_sectors: int = 0
    write_granularity: int = 0
    """Bytes."""
    zone_model: int = 0
    """0 none, 1 host-managed, 2 host-aware."""


def pack_config(config: BlockConfig, byteorder: str, features: int = USUAL_FIELDS) -> bytes:
    """The config space of a device that offers `features`, up to the last field of these; without them all up to
    those of WRITE_ZEROES, 60 bytes. Raises `LocalError` for a value that does not fit its field."""
    return LAYOUT.pack(asdict(config), features, byteorder)


def unpack_config(data: bytes, byteorder: str, features: int = _ALL_FIELDS) -> BlockConfig:
    """What a driver finds in a config space; fields of features that were not offered, or behind its end, are 0.

    Nothing is checked: the driver looks at what it uses.
    """
    values = LAYOUT.unpack(data, features, byteorder)
    return BlockConfig(**{name: value for name, value in values.items() if isinstance(value, int)})
