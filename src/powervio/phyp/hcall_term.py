"""hcall-term and hcall-vty: characters to and from a virtual terminal, and who is at its other end (papr-vio 7.7).

Checks stand in PAPR's order: the unit address, the connection, the length, the room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.memory.area import PAGE_SIZE
from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall
from powervio.phyp.vterm import VtermAdapter, Vty, VtyServer

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_SUCCESS = int(ReturnCode.H_SUCCESS)
_BUSY = int(ReturnCode.H_BUSY)
_CLOSED = int(ReturnCode.H_CLOSED)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_RESOURCE = int(ReturnCode.H_RESOURCE)

_PUT = hcall_index("H_PUT_TERM_CHAR")
_GET = hcall_index("H_GET_TERM_CHAR")
_INFO = hcall_index("H_VTERM_PARTNER_INFO")
_REGISTER = hcall_index("H_REGISTER_VTERM")
_FREE = hcall_index("H_FREE_VTERM")

MOST_CHARS = 16
"""Bytes in the two registers of one call."""
_ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
_LOCATION_AT = 16
"""Of the location code in the page of H_VTERM_PARTNER_INFO, after partition id and unit address, 8 bytes each."""


def _terminal(partition: Partition, unit_address: int, index: int) -> VtermAdapter | None:
    """The terminal at a unit address, with the attempt counted; address 0 is the lowest-numbered vty."""
    if unit_address == 0:
        unit_address = min((ua for ua, end in partition.adapters.items() if isinstance(end, Vty)), default=0)
    adapter = partition.adapters.get(unit_address)
    (partition if adapter is None else adapter).ledger.count(index)
    return adapter if isinstance(adapter, VtermAdapter) else None


def _server(partition: Partition, unit_address: int, index: int) -> VtyServer | None:
    adapter = partition.adapters.get(unit_address)
    (partition if adapter is None else adapter).ledger.count(index)
    return adapter if isinstance(adapter, VtyServer) else None


@hcall(Hcall.H_PUT_TERM_CHAR, function_set="hcall-term", registers=4)
def put_term_char(partition: Partition, unit_address: int, length: int, high: int, low: int) -> int:
    """Send up to 16 bytes, all or none of them; no bytes ask only whether it is open."""
    adapter = _terminal(partition, unit_address, _PUT)
    if adapter is None:
        return _PARAMETER
    if adapter.partner is None:
        return _CLOSED
    if length > MOST_CHARS:
        return _PARAMETER
    if adapter.partner.room < length:
        return _BUSY
    adapter.partner.deliver((high << 64 | low).to_bytes(MOST_CHARS, "big")[:length])
    return _SUCCESS


@hcall(Hcall.H_GET_TERM_CHAR, function_set="hcall-term", registers=1)
def get_term_char(partition: Partition, unit_address: int) -> int | tuple[int, ...]:
    """Receive up to 16 bytes; what was sent before the connection ended is still received."""
    adapter = _terminal(partition, unit_address, _GET)
    if adapter is None:
        return _PARAMETER
    if not adapter.waiting and adapter.partner is None:
        return _CLOSED
    data = bytes(adapter.waiting[:MOST_CHARS])
    del adapter.waiting[: len(data)]
    padded = data.ljust(MOST_CHARS, b"\0")
    return _SUCCESS, len(data), int.from_bytes(padded[:8], "big"), int.from_bytes(padded[8:], "big")


@hcall(Hcall.H_VTERM_PARTNER_INFO, function_set="hcall-vty", registers=4)
def vterm_partner_info(partition: Partition, unit_address: int, partner_id: int, partner_ua: int, page: int) -> int:
    """The vty after the one that is named, all ones being before the first and after the last, into the page."""
    adapter = _server(partition, unit_address, _INFO)
    if adapter is None or page % PAGE_SIZE or page + PAGE_SIZE > len(partition.memory):
        return _PARAMETER
    candidates = adapter.candidates()
    places = [(vty.partition.partition_id, vty.unit_address) for vty in candidates]
    if (partner_id, partner_ua) == (_ALL_ONES, _ALL_ONES):
        at = 0
    elif (partner_id, partner_ua) in places:
        at = places.index((partner_id, partner_ua)) + 1
    else:
        return _PARAMETER
    found, location = (_ALL_ONES, _ALL_ONES), b""
    if at < len(places):
        found, location = places[at], candidates[at].node.location_code.encode()
    answer = b"".join(value.to_bytes(8, "big") for value in found) + location + b"\0"
    assert len(answer) > _LOCATION_AT
    partition.memory[page : page + len(answer)] = answer
    return _SUCCESS


@hcall(Hcall.H_REGISTER_VTERM, function_set="hcall-vty", registers=3)
def register_vterm(partition: Partition, unit_address: int, partner_id: int, partner_ua: int) -> int:
    """Connect a vty-server to a vty that it is configured for. H_RESOURCE when either has a connection."""
    adapter = _server(partition, unit_address, _REGISTER)
    if adapter is None:
        return _PARAMETER
    wanted = (partner_id, partner_ua)
    vty = next((end for end in adapter.candidates() if (end.partition.partition_id, end.unit_address) == wanted), None)
    if vty is None:
        return _PARAMETER
    if adapter.partner is not None or vty.partner is not None:
        return _RESOURCE
    adapter.waiting.clear()  # of an earlier connection
    vty.waiting.clear()
    adapter.partner, vty.partner = vty, adapter
    return _SUCCESS


@hcall(Hcall.H_FREE_VTERM, function_set="hcall-vty", registers=1)
def free_vterm(partition: Partition, unit_address: int) -> int:
    """End a vty-server's connection; the vty is interrupted. Success also when there is none."""
    adapter = _server(partition, unit_address, _FREE)
    if adapter is None:
        return _PARAMETER
    partner = adapter.disconnect()
    if partner is not None:
        partner.signal()
    return _SUCCESS
