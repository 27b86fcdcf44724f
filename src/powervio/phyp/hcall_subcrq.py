# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""hcall-sub-crq: further queues of a connection, with elements of 32 bytes (papr-vio 5). Checks stand in PAPR's order.

A Sub-CRQ follows its CRQ: while the connection is not up or is suspended nothing is sent into it, and H_FREE_CRQ frees
it. No transport events are put into Sub-CRQs (papr-vio 13, row 11).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import struct
from typing import Any

import cython
from cython.cimports.powervio.phyp.records import AdapterRecord, PartitionRecord
from cython.cimports.powervio.phyp.subcrq import SubCrq, SubCrqs

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.crq import VALID_MESSAGE
from powervio.papr.tce import TCE_PAGE_SIZE, TCE_READ
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall
from powervio.phyp.subcrq import SUB_CRQ_SLOT

INDIRECT_LIMIT = 16
"""Elements that one H_SEND_SUB_CRQ_INDIRECT carries (papr-vio 13, row 12)."""

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_CLOSED = cython.declare(cython.int, int(ReturnCode.H_CLOSED))
_FUNCTION = cython.declare(cython.int, int(ReturnCode.H_FUNCTION))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))
_NOT_FOUND = cython.declare(cython.int, int(ReturnCode.H_NOT_FOUND))
_RESOURCE = cython.declare(cython.int, int(ReturnCode.H_RESOURCE))

_REG_SUB_CRQ = cython.declare(cython.int, hcall_index("H_REG_SUB_CRQ"))
_FREE_SUB_CRQ = cython.declare(cython.int, hcall_index("H_FREE_SUB_CRQ"))
_SEND_SUB_CRQ = cython.declare(cython.int, hcall_index("H_SEND_SUB_CRQ"))
_SEND_SUB_CRQ_INDIRECT = cython.declare(cython.int, hcall_index("H_SEND_SUB_CRQ_INDIRECT"))

_PAGE_OFFSET = 0xFFF
_MESSAGE = cython.declare(cython.ulonglong, VALID_MESSAGE)
_ELEMENT = struct.Struct(">4Q")


def _adapter(partition: PartitionRecord, unit_address: Any, index: cython.int) -> VioAdapter | int:
    """The adapter with Sub-CRQs at this unit address, with the attempt counted, or the code to answer with."""
    adapter = partition.adapters.get(unit_address)
    if adapter is None:
        partition.ledger.count(index)
    else:
        adapter.ledger.count(index)
    if not partition.hypervisor.policy.max_sub_crqs:
        return _FUNCTION
    return adapter if isinstance(adapter, VioAdapter) else _PARAMETER


@hcall(Hcall.H_REG_SUB_CRQ, function_set="hcall-sub-crq", registers=3)
def reg_sub_crq(partition: PartitionRecord, unit_address: int, ioba: int, length: int) -> int | tuple[int, ...]:
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
def free_sub_crq(partition: PartitionRecord, unit_address: int, cookie: int) -> int:
    """Free one of the caller's own Sub-CRQs; the partner is not told."""
    adapter = _adapter(partition, unit_address, _FREE_SUB_CRQ)
    if isinstance(adapter, int):
        return adapter
    return _SUCCESS if adapter.sub_crqs.free(cookie) else _PARAMETER


@cython.ccall
@cython.exceptval(-1)
def send_sub_crq(
    partition: PartitionRecord,
    unit_address: Any,
    cookie: Any,
    dw0: cython.ulonglong,
    dw1: cython.ulonglong,
    dw2: cython.ulonglong,
    dw3: cython.ulonglong,
) -> cython.int:
    """H_SEND_SUB_CRQ: put one element into the partner's Sub-CRQ with this cookie."""
    adapter: AdapterRecord | None = partition.adapters.get(unit_address)
    partner: AdapterRecord | None = None
    subs: SubCrqs
    sub: SubCrq | None = None
    code: cython.int
    if adapter is None:
        partition.ledger.count(_SEND_SUB_CRQ)
    else:
        adapter.ledger.count(_SEND_SUB_CRQ)
        if adapter.queue is not None:
            partner = adapter.partner
    if partner is not None:
        subs = partner.sub_crqs  # type: ignore[attr-defined]
        sub = subs._by_cookie.get(cookie)
    if sub is None:  # as there is none where the platform has none
        return _PARAMETER if partition.hypervisor.policy.max_sub_crqs else _FUNCTION
    assert adapter is not None
    assert partner is not None
    if dw0 >> 56 != _MESSAGE:
        return _PARAMETER
    if not (adapter.enabled and partner.enabled):
        return _CLOSED
    code = sub.queue.room(1)
    if code:
        return code
    sub.queue.store(dw0, dw1, dw2, dw3)
    adapter.ledger.sent()
    subs.signal(sub)
    return _SUCCESS


hcall(Hcall.H_SEND_SUB_CRQ, function_set="hcall-sub-crq", registers=6)(send_sub_crq)


@hcall(Hcall.H_SEND_SUB_CRQ_INDIRECT, function_set="hcall-sub-crq", registers=4)
def send_sub_crq_indirect(partition: PartitionRecord, unit_address: int, cookie: int, ioba: int, count: int) -> int:
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


def _send(adapter: VioAdapter, cookie: Any, elements: tuple[tuple[int, ...], ...]) -> int:
    """All of them, or none."""
    subs: SubCrqs
    partner = adapter.partner
    sub = None if partner is None else partner.sub_crqs.get(cookie)
    if partner is None or sub is None:
        return _PARAMETER
    for element in elements:
        if element[0] >> 56 != VALID_MESSAGE:
            return _PARAMETER
    if not (adapter.enabled and partner.enabled):
        return _CLOSED
    code: int = sub.queue.room(len(elements))
    if code:
        return code
    for element in elements:
        sub.queue.store(*element)
        adapter.ledger.sent()
    subs = partner.sub_crqs
    subs.signal(sub)
    return _SUCCESS
