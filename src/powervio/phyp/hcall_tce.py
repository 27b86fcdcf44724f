"""hcall-tce and hcall-multi-tce: what a partition lets others reach of its memory (papr-vio 1.4).

Only a first pane takes these calls; a second pane's LIOBN gives H_PARAMETER, also for H_GET_TCE (papr-vio 2.2, 13).
The low 12 bits of an I/O bus address are ignored. Checks stand in PAPR's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.tce import MULTI_TCE_LIMIT
from powervio.phyp.ledger import hcall_index
from powervio.phyp.redirect import NOT_DRAINED
from powervio.phyp.registry import hcall
from powervio.phyp.tce import TceTable

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_SUCCESS = int(ReturnCode.H_SUCCESS)
_FUNCTION = int(ReturnCode.H_FUNCTION)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_P4 = int(ReturnCode.H_P4)
_RESOURCE = int(ReturnCode.H_RESOURCE)

_GET_TCE = hcall_index("H_GET_TCE")
_PUT_TCE = hcall_index("H_PUT_TCE")
_STUFF_TCE = hcall_index("H_STUFF_TCE")
_PUT_TCE_INDIRECT = hcall_index("H_PUT_TCE_INDIRECT")


def _when_drained(partition: Partition, liobn: int, entries: int, change: Callable[..., int], *arguments: int) -> int:
    """Try a change again whenever an operation of a DMA engine has ended, letting go of the lock meanwhile.

    H_RESOURCE, with the entries as they were and the copies gone, when it was not possible within the limit.
    """
    code = NOT_DRAINED

    def done() -> bool:
        nonlocal code
        pane = partition.panes.get(liobn)  # the adapter may be gone by now
        if pane is None or pane.table is None:
            code = _PARAMETER
        else:
            code = change(pane.table, *arguments)
            if code == 0:
                pane.ledger.updated(entries)
        return code != NOT_DRAINED

    partition.hypervisor.wait_drained(done)
    return _RESOURCE if code == NOT_DRAINED else code


@hcall(Hcall.H_GET_TCE, function_set="hcall-tce", registers=2)
def get_tce(partition: Partition, liobn: int, ioba: int) -> tuple[int, int]:
    """The entry as it was put. Entries hold logical pages, so H_PARTIAL does not happen."""
    pane = partition.panes.get(liobn)
    physical = partition.physical.get(liobn)
    (pane or physical or partition).ledger.count(_GET_TCE)
    if physical is not None and ioba < physical.size:
        return physical.get_tce(ioba)
    if pane is None or pane.remote or pane.table is None or ioba >= pane.size:
        return _PARAMETER, 0
    return _SUCCESS, pane.table.get(ioba)


@hcall(Hcall.H_PUT_TCE, function_set="hcall-tce", registers=3)
def put_tce(partition: Partition, liobn: int, ioba: int, tce: int) -> int:
    """Map or unmap one page."""
    pane = partition.panes.get(liobn)
    if pane is None:
        physical = partition.physical.get(liobn)
        (physical or partition).ledger.count(_PUT_TCE)
        return _PARAMETER if physical is None else physical.changed(physical.own.put(ioba, tce), ioba, 1)
    ledger = pane.ledger
    ledger.count(_PUT_TCE)
    if pane.remote or pane.table is None:
        return _PARAMETER
    code = pane.table.put(ioba, tce)
    if code == 0:
        ledger.updated(1)
    elif code == NOT_DRAINED:
        code = _when_drained(partition, liobn, 1, TceTable.put, ioba, tce)
    return code


@hcall(Hcall.H_STUFF_TCE, function_set="hcall-multi-tce", registers=4)
def stuff_tce(partition: Partition, liobn: int, ioba: int, tce: int, count: int) -> int:
    """The same entry for `count` pages."""
    pane = partition.panes.get(liobn)
    if pane is None:
        physical = partition.physical.get(liobn)
        (physical or partition).ledger.count(_STUFF_TCE)
        if physical is None or ioba >= physical.size:
            return _PARAMETER
        if count > MULTI_TCE_LIMIT and partition.hypervisor.policy.limit_stuff_tce:
            return _P4
        return physical.changed(physical.own.stuff(ioba, tce, count), ioba, count)
    ledger = pane.ledger
    ledger.count(_STUFF_TCE)
    if pane.remote or pane.table is None or ioba >= pane.size:
        return _PARAMETER
    if count > MULTI_TCE_LIMIT and partition.hypervisor.policy.limit_stuff_tce:
        return _P4
    code = pane.table.stuff(ioba, tce, count)
    if code == 0:
        ledger.updated(count)
    elif code == NOT_DRAINED:
        code = _when_drained(partition, liobn, count, TceTable.stuff, ioba, tce, count)
    return code


@hcall(Hcall.H_PUT_TCE_INDIRECT, function_set="hcall-multi-tce", registers=4)
def put_tce_indirect(partition: Partition, liobn: int, ioba: int, list_address: int, count: int) -> int:
    """Up to 512 entries from a page of the caller's memory, all or none. Without the MTT option: a negative LIOBN gives
    H_FUNCTION."""
    pane = partition.panes.get(liobn)
    if pane is None:
        physical = partition.physical.get(liobn)
        (physical or partition).ledger.count(_PUT_TCE_INDIRECT)
        if physical is not None:
            return physical.changed(physical.own.put_list(ioba, list_address, count), ioba, count)
        return _FUNCTION if liobn >> 63 else _PARAMETER
    ledger = pane.ledger
    ledger.count(_PUT_TCE_INDIRECT)
    if pane.remote or pane.table is None:
        return _PARAMETER
    code = pane.table.put_list(ioba, list_address, count)
    if code == 0:
        ledger.updated(count)
    elif code == NOT_DRAINED:
        code = _when_drained(partition, liobn, count, TceTable.put_list, ioba, list_address, count)
    return code
