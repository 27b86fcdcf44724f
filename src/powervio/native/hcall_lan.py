"""hcall-lLAN and hcall-illan-options, and the sub-functions of H_VIOCTL for logical LAN (papr-vio 7.4, 7.5).

Checks stand in PAPR's order; where it names none for an adapter that is not registered, docs/papr-decisions.md has
what is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from powervio.network.frame import Frame
from powervio.papr import lan
from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.lan import Attribute
from powervio.papr.vioctl import Vioctl
from powervio.phyp.hcall_vioctl import Result, sub_function, writable
from powervio.phyp.ledger import hcall_index
from powervio.phyp.rdma import write_small
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.native.lan import LanAdapter
    from powervio.phyp.adapter import VirtualAdapter
    from powervio.phyp.partition import Partition

_SUCCESS = int(ReturnCode.H_SUCCESS)
_BUSY = int(ReturnCode.H_BUSY)
_CONSTRAINED = int(ReturnCode.H_CONSTRAINED)
_IN_PROGRESS = int(ReturnCode.H_IN_PROGRESS)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_NOT_FOUND = int(ReturnCode.H_NOT_FOUND)
_PERMISSION = int(ReturnCode.H_PERMISSION)
_DROPPED = int(ReturnCode.H_DROPPED)
_RESOURCE = int(ReturnCode.H_RESOURCE)

_REGISTER = hcall_index("H_REGISTER_LOGICAL_LAN")
_FREE = hcall_index("H_FREE_LOGICAL_LAN")
_ADD = hcall_index("H_ADD_LOGICAL_LAN_BUFFER")
_ADD_MANY = hcall_index("H_ADD_LOGICAL_LAN_BUFFERS")
_FREE_BUFFER = hcall_index("H_FREE_LOGICAL_LAN_BUFFER")
_SEND = hcall_index("H_SEND_LOGICAL_LAN")
_MULTICAST = hcall_index("H_MULTICAST_CTRL")
_CHANGE_MAC = hcall_index("H_CHANGE_LOGICAL_LAN_MAC")
_ATTRIBUTES = hcall_index("H_ILLAN_ATTRIBUTES")

_MAC_BITS = 48
_MAC_MASK = (1 << _MAC_BITS) - 1
_CHOSEN = int(Attribute.LARGE | Attribute.BUFFER_SIZE_CONTROL | Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6)
"""What a partition may change, while the adapter is not registered."""
_FIXED = int(Attribute.RX_MULTI | Attribute.NONZERO_CHECKSUM | Attribute.LARGE_SUPPORTED | Attribute.PADDED)
_PRIORITY = int(Attribute.TRUNK_PRIORITY)
_ACTIVE = int(Attribute.ACTIVE_TRUNK)
_MULTICAST_FLAGS = (
    lan.MULTICAST_SET_RECEPTION
    | lan.MULTICAST_RECEPTION
    | lan.MULTICAST_SET_FILTER
    | lan.MULTICAST_FILTER
    | lan.MULTICAST_TABLE
)
_SCAN_HEADER = 40
_SCAN_ENTRY = 8


def _lan(partition: Partition, unit_address: int, index: int) -> LanAdapter | None:
    """The logical LAN adapter at a unit address, with the attempt counted."""
    adapter = partition.adapters.get(unit_address)
    (partition if adapter is None else adapter).ledger.count(index)
    return cast("LanAdapter", adapter) if adapter is not None and _is_lan(adapter) else None


def _is_lan(adapter: VirtualAdapter) -> bool:
    return adapter.node.name == lan.NODE_NAME


def _is_trunk(adapter: VirtualAdapter) -> bool:
    return _is_lan(adapter) and cast("LanAdapter", adapter).options.trunk > 0


@hcall(Hcall.H_REGISTER_LOGICAL_LAN, function_set=lan.FUNCTION_SET, registers=5)
def register_logical_lan(
    partition: Partition, unit_address: int, buffer_list: int, queue: int, filters: int, mac: int
) -> int:
    """Join the switch. H_RESOURCE when it is registered, and when the switch has no place for it."""
    adapter = _lan(partition, unit_address, _REGISTER)
    if adapter is None:
        return _PARAMETER
    if adapter.registered:
        return _RESOURCE
    address = (mac & _MAC_MASK).to_bytes(6, "big")
    if not adapter.may_have(address):
        return _PARAMETER
    return adapter.register_lan(buffer_list, queue, filters, address)


@hcall(Hcall.H_FREE_LOGICAL_LAN, function_set=lan.FUNCTION_SET, registers=1)
def free_logical_lan(partition: Partition, unit_address: int) -> int:
    """Leave the switch; all buffers are the partition's again. Harmless when it is not registered."""
    adapter = _lan(partition, unit_address, _FREE)
    if adapter is None:
        return _PARAMETER
    adapter.release_lan()
    return _SUCCESS


