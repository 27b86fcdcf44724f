# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""hcall-tce and hcall-multi-tce: what a partition lets others reach of its memory (papr-vio 1.4).

Only a first pane takes these calls; a second pane's LIOBN gives H_PARAMETER, also for H_GET_TCE (papr-vio 2.2, 13).
The low 12 bits of an I/O bus address are ignored. Checks stand in PAPR's order.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import low64
from cython.cimports.powervio.phyp.records import PartitionRecord, WindowPane

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.tce import MULTI_TCE_LIMIT
from powervio.phyp.ledger import hcall_index
from powervio.phyp.redirect import NOT_DRAINED
from powervio.phyp.registry import hcall

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_FUNCTION = cython.declare(cython.int, int(ReturnCode.H_FUNCTION))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))
_P4 = cython.declare(cython.int, int(ReturnCode.H_P4))
_RESOURCE = cython.declare(cython.int, int(ReturnCode.H_RESOURCE))

_NOT_DRAINED = cython.declare(cython.int, NOT_DRAINED)
_LIST_LIMIT = cython.declare(cython.ulonglong, MULTI_TCE_LIMIT)

_GET_TCE = cython.declare(cython.int, hcall_index("H_GET_TCE"))
_PUT_TCE = cython.declare(cython.int, hcall_index("H_PUT_TCE"))
_STUFF_TCE = cython.declare(cython.int, hcall_index("H_STUFF_TCE"))
_PUT_TCE_INDIRECT = cython.declare(cython.int, hcall_index("H_PUT_TCE_INDIRECT"))


def _when_drained(partition: PartitionRecord, liobn: Any, entries: int, change: str, *arguments: int) -> int:
    """Try a change (a method of `TceTable`) again whenever an operation of a DMA engine has ended, letting go of the
    lock meanwhile.

    H_RESOURCE, with the entries as they were and the copies gone, when it was not possible within the limit.
    """
    code = NOT_DRAINED

    def done() -> bool:
        nonlocal code
        pane = partition.pane(liobn)  # the adapter may be gone by now
        if pane is None or pane.table is None:
            code = _PARAMETER
        else:
            code = getattr(pane.table, change)(*arguments)
            if code == 0:
                pane.ledger.updated(entries)
        return code != NOT_DRAINED

    if partition.waits:
        partition.hypervisor.wait_drained(done)
    else:
        done()
    return int(_RESOURCE) if code == NOT_DRAINED else code


def get_tce(partition: PartitionRecord, liobn: Any, ioba: cython.ulonglong) -> tuple[int, int]:
    """H_GET_TCE: the entry as it was put. Entries hold logical pages, so H_PARTIAL does not happen."""
    pane: WindowPane | None = partition.pane(liobn)
    physical: Any = partition.engine(liobn)
    (pane or physical or partition).ledger.count(_GET_TCE)
    if physical is not None and ioba < physical.size:
        found: tuple[int, int] = physical.get_tce(ioba)
        return found
    if pane is None or pane.remote or pane.table is None or ioba >= pane.size:
        return _PARAMETER, 0
    entry = pane.table.get(ioba)
    pane.table.end_use()
    return _SUCCESS, entry


@cython.ccall
@cython.exceptval(-1)
def put_tce(partition: PartitionRecord, liobn: Any, ioba: cython.ulonglong, tce: cython.ulonglong) -> cython.int:
    """H_PUT_TCE: map or unmap one page."""
    pane: WindowPane | None = partition.pane(liobn)
    code: cython.int
    if pane is None:
        physical: Any = partition.engine(liobn)
        (physical or partition).ledger.count(_PUT_TCE)
        return _PARAMETER if physical is None else physical.changed(physical.own.put(ioba, tce), ioba, 1)
    pane.ledger.count(_PUT_TCE)
    if pane.remote or pane.table is None:
        return _PARAMETER
    code = pane.table.put(ioba, tce)
    if code == 0:
        pane.ledger.updated(1)
    elif code == _NOT_DRAINED:
        return _when_drained(partition, liobn, 1, "put", ioba, tce)
    return code


@cython.ccall
@cython.exceptval(-1)
def stuff_tce(
    partition: PartitionRecord,
    liobn: Any,
    ioba: cython.ulonglong,
    tce: cython.ulonglong,
    count: cython.ulonglong,
) -> cython.int:
    """H_STUFF_TCE: the same entry for `count` pages."""
    pane: WindowPane | None = partition.pane(liobn)
    code: cython.int
    if pane is None:
        physical: Any = partition.engine(liobn)
        (physical or partition).ledger.count(_STUFF_TCE)
        if physical is None or ioba >= physical.size:
            return _PARAMETER
        if count > _LIST_LIMIT and partition.hypervisor.policy.limit_stuff_tce:
            return _P4
        code = physical.changed(physical.own.stuff(ioba, tce, count), ioba, count)
        return code
    pane.ledger.count(_STUFF_TCE)
    if pane.remote or pane.table is None or ioba >= pane.size:
        return _PARAMETER
    if count > _LIST_LIMIT and partition.hypervisor.policy.limit_stuff_tce:
        return _P4
    code = pane.table.stuff(ioba, tce, count)
    if code == 0:
        pane.ledger.updated(count)
    elif code == _NOT_DRAINED:
        return _when_drained(partition, liobn, count, "stuff", ioba, tce, count)
    return code


@cython.ccall
@cython.exceptval(-1)
def put_tce_indirect(
    partition: PartitionRecord,
    liobn: Any,
    ioba: cython.ulonglong,
    list_address: cython.ulonglong,
    count: cython.ulonglong,
) -> cython.int:
    """H_PUT_TCE_INDIRECT: up to 512 entries from a page of the caller's memory, all or none. Without the MTT option: a
    negative LIOBN gives H_FUNCTION."""
    pane: WindowPane | None = partition.pane(liobn)
    code: cython.int
    if pane is None:
        physical: Any = partition.engine(liobn)
        (physical or partition).ledger.count(_PUT_TCE_INDIRECT)
        if physical is not None:
            code = physical.changed(physical.own.put_list(ioba, list_address, count), ioba, count)
            return code
        return _FUNCTION if low64(liobn) >> 63 else _PARAMETER
    pane.ledger.count(_PUT_TCE_INDIRECT)
    if pane.remote or pane.table is None:
        return _PARAMETER
    code = pane.table.put_list(ioba, list_address, count)
    if code == 0:
        pane.ledger.updated(count)
    elif code == _NOT_DRAINED:
        return _when_drained(partition, liobn, count, "put_list", ioba, list_address, count)
    return code


hcall(Hcall.H_GET_TCE, function_set="hcall-tce", registers=2)(get_tce)
hcall(Hcall.H_PUT_TCE, function_set="hcall-tce", registers=3)(put_tce)
hcall(Hcall.H_STUFF_TCE, function_set="hcall-multi-tce", registers=4)(stuff_tce)
hcall(Hcall.H_PUT_TCE_INDIRECT, function_set="hcall-multi-tce", registers=4)(put_tce_indirect)
