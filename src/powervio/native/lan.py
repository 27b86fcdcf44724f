"""Logical LAN adapters: the hypervisor's end, between partitions and a switch (papr-vio 7).

An adapter has a port of the switch while it is registered, and buffers of its partition to receive into. What arrives
is put into them at once, in the thread of whoever sent it: inside the sender's hcall if that is an adapter too, so that
its return code says whether somebody missed the frame; else under the hypervisor's lock, taken for that. A receiver
without buffers loses frames, and holds up nobody.

A call copies at most `BUDGET` bytes for receivers. What is left then is the backlog, with which the sender goes on by
its token (H_BUSY), or else whoever sends next; so a partition that does not come back keeps nobody's frames.

The switch's callbacks of other ports (`on_arrival`, `on_active`) may be called under the hypervisor's lock: they make
no hcalls.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary, ref

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.native import hcall_lan as _hcall_lan  # noqa: F401  the table alone leads there
from powervio.native.lan_core import NOT_TAKEN, PUT, LanCore
from powervio.network.frame import Frame, Offload
from powervio.network.segment import fitted
from powervio.papr import lan
from powervio.papr.lan import Attribute
from powervio.phyp.adapter import Identity, VirtualAdapter

if TYPE_CHECKING:
    from powervio.network.switch import PortOptions, Switch, SwitchPort
    from powervio.phyp.hypervisor import Hypervisor
    from powervio.phyp.partition import Partition

BUDGET = 1 << 20
"""Bytes that one call copies for receivers before it lets others have the hypervisor."""
MOST_SEGMENTS = 128
"""Of a frame that the hypervisor segments for a receiver which takes none that is large; others are lost."""
WINDOW = 64 << 20
"""Bytes of an adapter's pane, unless said otherwise."""
FILTERS = 255
MAX_WINDOW = 4 << 30
"""Descriptors have I/O addresses of 32 bits."""
_HYPERVISORS: WeakKeyDictionary[Switch, ref[Hypervisor]] = WeakKeyDictionary()
"""Whose adapters are at a switch: of two, each would wait for the other's lock."""
_ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN | Offload.USO4 | Offload.USO6
_FIXED = int(Attribute.RX_MULTI | Attribute.NONZERO_CHECKSUM | Attribute.LARGE_SUPPORTED | Attribute.PADDED)


class LanNetwork:
    """What the adapters of one hypervisor share. All but `arrived` is under the hypervisor's lock."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._adapters: list[LanAdapter] = []
        self.backlog: deque[LanAdapter] = deque()
        """Adapters for which frames have arrived."""
        self.inside = 0
        """The thread that holds the hypervisor's lock and works here, 0 for none."""

    @classmethod
    def of(cls, hypervisor: Hypervisor) -> LanNetwork:
        """The one of a hypervisor; under its lock."""
        found = hypervisor.sets.get(lan.FUNCTION_SET)
        if found is None:
            found = hypervisor.sets[lan.FUNCTION_SET] = cls(hypervisor)
        return cast(LanNetwork, found)

    @property
    def adapters(self) -> list[LanAdapter]:
        """Those that are plugged in."""
        self._adapters = [one for one in self._adapters if one.partition.slots.get(one.slot) is one]
        return self._adapters

    def __enter__(self) -> LanNetwork:
        """What the switch calls back in this thread finds the hypervisor's lock held."""
        self.inside = threading.get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        self.inside = 0

    def arrived(self, adapter: LanAdapter) -> None:
        """The switch has something for an adapter that had nothing; from any thread."""
        self.backlog.append(adapter)
        if self.inside == threading.get_ident():
            return
        while self.backlog:
            with self.hypervisor.lock, self:
                self.work(BUDGET)

    def work(self, budget: int) -> int:
        """Put what has arrived into buffers, about `budget` bytes; how many frames of it were lost."""
        backlog = self.backlog
        lost = 0
        while backlog and budget > 0:
            adapter = backlog.popleft()
            count, copied, more = adapter.take_in(budget)
            lost += count
            budget -= copied
            if more:
                backlog.appendleft(adapter)
        return lost


