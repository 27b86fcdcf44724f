"""hcall-sub-crq: further queues of a connection, with elements of 32 bytes (papr-vio 5). Checks stand in PAPR's order.

A Sub-CRQ follows its CRQ: while the connection is not up or is suspended nothing is sent into it, and H_FREE_CRQ frees
it. No transport events are put into Sub-CRQs (papr-vio 13, row 11).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.crq import VALID_MESSAGE
from powervio.papr.tce import TCE_PAGE_SIZE, TCE_READ
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall
from powervio.phyp.subcrq import SUB_CRQ_SLOT

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

INDIRECT_LIMIT = 16
"""Elements that one H_SEND_SUB_CRQ_INDIRECT carries (papr-vio 13, row 12)."""

_SUCCESS = int(ReturnCode.H_SUCCESS)
_CLOSED = int(ReturnCode.H_CLOSED)
_FUNCTION = int(ReturnCode.H_FUNCTION)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_NOT_FOUND = int(ReturnCode.H_NOT_FOUND)
_RESOURCE = int(ReturnCode.H_RESOURCE)

_REG_SUB_CRQ = hcall_index("H_REG_SUB_CRQ")
_FREE_SUB_CRQ = hcall_index("H_FREE_SUB_CRQ")
_SEND_SUB_CRQ = hcall_index("H_SEND_SUB_CRQ")
_SEND_SUB_CRQ_INDIRECT = hcall_index("H_SEND_SUB_CRQ_INDIRECT")

_PAGE_OFFSET = 0xFFF
_ELEMENT = struct.Struct(">4Q")


def _adapter(partition: Partition, unit_address: int, index: int) -> VioAdapter | int:
    """The adapter with Sub-CRQs at this unit address, with the attempt counted, or the code to answer with."""
    adapter = partition.adapters.get(unit_address)
    (partition if adapter is None else adapter).ledger.count(index)
    if not partition.hypervisor.policy.max_sub_crqs:
        return _FUNCTION
    return adapter if isinstance(adapter, VioAdapter) else _PARAMETER


@hcall(Hcall.H_REG_SUB_CRQ, function_set="hcall-sub-crq", registers=3)
def reg_sub_crq(partition: Partition, unit_address: int, ioba: int, length: int) -> int | tuple[int, ...]:
    """Register a Sub-CRQ: `(code, cookie, interrupt number)`. H_CLOSED is success too: the connection is not up yet."""
    adapter = _adapter(partition, unit_address, _REG_SUB_CRQ)
    if isinstance(adapter, int):
        return adapter
    if (ioba | length) & _PAGE_OFFSET or not 0 < length <= partition.hypervisor.policy.max_sub_crq_length:
        return _PARAMETER
    if not adapter.queue.mapped(ioba, length):
        return _PARAMETER
    if adapter.partner is None:
        return _NOT_FOUND
    sub = adapter.sub_crqs.register(ioba, length)
    if sub is None:
        return _RESOURCE
    complete = adapter.registered and adapter.partner.registered
    return (_SUCCESS if complete else _CLOSED), sub.cookie, sub.source


@hcall(Hcall.H_FREE_SUB_CRQ, function_set="hcall-sub-crq", registers=2)
def free_sub_crq(partition: Partition, unit_address: int, cookie: int) -> int:
    """Free one of the caller's own Sub-CRQs; the partner is not told."""
    adapter = _adapter(partition, unit_address, _FREE_SUB_CRQ)
    if isinstance(adapter, int):
        return adapter
    return _SUCCESS if adapter.sub_crqs.free(cookie) else _PARAMETER


@hcall(Hcall.H_SEND_SUB_CRQ, function_set="hcall-sub-crq", registers=6)
def send_sub_crq(partition: Partition, unit_address: int, cookie: int, dw0: int, dw1: int, dw2: int, dw3: int) -> int:
    """Put one element into the partner's Sub-CRQ with this cookie."""
    adapter = _adapter(partition, unit_address, _SEND_SUB_CRQ)
    if isinstance(adapter, int):
        return adapter
    return _send(adapter, cookie, ((dw0, dw1, dw2, dw3),))


@hcall(Hcall.H_SEND_SUB_CRQ_INDIRECT, function_set="hcall-sub-crq", registers=4)
def send_sub_crq_indirect(partition: Partition, unit_address: int, cookie: int, ioba: int, count: int) -> int:
    """Put 1 to 16 elements from one mapped page of the caller's into the partner's Sub-CRQ, all or none.

    The elements are copied before they are looked at, so the caller cannot change what was checked.
    """
    adapter = _adapter(partition, unit_address, _SEND_SUB_CRQ_INDIRECT)
    if isinstance(adapter, int):
        return adapter
    partner = adapter.partner
    if partner is None or partner.sub_crqs.get(cookie) is None or not 1 <= count <= INDIRECT_LIMIT:
        return _PARAMETER
    length = count * SUB_CRQ_SLOT
    if (ioba & _PAGE_OFFSET) + length > TCE_PAGE_SIZE or adapter.table is None:
        return _PARAMETER
    address = adapter.table.translate(ioba, TCE_READ)
    if address < 0:
        return _PARAMETER
    return _send(adapter, cookie, tuple(_ELEMENT.iter_unpack(bytes(partition.memory[address : address + length]))))


def _send(adapter: VioAdapter, cookie: int, elements: tuple[tuple[int, ...], ...]) -> int:
    partner = adapter.partner
    sub = None if partner is None else partner.sub_crqs.get(cookie)
    if partner is None or sub is None:
        return _PARAMETER
    for element in elements:
        if element[0] >> 56 != VALID_MESSAGE:
            return _PARAMETER
    if not (adapter.enabled and partner.enabled):
        return _CLOSED
    code = sub.queue.room(len(elements))
    if code:
        return code
    for element in elements:
        sub.queue.store(*element)
        adapter.ledger.sent()
    partner.sub_crqs.signal(sub)
    return _SUCCESS