@hcall(Hcall.H_ADD_LOGICAL_LAN_BUFFER, function_set=lan.FUNCTION_SET, registers=2)
def add_logical_lan_buffer(partition: Partition, unit_address: int, descriptor: int) -> int:
    """A buffer to receive into. H_RESOURCE when there is no place for it, as before the registration."""
    adapter = _lan(partition, unit_address, _ADD)
    if adapter is None:
        return _PARAMETER
    return adapter.core.add(descriptor)


@hcall(Hcall.H_ADD_LOGICAL_LAN_BUFFERS, function_set=lan.FUNCTION_SET, registers=9)
def add_logical_lan_buffers(partition: Partition, unit_address: int, *descriptors: int) -> int:
    """Up to eight buffers, before the first descriptor that is 0. Those before one that is refused were added."""
    adapter = _lan(partition, unit_address, _ADD_MANY)
    if adapter is None or not descriptors[0]:
        return _PARAMETER
    for one in descriptors:
        if not one:
            break
        code = adapter.core.add(one)
        if code:
            return code
    return _SUCCESS


@hcall(Hcall.H_FREE_LOGICAL_LAN_BUFFER, function_set=lan.FUNCTION_SET, registers=2)
def free_logical_lan_buffer(partition: Partition, unit_address: int, size: int) -> int:
    """A buffer of this size comes back unused by the receive queue."""
    adapter = _lan(partition, unit_address, _FREE_BUFFER)
    if adapter is None:
        return _PARAMETER
    code = adapter.core.give_back(size)
    if code == _SUCCESS:
        adapter.signal()
    return code


@hcall(Hcall.H_SEND_LOGICAL_LAN, function_set=lan.FUNCTION_SET, registers=9)
def send_logical_lan(
    partition: Partition,
    unit_address: int,
    d1: int,
    d2: int,
    d3: int,
    d4: int,
    d5: int,
    d6: int,
    token: int,
    mss: int,
) -> Result:
    """Send one frame; H_DROPPED when somebody who should have it has not. H_BUSY: call again with the token in r4."""
    adapter = _lan(partition, unit_address, _SEND)
    if adapter is None:
        return _PARAMETER
    if token:
        if token != adapter.token:
            return _PARAMETER
        lost, left = adapter.go_on()
        lost = lost or adapter.sending == _DROPPED
    else:
        adapter.token = 0
        if not adapter.registered:
            return _DROPPED
        frame = adapter.core.take(d1, d2, d3, d4, d5, d6, mss)
        if not isinstance(frame, Frame):
            return cast(int, frame)
        lost, left = adapter.send(frame)
    code = _DROPPED if lost else _SUCCESS
    if left:
        adapter.sending = code
        return _BUSY, adapter.new_token()
    adapter.token = 0
    return code


@hcall(Hcall.H_MULTICAST_CTRL, function_set=lan.FUNCTION_SET, registers=3)
def multicast_ctrl(partition: Partition, unit_address: int, flags: int, mac: int) -> Result:
    """Which frames of groups are received. r4: enables, and how many addresses the table has."""
    adapter = _lan(partition, unit_address, _MULTICAST)
    if adapter is None or flags & ~_MULTICAST_FLAGS or mac >> _MAC_BITS:
        return _PARAMETER
    if flags & lan.MULTICAST_SET_RECEPTION:
        adapter.reception = flags & lan.MULTICAST_RECEPTION != 0
    if flags & lan.MULTICAST_SET_FILTER:
        adapter.filtering = flags & lan.MULTICAST_FILTER != 0
    code = _SUCCESS
    group, change = mac.to_bytes(6, "big"), flags & lan.MULTICAST_TABLE
    if change == lan.MULTICAST_CLEAR:
        adapter.groups.clear()
    elif change == lan.MULTICAST_ADD and group not in adapter.groups:
        if len(adapter.groups) < adapter.filters:
            adapter.groups.add(group)
        else:
            code = _CONSTRAINED
    elif change == lan.MULTICAST_REMOVE:
        if group in adapter.groups:
            adapter.groups.remove(group)
        else:
            code = _NOT_FOUND
    adapter.set_groups()
    enables = lan.MULTICAST_RECEPTION * adapter.reception | lan.MULTICAST_FILTER * adapter.filtering
    return code, enables | len(adapter.groups)


@hcall(Hcall.H_CHANGE_LOGICAL_LAN_MAC, function_set=lan.FUNCTION_SET, registers=2)
def change_logical_lan_mac(partition: Partition, unit_address: int, mac: int) -> int:
    """The adapter has another address. H_PARAMETER for one that it may not have."""
    adapter = _lan(partition, unit_address, _CHANGE_MAC)
    if adapter is None:
        return _PARAMETER
    return adapter.change_mac((mac & _MAC_MASK).to_bytes(6, "big"))


