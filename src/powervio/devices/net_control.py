"""The control queue of a network device (virtio 1.4, 5.1.6.5): what the driver has asked for, and its commands.

A command that is not understood, not negotiated, too short or too long changes nothing and is answered with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from struct import Struct
from typing import Any

from powervio.devices.net_rules import VLANS, FrameRules
from powervio.errors import LocalError, RemoteError
from powervio.network.port import Offload
from powervio.virtio import net
from powervio.virtio.queue import ByteOrder, Request

MAX_COMMAND_BYTES = 64 * 1024
"""Longest command that is looked at; 5,000 addresses are half of it."""

_RX_COMMANDS = {
    net.RX_PROMISC: "promiscuous",
    net.RX_ALLMULTI: "all_multicast",
    net.RX_ALLUNI: "all_unicast",
    net.RX_NOMULTI: "no_multicast",
    net.RX_NOUNI: "no_unicast",
    net.RX_NOBCAST: "no_broadcast",
}
_GUEST_OFFLOADS = (
    (net.F_GUEST_CSUM, Offload.CSUM),
    (net.F_GUEST_TSO4, Offload.TSO4),
    (net.F_GUEST_TSO6, Offload.TSO6),
    (net.F_GUEST_ECN, Offload.ECN),
    (net.F_GUEST_USO4, Offload.USO4),
    (net.F_GUEST_USO6, Offload.USO6),
)


@dataclass(slots=True)
class Coalescing:
    """When the driver wants to be notified of used buffers of a queue (5.1.6.5.9)."""

    packets: int = 0
    """After so many."""
    microseconds: int = 0
    """After so long at the latest; 0: at once."""


class Refused(Exception):
    """A command that is answered with an error."""


class Control:
    """What the driver of one session has said. Counters are of the device's life."""

    def __init__(self, mac: bytes, max_pairs: int) -> None:
        """`mac` is the address that the device begins with."""
        self.rules = FrameRules()
        self.mac = mac
        """The adapter's address now."""
        self.announcing = False
        """Whether the driver was asked to announce itself and has not said that it did."""
        self.offloads = 0
        """GUEST_ bits in force."""
        self.coalescing: dict[int, Coalescing] = {}
        """By number of queue."""
        self.commands = 0
        """Commands that were carried out."""
        self.refused = 0
        """Commands that were answered with an error."""
        self.on_offloads: Callable[[], None] = lambda: None
        self.on_pairs: Callable[[], None] = lambda: None
        """Called after a command has changed that."""
        self.own = mac
        """What it is after a reset."""
        self._max_pairs = max_pairs
        self._features = 0
        self._byteorder: ByteOrder = "little"
        self._handlers: dict[int, Callable[[int, bytes], bytes]] = {
            net.CTRL_RX: self._rx,
            net.CTRL_MAC: self._mac,
            net.CTRL_VLAN: self._vlan,
            net.CTRL_ANNOUNCE: self._announce,
            net.CTRL_MQ: self._mq,
            net.CTRL_OFFLOADS: self._offloads,
            net.CTRL_COAL: self._coal,
        }

    def start(self, features: int, byteorder: ByteOrder) -> None:
        """A session begins: everything is as after a reset."""
        self._features = features
        self._byteorder = byteorder
        self.reset()
        self.offloads = features & net.OFFLOAD_BITS

    def reset(self) -> None:
        """Forget what the driver has said."""
        self.mac = self.own
        self.rules.filter.reset(self.mac, vlans=bool(self._features & net.F_CTRL_VLAN))
        self.rules.steering.reset()
        self.coalescing = {}
        self.offloads = 0

    @property
    def taken(self) -> Offload:
        """What may be left undone of a frame for the driver."""
        taken = Offload(0)
        for feature, offload in _GUEST_OFFLOADS:
            if self.offloads & feature and self.offloads & net.F_GUEST_CSUM:  # nothing else is of use without it
                taken |= offload
        return taken

    def answer(self, request: Request, still: Callable[[], AbstractContextManager[None]]) -> bool:
        """Carry out the command of a buffer, while `still` holds whoever goes by it, and give the buffer back; whether
        the driver was answered."""
        readable, writable = request.readable, request.writable
        if not writable.length:
            self.refused += 1
            request.complete(0)
            return False
        try:
            command = readable.read(0, readable.length) if readable.length <= MAX_COMMAND_BYTES else b""
            with still():
                status, result = self.run(command)
            answer = (bytes([status]) + result)[: writable.length]
            writable.write(0, answer)
        except RemoteError:
            self.refused += 1
            request.complete(0)
            return False
        request.complete(len(answer))
        return True

    def run(self, command: bytes) -> tuple[int, bytes]:
        """Carry out a command; the acknowledgement and what follows it."""
        try:
            if len(command) < 2:
                raise Refused
            handler = self._handlers.get(command[0])
            if handler is None:
                raise Refused
            result = handler(command[1], command[2:])
        except Refused:
            self.refused += 1
            return net.CTRL_ERR, b""
        self.commands += 1
        return net.CTRL_OK, result

    def _need(self, features: int) -> None:
        if not self._features & features:
            raise Refused

    def _integer(self, data: bytes, size: int) -> int:
        if len(data) != size:
            raise Refused
        return int.from_bytes(data, self._byteorder)

    def _rx(self, command: int, data: bytes) -> bytes:
        self._need(net.F_CTRL_RX if command <= net.RX_ALLMULTI else net.F_CTRL_RX_EXTRA)
        name = _RX_COMMANDS.get(command)
        if name is None or len(data) != 1:
            raise Refused
        setattr(self.rules.filter, name, bool(data[0]))
        return b""

    def _mac(self, command: int, data: bytes) -> bytes:
        if command == net.MAC_ADDR_SET:
            self._need(net.F_CTRL_MAC_ADDR)
            if len(data) != net.MAC_BYTES or data[0] & 1:
                raise Refused
            self.mac = data
            self.rules.filter.set_mac(data)
            return b""
        self._need(net.F_CTRL_RX)
        if command != net.MAC_TABLE_SET:
            raise Refused
        tables = []
        for _ in range(2):  # entries32, addresses; of single devices, then of groups
            end = 4 + net.MAC_BYTES * self._integer(data[:4], 4)
            if end > len(data):
                raise Refused
            tables.append(data[4:end])
            data = data[end:]
        if data:
            raise Refused
        for kind, table in enumerate(tables):
            self.rules.filter.set_table(kind, table)
        return b""

    def _vlan(self, command: int, data: bytes) -> bytes:
        self._need(net.F_CTRL_VLAN)
        vlan = self._integer(data, 2)
        if command not in (net.VLAN_ADD, net.VLAN_DEL) or vlan >= VLANS:
            raise Refused
        self.rules.filter.set_vlan(vlan, command == net.VLAN_ADD)
        return b""

    def _announce(self, command: int, data: bytes) -> bytes:
        self._need(net.F_GUEST_ANNOUNCE)
        if command != net.ANNOUNCE_ACK or data or not self.announcing:
            raise Refused
        self.announcing = False
        return b""

    def _mq(self, command: int, data: bytes) -> bytes:
        if command == net.MQ_VQ_PAIRS_SET:
            self._need(net.F_MQ)
            pairs = self._integer(data, 2)
            if not 1 <= pairs <= self._max_pairs:
                raise Refused
            self.rules.steering.set_automatic(pairs)
        elif command == net.MQ_RSS_CONFIG:
            self._need(net.F_RSS)
            self._rss(data)
        else:
            raise Refused
        self.on_pairs()
        return b""

    def _rss(self, data: bytes) -> None:
        """hash_types32 mask16 unclassified16 table16[mask + 1] max_tx_vq16 key_length8 key (5.1.6.5.7.1)."""
        prefix = "<" if self._byteorder == "little" else ">"
        if len(data) < 8:
            raise Refused
        types, mask, unclassified = Struct(f"{prefix}IHH").unpack_from(data)
        entries = mask + 1
        if entries & mask or entries > net.RSS_TABLE_ENTRIES or types & ~net.HASH_TYPES:
            raise Refused
        at = 8 + 2 * entries
        if len(data) < at + 3:
            raise Refused
        table = list(Struct(f"{prefix}{entries}H").unpack_from(data, 8))
        pairs, length = Struct(f"{prefix}HB").unpack_from(data, at)
        key = data[at + 3 :]
        if len(key) != length or length > net.RSS_KEY_BYTES or not 1 <= pairs <= self._max_pairs:
            raise Refused
        if max(*table, unclassified) >= self._max_pairs:
            raise Refused
        self.rules.steering.set_rss(pairs, types, table, unclassified, key)

    def _offloads(self, command: int, data: bytes) -> bytes:
        self._need(net.F_CTRL_GUEST_OFFLOADS)
        wanted = self._integer(data, 8)
        if command != net.OFFLOADS_SET or wanted & ~(self._features & net.OFFLOAD_BITS):
            raise Refused
        self.offloads = wanted
        self.on_offloads()
        return b""

    def _coal(self, command: int, data: bytes) -> bytes:
        pair = Struct("<II" if self._byteorder == "little" else ">II")
        queues = range(2 * self._max_pairs)
        if command in (net.COAL_TX_SET, net.COAL_RX_SET):
            self._need(net.F_NOTF_COAL)
            if len(data) != pair.size:
                raise Refused
            packets, microseconds = pair.unpack(data)
            for queue in queues[int(command == net.COAL_TX_SET) :: 2]:
                self._set_coalescing(queue, packets, microseconds)
            return b""
        self._need(net.F_VQ_NOTF_COAL)
        queue = self._integer(data[:2], 2)
        if queue not in queues:
            raise Refused
        if command == net.COAL_VQ_SET and len(data) == 4 + pair.size:
            self._set_coalescing(queue, *pair.unpack(data[4:]))
            return b""
        if command == net.COAL_VQ_GET and len(data) == 4:
            now = self.coalescing.get(queue, Coalescing())
            return pair.pack(now.packets, now.microseconds)
        raise Refused

    def _set_coalescing(self, queue: int, packets: int, microseconds: int) -> None:
        self.coalescing[queue] = Coalescing(packets, microseconds)

    # -- moving to another server

    def state(self) -> dict[str, object]:
        """All of it, as one serialisable value."""
        rules, steering = self.rules.filter, self.rules.steering
        state: dict[str, object] = {name: bool(getattr(rules, name)) for name in _RX_COMMANDS.values()}
        tables = [rules.table(kind) for kind in (0, 1)]
        return state | {
            "mac": self.mac.hex(),
            "tables": [None if table is None else table.hex() for table in tables],
            "vlans": rules.vlans.hex(),
            "announcing": self.announcing,
            "offloads": self.offloads,
            "pairs": steering.pairs,
            "rss": [steering.hash_types, steering.table, steering.unclassified, steering.key.hex()]
            if steering.rss
            else None,
            "coalescing": [[queue, one.packets, one.microseconds] for queue, one in sorted(self.coalescing.items())],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, in a session that has begun. Raises `LocalError` when it does not fit."""
        rules, steering = self.rules.filter, self.rules.steering
        try:
            mac, vlans = bytes.fromhex(state["mac"]), bytes.fromhex(state["vlans"])
            tables = [None if table is None else bytes.fromhex(table) for table in state["tables"]]
            pairs, rss, offloads = int(state["pairs"]), state["rss"], int(state["offloads"])
            modes = {name: bool(state[name]) for name in _RX_COMMANDS.values()}
            coalescing = {int(queue): Coalescing(int(many), int(long)) for queue, many, long in state["coalescing"]}
            if rss is not None:
                rss = int(rss[0]), [int(pair) for pair in rss[1]], int(rss[2]), bytes.fromhex(rss[3])
            announcing = bool(state["announcing"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LocalError(f"not the state of a network device: {error!r}") from None
        if len(mac) != net.MAC_BYTES or len(vlans) != VLANS // 8 or len(tables) != 2:
            raise LocalError("not the state of a network device: addresses or VLANs of another length")
        if any(table is not None and len(table) % net.MAC_BYTES for table in tables):
            raise LocalError("not the state of a network device: a table of addresses in pieces")
        highest = pairs if rss is None else max(pairs, 1 + max(*rss[1], rss[2]))
        if pairs < 1 or highest > self._max_pairs:
            raise LocalError(f"the driver uses {highest} pairs of queues, the device has {self._max_pairs}")
        if rss is not None and (len(rss[1]) & (len(rss[1]) - 1) or len(rss[1]) > net.RSS_TABLE_ENTRIES):
            raise LocalError(f"an indirection table of {len(rss[1])} entries")
        self.mac = mac
        self.announcing = announcing
        self.offloads = offloads
        self.coalescing = coalescing
        rules.set_mac(mac)
        rules.vlans = vlans
        for name, value in modes.items():
            setattr(rules, name, value)
        for kind, table in enumerate(tables):
            rules.set_table(kind, bytes(net.MAC_BYTES * 4096) if table is None else table)
        if rss is None:
            steering.set_automatic(pairs)
        else:
            steering.set_rss(pairs, *rss)