class LanAdapter(VirtualAdapter):
    """One adapter. Everything is under the hypervisor's lock unless it says otherwise."""

    immovable = "it has a logical LAN adapter, whose buffers are not saved"

    def __init__(
        self,
        partition: Partition,
        slot: int,
        switch: Switch,
        options: PortOptions,
        *,
        window: int,
        filters: int,
        own_macs: bool,
    ) -> None:
        super().__init__(
            partition,
            slot,
            name=lan.NODE_NAME,
            device_type=lan.DEVICE_TYPE,
            compatible=lan.COMPATIBLE,
            window=window,
        )
        assert options.mac is not None
        assert self.table is not None
        self.switch = switch
        self.options = options
        self.mac = options.mac
        self.filters = filters
        """Multicast addresses that its table has room for."""
        self.own_macs = own_macs
        self.network = LanNetwork.of(partition.hypervisor)
        self.node = replace(self.node, properties=lan.node_properties(options.mac, filters, trunk=options.trunk > 0))
        self.vlans = frozenset((options.pvid, *options.vlans))
        self.core = LanCore(
            self.table, self.ledger, window, partition.hypervisor.copy_limit, self.vlans, options.trunk > 0
        )
        self.port: SwitchPort | None = None
        """While it is registered."""
        self.enabled_attributes = 0
        """Those that the partition chose."""
        self.reception = self.filtering = False
        """Of multicast frames that are not for all."""
        self.groups: set[bytes] = set()
        self.token = 0
        """Of the H_SEND_LOGICAL_LAN that was answered with H_BUSY last, and what is to be said in the end."""
        self.sending = 0
        self._tokens = 0

    # -- its life

    def register_lan(self, buffer_list: int, queue: int, filters: int, mac: bytes) -> int:
        """Take checked memory into use and join the switch: H_SUCCESS, H_PARAMETER or H_RESOURCE."""
        code = self.core.register(buffer_list, queue, filters)
        if code:
            return code
        self._set_address(mac)
        options = replace(
            self.options,
            mac=mac,
            spoof_check=self.options.spoof_check and not self.options.trunk,
            all_groups=False,
        )
        try:
            with self.network:
                self.port = self.switch.add(options)
                self.port.take(_ALL)
                self.port.on_arrival = self._arrived
                self.port.on_active = self._active_changed
                self.set_groups()
                self.take_in(BUDGET)  # what came before somebody was to be called
        except LocalError:
            self.release_lan()
            return -16
        self.registered = True
        self.interrupt_enabled = False
        self.core.show_attributes(self.attributes)
        return 0

    def release_lan(self) -> None:
        """Leave the switch; buffers, filters and what waits are forgotten."""
        self.registered = False
        self.core.release()
        self.token = 0
        self.reception = self.filtering = False
        self.groups.clear()
        self.interrupt_enabled = False
        port, self.port = self.port, None
        if port is not None:
            with self.network:
                port.on_arrival = port.on_active = None
                self.switch.remove(port)

    def stop(self) -> None:
        """See `VirtualAdapter.stop`: what the partition enabled is as after its boot, too."""
        self.release_lan()
        self.enabled_attributes = 0
        self.core.attributes = 0
        self._set_address(self.options.mac or b"")

    def _set_address(self, mac: bytes) -> None:
        self.mac = mac
        self.core.address = int.from_bytes(mac, "big")

    def may_have(self, mac: bytes) -> bool:
        """Whether the partition may give the adapter this address: its node's, or one that is nobody's."""
        if mac == self.options.mac:
            return True
        if not self.own_macs or mac[0] & 1 or not any(mac):
            return False
        return not any(
            mac in (other.mac, other.options.mac) and self.vlans & other.vlans
            for other in self.network.adapters
            if other is not self and other.switch is self.switch
        )

    def change_mac(self, mac: bytes) -> int:
        """Another address, from now on."""
        if not self.may_have(mac):
            return -4
        if self.port is not None:
            try:
                with self.network:
                    self.port.set_mac(mac)
            except LocalError:
                return -4
        self._set_address(mac)
        return 0

    def set_groups(self) -> None:
        """Tell the switch which multicast frames are wanted."""
        if self.port is not None:
            self.port.set_all_groups(self.reception and not self.filtering)
            filtered = self.groups if self.reception and self.filtering else set()
            self.port.set_groups(group for group in filtered if group[0] & 1)

    # -- attributes

    @property
    def attributes(self) -> int:
        """See `lan.Attribute`."""
        value = _FIXED | self.enabled_attributes | self.options.trunk << lan.TRUNK_PRIORITY_SHIFT
        return value | Attribute.ACTIVE_TRUNK if self.active else value

    def enable(self, attributes: int) -> None:
        """What the partition may choose is this."""
        self.enabled_attributes = self.core.attributes = attributes

    @property
    def active(self) -> bool:
        """Whether it is the active trunk adapter of all its VLANs."""
        return self.port is not None and self.options.trunk > 0 and self.vlans <= self.port.active

    def activate(self) -> bool:
        """Become that; False for an adapter that is not on the switch."""
        if self.port is None or not self.options.trunk:
            return False
        with self.network:
            self.switch.activate(self.port)
        return True

    def _active_changed(self, vlans: frozenset[int]) -> None:
        """The owner is interrupted, and looks at its attributes. From any thread."""
        if self.network.inside == threading.get_ident():
            self._tell_active()
        else:
            with self.partition.hypervisor.lock:
                self._tell_active()

    def _tell_active(self) -> None:
        self.core.show_attributes(self.attributes)
        self.signal()

    # -- frames

    def send(self, frame: Frame) -> tuple[bool, int]:
        """Let a frame go: whether somebody missed it, and what is left to do in other calls (`network.backlog`)."""
        network, port = self.network, self.port
        if port is None:
            return True, 0
        network.inside = threading.get_ident()
        try:
            lost = not port.send(frame) or port.missed > 0
            if network.work(BUDGET):
                lost = True
        finally:
            network.inside = 0
        return lost, len(network.backlog)

    def go_on(self) -> tuple[bool, int]:
        """Go on with the backlog; as `send`."""
        with self.network as network:
            lost = network.work(BUDGET) > 0
        return lost, len(network.backlog)

    def new_token(self) -> int:
        """A token for H_BUSY, never 0."""
        self._tokens = self._tokens % 0xFFFF_FFFF + 1
        self.token = self._tokens
        return self.token

    def _arrived(self) -> None:
        self.network.arrived(self)

    def take_in(self, budget: int) -> tuple[int, int, bool]:
        """Put frames that wait into buffers: how many were lost, the bytes copied, whether more may wait."""
        lost = copied = 0
        port, core = self.port, self.core
        if port is None:
            return 0, 0, False
        put_one = False
        before = core.moved
        more = False
        while (frame := port.receive()) is not None:
            result = core.put(frame)
            if result == PUT:
                put_one = True
            elif result != NOT_TAKEN or not self._put_parts(frame):
                lost += 1
                port.drop("no buffer")
            else:
                put_one = True
            copied = core.moved - before
            if copied >= budget:
                more = True
                break
        if put_one:
            self.signal()
        return lost, copied, more

    def _put_parts(self, frame: Frame) -> bool:
        """Finish or segment a frame; whether all of it got buffers."""
        size = frame.gso_size
        if frame.gso and (size < 1 or len(frame.data) > MOST_SEGMENTS * size):
            self.core.miss()
            return False
        checksums = Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6
        taken = int(Offload.CSUM) if frame.gso and self.enabled_attributes & checksums == checksums else 0
        parts = fitted(frame, taken)
        good = bool(parts)
        if not good:
            self.core.miss()
        for part in parts:
            result = self.core.put(part)
            if result == NOT_TAKEN:
                result = self.core.put(fitted(part, 0)[0])
            good = good and result == PUT
        return good