@hcall(Hcall.H_ILLAN_ATTRIBUTES, function_set="hcall-illan-options", registers=3)
def illan_attributes(partition: Partition, unit_address: int, reset: int, wanted: int) -> Result:
    """Read attributes, and change those that may be: H_CONSTRAINED when one may not. r4: what they are then."""
    adapter = _lan(partition, unit_address, _ATTRIBUTES)
    if adapter is None or (reset | wanted) & Attribute.PORT_DISABLED:
        return _PARAMETER
    old = adapter.attributes
    known = _CHOSEN | _FIXED | (_PRIORITY | _ACTIVE if adapter.options.trunk else 0)
    if not adapter.options.trunk and wanted & _PRIORITY:
        return _PARAMETER  # nobody becomes a trunk adapter by himself
    new = ((old & ~reset) | wanted) & known
    if old & _ACTIVE and not new & _ACTIVE:
        return _PARAMETER
    code = _SUCCESS
    # also of the one that is: then it was elected, and now is chosen, whoever comes
    if wanted & _ACTIVE and not adapter.activate():
        code = _CONSTRAINED
    changed = old ^ new
    if changed & (_FIXED | _PRIORITY):
        code = _CONSTRAINED
    if changed & _CHOSEN:
        if adapter.registered:
            code = _CONSTRAINED
        else:
            adapter.enable(new & _CHOSEN)
    return code, adapter.attributes


# -- H_VIOCTL


def _write(adapter: VirtualAdapter, descriptor: int, data: bytes) -> int:
    """Fill what an output descriptor names with data and zeros; H_CONSTRAINED when it is too small."""
    if not writable(adapter, descriptor):
        return _PARAMETER
    room, ioba = descriptor >> 32 & 0xFF_FFFF, descriptor & 0xFFFF_FFFF
    if room < len(data):
        return _CONSTRAINED
    assert adapter.table is not None
    return _PARAMETER if write_small(adapter.table, ioba, data + bytes(room - len(data))) else _SUCCESS


@sub_function(Vioctl.GET_ILLAN_NUMBER_VLAN_IDS, applies=_is_lan)
def get_number_of_vlan_ids(adapter: LanAdapter) -> Result:
    """The adapter's own VLAN and those that it has tags of."""
    return _SUCCESS, len(adapter.vlans)


@sub_function(Vioctl.GET_ILLAN_VLAN_ID_LIST, parameters=1, applies=_is_lan)
def get_vlan_id_list(adapter: LanAdapter, descriptor: int) -> Result:
    """Them, as 16-bit numbers, the adapter's own first."""
    own = adapter.options.pvid
    ids = [own, *sorted(adapter.vlans - {own})]
    return _write(adapter, descriptor, b"".join(number.to_bytes(2, "big") for number in ids))


@sub_function(Vioctl.GET_ILLAN_SWITCH_ID, parameters=1, applies=_is_lan)
def get_switch_id(adapter: LanAdapter, descriptor: int) -> Result:
    """The name of its switch."""
    return _write(adapter, descriptor, adapter.switch.name.encode("ascii", "replace") + b"\0")


@sub_function(Vioctl.GET_ILLAN_SWITCHING_MODE, applies=_is_trunk)
def get_switching_mode(adapter: LanAdapter) -> Result:
    """0: the switch forwards by itself between adapters (VEB)."""
    return _SUCCESS, 0


@sub_function(Vioctl.DISABLE_INACTIVE_TRUNK_RECEPTION, applies=_is_trunk)
def disable_inactive_trunk_reception(adapter: LanAdapter) -> Result:
    """As it always is: the switch gives nothing to a trunk that is not the active one."""
    return _SUCCESS


@sub_function(Vioctl.ILLAN_MAC_SCAN, parameters=3, applies=_is_trunk)
def illan_mac_scan(adapter: LanAdapter, descriptor: int, first: int, second: int) -> Result:
    """The addresses in the VLANs of an active trunk adapter: {4 bits 0, 12 bits VLAN, 48 bits address}, big-endian.

    The tokens are how many entries were given before, and how many there were then plus one; so a table that has
    changed meanwhile is seen (the byte "reconfiguration occurred"). H_IN_PROGRESS: there are more.
    """
    if not adapter.active:
        return _PARAMETER
    room, ioba = descriptor >> 32 & 0xFF_FFFF, descriptor & 0xFFFF_FFFF
    if room < _SCAN_HEADER or ioba & 7 or descriptor >> 56:
        return _PARAMETER
    entries = sorted(
        (vlan, other.mac)
        for other in adapter.switch.ports
        if not other.options.trunk and other.mac is not None
        for vlan in {other.options.pvid, *other.options.vlans} & adapter.vlans
    )
    if bool(first) != bool(second) or (first and first >= second):
        return _PARAMETER
    if not writable(adapter, descriptor):
        return _PERMISSION
    changed = bool(second) and second != len(entries) + 1
    given = entries[first : first + (room - _SCAN_HEADER) // _SCAN_ENTRY]
    end = first + len(given)
    more = end < len(entries)
    if more and not given:
        return _PARAMETER
    tokens = (end, len(entries) + 1) if more else (0, 0)
    header = b"".join(token.to_bytes(8, "big") for token in tokens) + bytes(15) + bytes([changed])
    body = b"".join((vlan.to_bytes(2, "big") + mac) for vlan, mac in given)
    assert adapter.table is not None
    if write_small(adapter.table, ioba, header + len(given).to_bytes(8, "big") + body):
        return _PERMISSION
    return _IN_PROGRESS if more else _SUCCESS
