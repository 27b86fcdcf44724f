"""Network device: feature bits, config layout, frame header, queue numbers (virtio 1.4, 5.1).

Integers are little-endian, or in the guest's order in legacy devices (5.1.4.1, 5.1.6.1); byte orders are "little" and
"big".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from struct import Struct

from powervio.errors import LocalError
from powervio.virtio import features, ids
from powervio.virtio.config import Field, Layout
from powervio.virtio.features import VERSION_1, Feature

DEVICE_ID = ids.NET
MAC_BYTES = 6

# Feature bits (5.1.3), as masks
F_CSUM = 1 << 0
"""Device: it takes frames whose checksum is partial."""
F_GUEST_CSUM = 1 << 1
"""Driver: it takes frames whose checksum is partial."""
F_CTRL_GUEST_OFFLOADS = 1 << 2
F_MTU = 1 << 3
F_MAC = 1 << 5
F_GSO = 1 << 6
"""Legacy only: the device takes any GSO type (5.1.3.2)."""
F_GUEST_TSO4 = 1 << 7
F_GUEST_TSO6 = 1 << 8
F_GUEST_ECN = 1 << 9
F_GUEST_UFO = 1 << 10
F_HOST_TSO4 = 1 << 11
F_HOST_TSO6 = 1 << 12
F_HOST_ECN = 1 << 13
F_HOST_UFO = 1 << 14
F_MRG_RXBUF = 1 << 15
"""Driver: one frame may go over several of its receive buffers."""
F_STATUS = 1 << 16
F_CTRL_VQ = 1 << 17
F_CTRL_RX = 1 << 18
F_CTRL_VLAN = 1 << 19
F_CTRL_RX_EXTRA = 1 << 20
F_GUEST_ANNOUNCE = 1 << 21
F_MQ = 1 << 22
F_CTRL_MAC_ADDR = 1 << 23
F_DEVICE_STATS = 1 << 50
F_HASH_TUNNEL = 1 << 51
F_VQ_NOTF_COAL = 1 << 52
F_NOTF_COAL = 1 << 53
F_GUEST_USO4 = 1 << 54
F_GUEST_USO6 = 1 << 55
F_HOST_USO = 1 << 56
F_HASH_REPORT = 1 << 57
F_GUEST_HDRLEN = 1 << 59
F_RSS = 1 << 60
F_RSC_EXT = 1 << 61
F_STANDBY = 1 << 62
F_SPEED_DUPLEX = 1 << 63
F_RSS_CONTEXT = 1 << 64
F_GUEST_UDP_TUNNEL_GSO = 1 << 65
F_GUEST_UDP_TUNNEL_GSO_CSUM = 1 << 66
F_HOST_UDP_TUNNEL_GSO = 1 << 67
F_HOST_UDP_TUNNEL_GSO_CSUM = 1 << 68
F_OUT_NET_HEADER = 1 << 69
F_IPSEC = 1 << 70

features.register(
    DEVICE_ID,
    (  # what each requires: 5.1.3.1
        Feature(F_CSUM, "CSUM"),
        Feature(F_GUEST_CSUM, "GUEST_CSUM"),
        Feature(F_CTRL_GUEST_OFFLOADS, "CTRL_GUEST_OFFLOADS"),
        Feature(F_MTU, "MTU"),
        Feature(F_MAC, "MAC"),
        Feature(F_GSO, "GSO", legacy_only=True),
        Feature(F_GUEST_TSO4, "GUEST_TSO4", (F_GUEST_CSUM,)),
        Feature(F_GUEST_TSO6, "GUEST_TSO6", (F_GUEST_CSUM,)),
        Feature(F_GUEST_ECN, "GUEST_ECN", (F_GUEST_TSO4 | F_GUEST_TSO6,)),
        Feature(F_GUEST_UFO, "GUEST_UFO", (F_GUEST_CSUM,)),
        Feature(F_HOST_TSO4, "HOST_TSO4", (F_CSUM,)),
        Feature(F_HOST_TSO6, "HOST_TSO6", (F_CSUM,)),
        Feature(F_HOST_ECN, "HOST_ECN", (F_HOST_TSO4 | F_HOST_TSO6,)),
        Feature(F_HOST_UFO, "HOST_UFO", (F_CSUM,)),
        Feature(F_MRG_RXBUF, "MRG_RXBUF"),
        Feature(F_STATUS, "STATUS"),
        Feature(F_CTRL_VQ, "CTRL_VQ"),
        Feature(F_CTRL_RX, "CTRL_RX", (F_CTRL_VQ,)),
        Feature(F_CTRL_VLAN, "CTRL_VLAN", (F_CTRL_VQ,)),
        Feature(F_CTRL_RX_EXTRA, "CTRL_RX_EXTRA"),
        Feature(F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE", (F_CTRL_VQ,)),
        Feature(F_MQ, "MQ", (F_CTRL_VQ,)),
        Feature(F_CTRL_MAC_ADDR, "CTRL_MAC_ADDR", (F_CTRL_VQ,)),
        Feature(F_DEVICE_STATS, "DEVICE_STATS", (F_CTRL_VQ,)),
        Feature(F_HASH_TUNNEL, "HASH_TUNNEL", (F_CTRL_VQ, F_RSS | F_HASH_REPORT)),
        Feature(F_VQ_NOTF_COAL, "VQ_NOTF_COAL", (F_CTRL_VQ,)),
        Feature(F_NOTF_COAL, "NOTF_COAL", (F_CTRL_VQ,)),
        Feature(F_GUEST_USO4, "GUEST_USO4", (F_GUEST_CSUM,)),
        Feature(F_GUEST_USO6, "GUEST_USO6", (F_GUEST_CSUM,)),
        Feature(F_HOST_USO, "HOST_USO", (F_CSUM,)),
        Feature(F_HASH_REPORT, "HASH_REPORT"),
        Feature(F_GUEST_HDRLEN, "GUEST_HDRLEN"),
        Feature(F_RSS, "RSS", (F_CTRL_VQ,)),
        Feature(F_RSC_EXT, "RSC_EXT", (F_HOST_TSO4 | F_HOST_TSO6,)),
        Feature(F_STANDBY, "STANDBY"),
        Feature(F_SPEED_DUPLEX, "SPEED_DUPLEX"),
        Feature(F_RSS_CONTEXT, "RSS_CONTEXT", (F_CTRL_VQ, F_RSS)),
        Feature(
            F_GUEST_UDP_TUNNEL_GSO,
            "GUEST_UDP_TUNNEL_GSO",
            (F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6),
        ),
        Feature(F_GUEST_UDP_TUNNEL_GSO_CSUM, "GUEST_UDP_TUNNEL_GSO_CSUM", (F_GUEST_UDP_TUNNEL_GSO,)),
        Feature(F_HOST_UDP_TUNNEL_GSO, "HOST_UDP_TUNNEL_GSO", (F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO)),
        Feature(F_HOST_UDP_TUNNEL_GSO_CSUM, "HOST_UDP_TUNNEL_GSO_CSUM", (F_HOST_UDP_TUNNEL_GSO,)),
        Feature(F_OUT_NET_HEADER, "OUT_NET_HEADER"),
        Feature(F_IPSEC, "IPSEC"),
    ),
)

# Config (5.1.4)
S_LINK_UP = 1
"""Of `status`."""
S_ANNOUNCE = 2
"""Of `status`: the driver should tell the network where it is (5.1.6.5.4)."""
MIN_MTU = 68
"""Smallest `mtu` that a device may have (5.1.4.1)."""
MAX_MTU = 65535

LAYOUT = Layout(
    (
        Field("mac", 0, MAC_BYTES, raw=True),  # always there, and good with MAC only
        Field("status", 6, 2, F_STATUS),
        Field("max_virtqueue_pairs", 8, 2, F_MQ | F_RSS),
        Field("mtu", 10, 2, F_MTU),
        Field("speed", 12, 4, F_SPEED_DUPLEX),
        Field("duplex", 16, 1, F_SPEED_DUPLEX),
        Field("rss_max_key_size", 17, 1, F_RSS | F_HASH_REPORT),
        Field("rss_max_indirection_table_length", 18, 2, F_RSS),
        Field("supported_hash_types", 20, 4, F_RSS | F_HASH_REPORT),
        Field("supported_tunnel_types", 24, 4, F_HASH_TUNNEL),
    )
)
"""The config space."""

# Frames (5.1.6)
H_NEEDS_CSUM = 1
"""Flag of a header: the checksum is partial; `csum_start` and `csum_offset` say where it is."""
H_DATA_VALID = 2
"""Flag of a header, device to driver: the checksum was found good."""
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
"""Fragments of one datagram; not offered here."""
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""With a TCP type: there is congestion to be told of in the first segment only."""