def default_mac(partition: Partition, slot: int) -> bytes:
    """A locally administered address that no other adapter of the hypervisor has by default."""
    return b"\x02\x4c" + partition.partition_id.to_bytes(2, "big") + slot.to_bytes(2, "big")


def create_lan(
    hypervisor: Hypervisor,
    partition: Partition,
    switch: Switch,
    options: PortOptions,
    *,
    slot: int | None = None,
    window: int = WINDOW,
    filters: int = FILTERS,
    own_macs: bool = True,
    identity: Identity | None = None,
) -> LanAdapter:
    """Give a partition a logical LAN adapter on a switch; not under the hypervisor's lock.

    `options` are what its port will be, which is there while the partition has registered the adapter. Without a `mac`
    it gets one. A `trunk` may send with foreign addresses; of others `spoof_check` says whether they may. `window`:
    bytes of its pane; `filters`: multicast addresses that the switch filters for it; `own_macs`: whether the partition
    may choose another address. Raises `LocalError`.
    """
    options.check()
    if window <= 0 or window % PAGE_SIZE or window > MAX_WINDOW:
        raise LocalError(f"the window of a LAN adapter is {window} bytes; expected whole pages, at most {MAX_WINDOW}")
    if not 0 <= filters <= FILTERS:
        raise LocalError(f"{filters} multicast filters; expected 0 to {FILTERS}")
    with hypervisor.lock:
        if hypervisor.partitions.get(partition.partition_id) is not partition:
            raise LocalError(f"partition {partition.name} is not running on this hypervisor")
        chosen = partition.choose_slot(slot)
        if options.mac is None:
            options = replace(options, mac=default_mac(partition, chosen))
        with partition.numbering(identity):
            adapter = LanAdapter(partition, chosen, switch, options, window=window, filters=filters, own_macs=own_macs)
        owner = _HYPERVISORS.setdefault(switch, ref(hypervisor))()
        if owner is not None and owner is not hypervisor and owner.partitions:
            raise LocalError(f"switch {switch.name} is another hypervisor's")
        _HYPERVISORS[switch] = ref(hypervisor)
        for other in adapter.network.adapters:
            if other.options.mac == options.mac and other.switch is switch and other.vlans & adapter.vlans:
                raise LocalError(
                    f"{(options.mac or b'').hex(':')} is the address of {other.node.location_code} in the same VLAN"
                )
        adapter.stop()
        partition.add(adapter)
        adapter.network.adapters.append(adapter)
        return adapter


def remove_lan(adapter: LanAdapter) -> None:
    """Unplug an adapter, also while it is in use; not under the hypervisor's lock. Harmless when it is gone already."""
    with adapter.partition.hypervisor.lock:
        adapter.stop()
        if adapter.partition.slots.get(adapter.slot) is adapter:
            adapter.partition.remove(adapter)
            if adapter.table is not None:
                adapter.table.retire()
