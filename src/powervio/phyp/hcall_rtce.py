# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Redirected DMA: clients' entries in a physical adapter's table (papr-vio 2.4, 2.5). Checks stand in PAPR's order.

A call that fails on page i returns i in r4, and the pages before it stay mapped. The low 12 bits of I/O bus addresses
are ignored. Calls are on the account of the adapter whose remote pane is named; H_LIOBN_ATTRIBUTES of the table's.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.phyp.dma_table import DmaTable, first_beyond
from cython.cimports.powervio.phyp.records import PartitionRecord, PhysicalRecord, WindowPane
from cython.cimports.powervio.phyp.redirect import Link

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.tce import BIT_BUCKET_ALLOWED, MULTI_TCE_LIMIT, TCE_ACCESS, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))
_CONSTRAINED = cython.declare(cython.int, int(ReturnCode.H_CONSTRAINED))
_REMOTE_PARM = cython.declare(cython.int, int(ReturnCode.H_REMOTE_PARM))

_SHIFT = cython.declare(cython.int, TCE_PAGE_SHIFT)
_OFFSET = cython.declare(cython.ulonglong, TCE_PAGE_SIZE - 1)
_ACCESS = cython.declare(cython.ulonglong, TCE_ACCESS)
_LIST_LIMIT = cython.declare(cython.ulonglong, MULTI_TCE_LIMIT)

_PUT_RTCE = cython.declare(cython.int, hcall_index("H_PUT_RTCE"))
_PUT_RTCE_INDIRECT = cython.declare(cython.int, hcall_index("H_PUT_RTCE_INDIRECT"))
_REMOVE_RTCE = cython.declare(cython.int, hcall_index("H_REMOVE_RTCE"))
_LIOBN_ATTRIBUTES = cython.declare(cython.int, hcall_index("H_LIOBN_ATTRIBUTES"))


@cython.cfunc
def _pane(partition: PartitionRecord, r_liobn: Any, index: cython.int) -> WindowPane | None:
    """The remote pane of this LIOBN, with the attempt counted."""
    pane: WindowPane | None = partition.pane(r_liobn)
    if pane is None:
        partition.ledger.count(index)
        return None
    pane.ledger.count(index)
    return pane if pane.remote else None


@cython.cfunc
@cython.exceptval(check=False)
def _inside(size: cython.ulonglong, ioba: cython.ulonglong, count: cython.ulonglong) -> cython.bint:
    """Whether `count` pages from `ioba` are in a window of `size` bytes; for no pages, whether `ioba` is."""
    return ioba < size and count <= (size >> _SHIFT) - (ioba >> _SHIFT)


@cython.cfunc
@cython.exceptval(-1)
def _redirect(
    partition: PartitionRecord,
    pane: WindowPane,
    table: DmaTable,
    place: cython.ulonglong,
    addresses: bytearray | None,
    first: cython.ulonglong,
    count: cython.ulonglong,
) -> cython.int:
    """Copy the entries for these addresses, or consecutive ones from `first`, until one cannot be.

    `table.done` tells how many were.
    """
    link: Link | None = pane.link
    code: cython.int
    if link is None or pane.table is None:
        table.done = 0
        return _REMOTE_PARM if count else _SUCCESS
    code = table.redirect(place, link, pane.table, addresses, first, count, partition.redirect_limit)
    link.ledger.redirected(table.done, 0)
    link.peer_ledger.redirected(table.done, 0)
    return code


@cython.ccall
def put_rtce(
    partition: PartitionRecord,
    r_liobn: Any,
    r_ioba: cython.ulonglong,
    liobn: Any,
    ioba: cython.ulonglong,
    count: cython.ulonglong,
) -> Any:
    """H_PUT_RTCE: copy `count` consecutive entries of the client's window into the table of one of the caller's
    adapters."""
    pane: WindowPane | None = _pane(partition, r_liobn, _PUT_RTCE)
    adapter: PhysicalRecord | None = partition.engine(liobn)
    code: cython.int
    if pane is None or adapter is None:
        return _PARAMETER, 0
    if not (_inside(pane.size, r_ioba, count) and _inside(adapter.size, ioba, count)):
        return _PARAMETER, 0
    code = _redirect(partition, pane, adapter.table, ioba >> _SHIFT, None, r_ioba >> _SHIFT, count)
    return code, adapter.table.done if code else 0