HEADER = {"little": Struct("<BBHHHH"), "big": Struct(">BBHHHH")}
"""By byte order: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. `num_buffers` follows, if it is there."""
HEADER_BYTES = 12
LEGACY_HEADER_BYTES = 10
"""Of a legacy device without MRG_RXBUF: `num_buffers` is not there (5.1.6.1)."""


def header_bytes(negotiated: int) -> int:
    """How long the header before each frame is, of what this project negotiates."""
    return HEADER_BYTES if negotiated & (VERSION_1 | F_MRG_RXBUF) else LEGACY_HEADER_BYTES


RECEIVE = 0
"""Queue number of receiveq1: frames to the driver (5.1.2)."""
TRANSMIT = 1
MAX_PAIRS = 0x8000
"""Pairs of queues that a device may have (5.1.4.1)."""


def control_queue(negotiated: int, max_pairs: int) -> int | None:
    """Number of the control queue: it follows all pairs that the driver could use (5.1.2). None without CTRL_VQ."""
    if not negotiated & F_CTRL_VQ:
        return None
    return 2 * (max_pairs if negotiated & (F_MQ | F_RSS) else 1)


# The control queue (5.1.6.5): u8 class, u8 command, what the command has; then u8 ack and results, from the device
CTRL_OK = 0
CTRL_ERR = 1

