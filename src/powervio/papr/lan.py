"""Interpartition logical LAN: descriptors, receive queue entries, attributes, node properties (papr-vio 7)."""

from __future__ import annotations

from enum import IntFlag

NODE_NAME = "l-lan"
DEVICE_TYPE = "network"
COMPATIBLE = ("IBM,l-lan",)
FUNCTION_SET = "hcall-lLAN"

VALID = 0x80
"""Of a descriptor's control byte."""
TOGGLE = 0x40
"""Of descriptor 0 of the buffer list: 1 while new entries of the receive queue have a valid bit of 0."""
LARGE_SEND = 0x04
NO_CHECKSUM = 0x02
"""The frame's TCP checksum is not there; with CHECKSUM_GOOD only."""
CHECKSUM_GOOD = 0x01
"""The frame's checksums need not be looked at."""

SEND_DESCRIPTORS = 6
ADD_DESCRIPTORS = 8
"""Of one H_ADD_LOGICAL_LAN_BUFFERS."""
MAX_POOLS = 254
MIN_BUFFER = 16
MIN_MSS = 16
DROP_COUNTER = 4088
"""Offset of the counter of dropped frames in the buffer list."""

ATTRIBUTES_SHOWN = 4080
"""Offset of the attributes in the buffer list, a word that this hypervisor keeps (`powervio,attributes`)."""

ENTRY_SIZE = 16
"""Of the receive queue: {u8 control, u8, u16 offset, u32 length, u64 handle}, big-endian."""
ENTRY_MESSAGE = 0x40
"""Of an entry's control byte: the buffer holds a message; else it comes back unused."""
MESSAGE_OFFSET = 8
"""Of a message in its buffer, behind the owner's handle."""
MESSAGE_OFFSET_MSS = 16
"""The same when the MSS stands behind the handle."""

MAX_FRAME = 65_535 + 18
"""Bytes of the largest frame: an IP packet of 65,535, addresses, type and one tag."""


class Attribute(IntFlag):
    """Of H_ILLAN_ATTRIBUTES."""

    RX_MULTI = 0x40000
    """H_ADD_LOGICAL_LAN_BUFFERS is there."""
    NONZERO_CHECKSUM = 0x20000
    """With NO_CHECKSUM the field may hold anything."""
    LARGE = 0x10000
    """Large send and receive are enabled."""
    LARGE_SUPPORTED = 0x08000
    PORT_DISABLED = 0x04000
    PADDED = 0x02000
    """Checksums of padded packets are offloaded, too."""
    BUFFER_SIZE_CONTROL = 0x01000
    TRUNK_PRIORITY = 0x00F00
    """1 is the highest, 0: no trunk adapter."""
    CHECKSUM_IPV6 = 0x00004
    CHECKSUM_IPV4 = 0x00002
    ACTIVE_TRUNK = 0x00001


TRUNK_PRIORITY_SHIFT = 8

MULTICAST_SET_RECEPTION = 0x80000
"""Flags of H_MULTICAST_CTRL; the enable bits are also those of its result."""
MULTICAST_SET_FILTER = 0x40000
MULTICAST_RECEPTION = 0x20000
MULTICAST_FILTER = 0x10000
MULTICAST_TABLE = 0x3
MULTICAST_NONE, MULTICAST_ADD, MULTICAST_REMOVE, MULTICAST_CLEAR = range(4)

LOCAL_MAC_ADDRESS = "local-mac-address"
MAC_ADDRESS = "mac-address"
MAC_FILTERS = "ibm,mac-address-filters"
TRUNK_ADAPTER = "ibm,trunk-adapter"
ILLAN_OPTIONS = "ibm,illan-options"
MAX_FRAME_SIZE = "max-frame-size"
ADDRESS_BITS = "address-bits"
ATTRIBUTES = "powervio,attributes"
"""Offset in the buffer list, 4 bytes, of a big-endian word with what H_ILLAN_ATTRIBUTES would tell now. A trunk adapter
that is interrupted finds there whether it is the active one, also when frames have come at the same time."""
PROPERTIES = (
    LOCAL_MAC_ADDRESS,
    MAC_ADDRESS,
    MAC_FILTERS,
    TRUNK_ADAPTER,
    ILLAN_OPTIONS,
    MAX_FRAME_SIZE,
    ADDRESS_BITS,
    ATTRIBUTES,
)
"""Of a node, beside those that every virtual adapter has."""


def node_properties(mac: bytes, filters: int, *, trunk: bool) -> tuple[tuple[str, bytes], ...]:
    """The properties of an adapter's node: its address of 6 bytes, how many multicast filters it has."""
    values = {
        LOCAL_MAC_ADDRESS: mac,
        MAC_ADDRESS: mac,
        MAC_FILTERS: filters.to_bytes(4, "big"),
        ILLAN_OPTIONS: b"",
        MAX_FRAME_SIZE: MAX_FRAME.to_bytes(4, "big"),
        ADDRESS_BITS: (48).to_bytes(4, "big"),
        ATTRIBUTES: ATTRIBUTES_SHOWN.to_bytes(4, "big"),
    }
    if trunk:
        values[TRUNK_ADAPTER] = b""
    return tuple((name, values[name]) for name in PROPERTIES if name in values)


def descriptor(length: int, ioba: int, control: int = VALID) -> int:
    """Of `length` bytes (24 bits) at an I/O address of 32 bits."""
    return control << 56 | length << 32 | ioba
