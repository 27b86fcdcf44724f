"""9P transport device (virtio 1.4 reserves its number 9 and has no chapter; docs/virtio-9p.md is the contract).

One queue. Each buffer is one T-message, device-readable, and room for its R-message, device-writable. 9P's own integers
are little-endian everywhere; the config space alone follows the byte order of the device (F2.3).
"""

from __future__ import annotations

from powervio.errors import LocalError, RemoteError
from powervio.virtio import features, ids
from powervio.virtio.features import Feature

DEVICE_ID = ids.P9

F_MOUNT_TAG = 1 << 0
"""The config space has a mount tag (F2.1). A device always offers it; Linux does not bind to one that does not."""

features.register(DEVICE_ID, (Feature(F_MOUNT_TAG, "MOUNT_TAG"),))

HEADER_BYTES = 7
"""Of every message: size u32, type u8, tag u16, little-endian."""
MAX_TAG_BYTES = 253
"""Of a mount tag (F2.2): with its length it fits in the config space of revision 0 over CRQ, whose size is one byte."""
QUEUE_SIZE = 128
"""Entries of the queue. Linux makes buffers of at most so many descriptors, whatever the queue's size is (F3.4)."""
PAGE = 4096
LINUX_MSIZE = 512_000
"""Bytes of the largest message that Linux mounts with over 128 descriptors of one page each: 125 pages (F3.4)."""


def msize_of(descriptors: int, page: int = PAGE) -> int:
    """Bytes of the largest message of a driver that has a descriptor for each page: three are for headers and for data
    that begin in the middle of a page (F3.4)."""
    return max(descriptors - 3, 1) * page


def check_tag(tag: str) -> bytes:
    """A mount tag as bytes. Raises `LocalError` for one that no driver could name."""
    coded = tag.encode()
    if not coded or len(coded) > MAX_TAG_BYTES or any(byte <= 0x20 or byte == 0x7F for byte in coded) or b"," in coded:
        raise LocalError(
            f"mount tag {tag!r}: expected 1 to {MAX_TAG_BYTES} bytes without spaces, control characters and commas"
        )
    return coded


def pack_config(tag: bytes, byteorder: str) -> bytes:
    """The config space: tag_len u16, tag (F2.1)."""
    return len(tag).to_bytes(2, "big" if byteorder == "big" else "little") + tag


def unpack_config(config: bytes, byteorder: str) -> str:
    """The mount tag, as a driver reads it. Raises `RemoteError` for a config space that holds none."""
    length = int.from_bytes(config[:2], "big" if byteorder == "big" else "little")
    tag = config[2 : 2 + length]
    if len(config) < 2 or not length or len(tag) < length:
        raise RemoteError(f"a config space of {len(config)} bytes with a tag of {length}; expected the tag in it")
    try:
        return tag.decode()
    except UnicodeDecodeError:
        raise RemoteError(f"mount tag {tag!r} is no UTF-8") from None