@cython.ccall
def put_rtce_indirect(
    partition: PartitionRecord,
    list_address: cython.ulonglong,
    r_liobn: Any,
    liobn: Any,
    ioba: cython.ulonglong,
    count: cython.ulonglong,
) -> Any:
    """H_PUT_RTCE_INDIRECT: as H_PUT_RTCE, with up to 512 big-endian addresses of the client's window from a page of the
    caller's memory."""
    pane: WindowPane | None = _pane(partition, r_liobn, _PUT_RTCE_INDIRECT)
    adapter: PhysicalRecord | None = partition.engine(liobn)
    code: cython.int
    if pane is None or adapter is None:
        return _PARAMETER, 0
    if list_address & _OFFSET or list_address >= len(partition.memory) or count > _LIST_LIMIT:
        return _PARAMETER, 0
    if not _inside(adapter.size, ioba, count):
        return _PARAMETER, 0
    # copied once: its owner can write to it at any moment
    addresses = bytearray(partition.memory[list_address : list_address + 8 * count])
    beyond = first_beyond(addresses, count, pane.size)
    if beyond < count:
        return _REMOTE_PARM, beyond
    code = _redirect(partition, pane, adapter.table, ioba >> _SHIFT, addresses, 0, count)
    return code, adapter.table.done if code else 0


@cython.ccall
@cython.exceptval(-1)
def remove_rtce(
    partition: PartitionRecord,
    r_liobn: Any,
    r_ioba: cython.ulonglong,
    liobn: Any,
    ioba: cython.ulonglong,
    count: cython.ulonglong,
    tce: cython.ulonglong,
) -> cython.int:
    """H_REMOVE_RTCE: end the copies in consecutive places and leave `tce` there, without access. What was no copy is no
    error.

    An operation in flight on such a page goes on, and the page stays in use until it ends.
    """
    pane: WindowPane | None = _pane(partition, r_liobn, _REMOVE_RTCE)
    adapter: PhysicalRecord | None = partition.engine(liobn)
    if pane is None or adapter is None:
        return _PARAMETER
    if not (_inside(pane.size, r_ioba, count) and _inside(adapter.size, ioba, count)):
        return _PARAMETER
    adapter.table.forget(ioba >> _SHIFT, count)
    adapter.own.stuff(ioba, tce & ~_ACCESS, count)
    return _SUCCESS


hcall(Hcall.H_PUT_RTCE, function_set="hcall-rdma", registers=5)(put_rtce)
hcall(Hcall.H_PUT_RTCE_INDIRECT, function_set="hcall-multi-tce", registers=5)(put_rtce_indirect)
hcall(Hcall.H_REMOVE_RTCE, function_set="hcall-rdma", registers=6)(remove_rtce)


@hcall(Hcall.H_LIOBN_ATTRIBUTES, function_set="hcall-liobn-attributes", registers=3)
def liobn_attributes(partition: PartitionRecord, liobn: Any, reset: int, wanted: int) -> tuple[int, int]:
    """Bit Bucket Allowed of the caller's own table; r4 is what holds now. What is not implemented gives
    H_CONSTRAINED."""
    pane = partition.pane(liobn)
    adapter = partition.engine(liobn)
    (pane or adapter or partition).ledger.count(_LIOBN_ATTRIBUTES)
    if adapter is not None:  # nobody copies from it
        return (_CONSTRAINED if reset | wanted else _SUCCESS), 0
    if pane is None or pane.remote or pane.table is None:
        return _PARAMETER, 0
    copies = pane.table.copies
    now = BIT_BUCKET_ALLOWED if copies.bit_bucket else 0
    now = now & ~reset | wanted & BIT_BUCKET_ALLOWED
    copies.bit_bucket = bool(now)
    return (_CONSTRAINED if (reset | wanted) & ~BIT_BUCKET_ALLOWED else _SUCCESS), now