CTRL_RX = 0
RX_PROMISC = 0
RX_ALLMULTI = 1
RX_ALLUNI = 2
"""This and those that follow need CTRL_RX_EXTRA."""
RX_NOMULTI = 3
RX_NOUNI = 4
RX_NOBCAST = 5
CTRL_MAC = 1
MAC_TABLE_SET = 0
MAC_ADDR_SET = 1
CTRL_VLAN = 2
VLAN_ADD = 0
VLAN_DEL = 1
CTRL_ANNOUNCE = 3
ANNOUNCE_ACK = 0
CTRL_MQ = 4
MQ_VQ_PAIRS_SET = 0
MQ_RSS_CONFIG = 1
MQ_HASH_CONFIG = 2
CTRL_OFFLOADS = 5
OFFLOADS_SET = 0
CTRL_COAL = 6
COAL_TX_SET = 0
COAL_RX_SET = 1
COAL_VQ_SET = 2
COAL_VQ_GET = 3

OFFLOAD_BITS = (
    F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO | F_GUEST_USO4 | F_GUEST_USO6
)  # fmt: skip
"""What OFFLOADS_SET can switch; each is the bit of its feature (5.1.6.5.6)."""

# What may go into a hash (5.1.6.4.3.1)
HASH_IPV4 = 1 << 0
HASH_TCPV4 = 1 << 1
HASH_UDPV4 = 1 << 2
HASH_IPV6 = 1 << 3
HASH_TCPV6 = 1 << 4
HASH_UDPV6 = 1 << 5
HASH_TYPES = HASH_IPV4 | HASH_TCPV4 | HASH_UDPV4 | HASH_IPV6 | HASH_TCPV6 | HASH_UDPV6
"""Those that this project can do."""
RSS_KEY_BYTES = 40
RSS_TABLE_ENTRIES = 128
"""Longest key and indirection table that a device here has: the least that it must (5.1.4.1)."""


@dataclass(frozen=True, slots=True)
class NetConfig:
    """The values of the config space (5.1.4); 0 for a field that is not there."""

    mac: bytes = bytes(MAC_BYTES)
    status: int = 0
    max_virtqueue_pairs: int = 0
    mtu: int = 0
    """Bytes of the largest frame without its Ethernet header."""
    speed: int = 0
    """Mbit/s; 2^32-1 is unknown."""
    duplex: int = 0
    """1 full, 0 half, 255 unknown."""
    rss_max_key_size: int = 0
    rss_max_indirection_table_length: int = 0
    supported_hash_types: int = 0
    supported_tunnel_types: int = 0


def pack_config(config: NetConfig, features: int, byteorder: str) -> bytes:
    """The config space of a device that offers `features`. Raises `LocalError` for a value that does not fit."""
    return LAYOUT.pack(asdict(config), features, byteorder)


def unpack_config(data: bytes, features: int, byteorder: str) -> NetConfig:
    """What a driver finds in a config space; fields that were not offered, or are behind its end, are 0."""
    return NetConfig(**LAYOUT.unpack(data, features, byteorder))  # type: ignore[arg-type]


def parse_mac(text: str) -> bytes:
    """`52:54:00:12:34:56`, or with dashes, as bytes. Raises `LocalError` for what no device can have as its own."""
    parts = text.replace("-", ":").split(":")
    try:
        mac = bytes.fromhex("".join(part.zfill(2) for part in parts))
    except ValueError:
        mac = b""
    if len(mac) != MAC_BYTES or len(parts) != MAC_BYTES:
        raise LocalError(f'MAC address "{text}"; expected six bytes like 52:54:00:12:34:56')
    if mac[0] & 1 or not any(mac):
        raise LocalError(f'MAC address "{text}" is no address of one device; expected an even first byte')
    return mac


def format_mac(mac: bytes) -> str:
    """As `52:54:00:12:34:56`."""
    return mac.hex(":")
