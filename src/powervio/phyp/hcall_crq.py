# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""hcall-crq: registering a queue, sending into the partner's (papr-vio 1.5, 3). Checks stand in PAPR's order.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.phyp.records import AdapterRecord, PartitionRecord

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.crq import VALID_EVENT, VALID_INIT, VALID_MESSAGE, TransportEvent
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_CLOSED = cython.declare(cython.int, int(ReturnCode.H_CLOSED))
_LONG_BUSY_10 = cython.declare(cython.int, int(ReturnCode.H_LONG_BUSY_ORDER_10_MSEC))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))
_NOT_FOUND = cython.declare(cython.int, int(ReturnCode.H_NOT_FOUND))
_RESOURCE = cython.declare(cython.int, int(ReturnCode.H_RESOURCE))

_REG_CRQ = cython.declare(cython.int, hcall_index("H_REG_CRQ"))
_FREE_CRQ = cython.declare(cython.int, hcall_index("H_FREE_CRQ"))
_SEND_CRQ = cython.declare(cython.int, hcall_index("H_SEND_CRQ"))
_ENABLE_CRQ = cython.declare(cython.int, hcall_index("H_ENABLE_CRQ"))

_PAGE_OFFSET = 0xFFF
_MESSAGE = cython.declare(cython.uint, VALID_MESSAGE)
_INIT = cython.declare(cython.uint, VALID_INIT)
_EVENT = cython.declare(cython.uint, VALID_EVENT)


def _adapter(partition: PartitionRecord, unit_address: Any, index: cython.int) -> VioAdapter | None:
    """The adapter with a CRQ at this unit address, with the attempt counted; a device without a CRQ is none."""
    adapter = partition.adapters.get(unit_address)
    if adapter is None:
        partition.ledger.count(index)
        return None
    adapter.ledger.count(index)
    return adapter if isinstance(adapter, VioAdapter) else None


@hcall(Hcall.H_REG_CRQ, function_set="hcall-crq", registers=3)
def reg_crq(partition: PartitionRecord, unit_address: int, ioba: int, length: int) -> int:
    """Register a receive queue. H_CLOSED is success too: registered, with no partner there yet."""
    adapter = _adapter(partition, unit_address, _REG_CRQ)
    if adapter is None:
        return _PARAMETER
    if (ioba | length) & _PAGE_OFFSET or not 0 < length <= partition.hypervisor.policy.max_crq_length:
        return _PARAMETER
    if not adapter.queue.mapped(ioba, length):
        return _PARAMETER
    if adapter.partner is None:
        return _NOT_FOUND
    if adapter.registered:
        return _RESOURCE
    adapter.register(ioba, length)
    return _SUCCESS if adapter.partner.registered else _CLOSED


@hcall(Hcall.H_FREE_CRQ, function_set="hcall-crq", registers=1)
def free_crq(partition: PartitionRecord, unit_address: int) -> int:
    """Unregister, unlink the panes, and only then tell the partner. Redirected pages come first: H_LONG_BUSY while a
    DMA engine is at work on one, H_RESOURCE if the table's owner has not allowed the bit bucket."""
    adapter = _adapter(partition, unit_address, _FREE_CRQ)
    if adapter is None:
        return _PARAMETER
    if adapter.registered:
        code = adapter.drain()
        if code != _SUCCESS:
            return code
    if adapter.free() and adapter.partner is not None:
        adapter.partner.deliver(TransportEvent.PARTNER_DEREGISTERED)
    return _SUCCESS


@cython.ccall
@cython.exceptval(-1)
def send_crq(
    partition: PartitionRecord, unit_address: Any, high: cython.ulonglong, low: cython.ulonglong
) -> cython.int:
    """H_SEND_CRQ: put an element into the partner's queue and interrupt the partner if it wants that."""
    adapter: AdapterRecord | None = partition.adapters.get(unit_address)
    partner: AdapterRecord | None
    header: cython.uint = high >> 56
    code: cython.int
    if adapter is None:
        partition.ledger.count(_SEND_CRQ)
        return _PARAMETER
    adapter.ledger.count(_SEND_CRQ)
    if adapter.queue is None:
        return _PARAMETER
    if header < _MESSAGE or header == _EVENT:
        return _PARAMETER
    if header != _MESSAGE and header != _INIT and partition.hypervisor.policy.reject_reserved_headers:
        return _PARAMETER
    partner = adapter.partner
    if partner is None or not (adapter.enabled and partner.enabled):
        return _CLOSED
    assert partner.queue is not None
    code = partner.queue.put(high, low)
    if code == 0:
        adapter.ledger.sent()
        partner.pulse()
    return code


hcall(Hcall.H_SEND_CRQ, function_set="hcall-crq", registers=3)(send_crq)


@hcall(Hcall.H_ENABLE_CRQ, function_set="hcall-suspend", registers=1)
def enable_crq(partition: PartitionRecord, unit_address: int) -> int:
    """Let messages through again after a suspension. Harmless on a CRQ that is enabled, or not registered."""
    adapter = _adapter(partition, unit_address, _ENABLE_CRQ)
    if adapter is None:
        return _PARAMETER
    if adapter.registered and not adapter.enabled:
        if adapter.enable_delays:
            adapter.enable_delays -= 1
            return _LONG_BUSY_10
        adapter.enabled = True
    return _SUCCESS
