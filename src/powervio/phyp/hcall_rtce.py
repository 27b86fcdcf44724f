"""Redirected DMA: clients' entries in a physical adapter's table (papr-vio 2.4, 2.5). Checks stand in PAPR's order.

A call that fails on page i returns i in r4, and the pages before it stay mapped. The low 12 bits of I/O bus addresses
are ignored. Calls are on the account of the adapter whose remote pane is named; H_LIOBN_ATTRIBUTES of the table's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.tce import BIT_BUCKET_ALLOWED, MULTI_TCE_LIMIT, TCE_ACCESS, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.phyp.dma_table import first_beyond
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.phyp.adapter import WindowPane
    from powervio.phyp.partition import Partition
    from powervio.phyp.physical import PhysicalAdapter

_SUCCESS = int(ReturnCode.H_SUCCESS)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_CONSTRAINED = int(ReturnCode.H_CONSTRAINED)
_REMOTE_PARM = int(ReturnCode.H_REMOTE_PARM)

_PUT_RTCE = hcall_index("H_PUT_RTCE")
_PUT_RTCE_INDIRECT = hcall_index("H_PUT_RTCE_INDIRECT")
_REMOVE_RTCE = hcall_index("H_REMOVE_RTCE")
_LIOBN_ATTRIBUTES = hcall_index("H_LIOBN_ATTRIBUTES")


def _pane(partition: Partition, r_liobn: int, index: int) -> WindowPane | None:
    """The remote pane of this LIOBN, with the attempt counted."""
    pane = partition.panes.get(r_liobn)
    (partition if pane is None else pane).ledger.count(index)
    return pane if pane is not None and pane.remote else None


def _inside(size: int, ioba: int, count: int) -> bool:
    """Whether `count` pages from `ioba` are in a window of `size` bytes; for no pages, whether `ioba` is."""
    return ioba < size and (ioba >> TCE_PAGE_SHIFT) + count <= size >> TCE_PAGE_SHIFT


def _redirect(
    pane: WindowPane, adapter: PhysicalAdapter, place: int, addresses: bytearray | None, first: int, count: int
) -> tuple[int, int]:
    """Copy the entries for these addresses, or consecutive ones from `first`, until one cannot be."""
    link, client = pane.link, pane.table
    if link is None or client is None:
        return (_REMOTE_PARM if count else _SUCCESS), 0
    limit = adapter.partition.hypervisor.policy.max_redirected_mappings
    code, done = adapter.table.redirect(place, link, client, addresses, first, count, limit)
    link.ledger.redirected(done, 0)
    link.peer_ledger.redirected(done, 0)
    return code, done if code else 0


@hcall(Hcall.H_PUT_RTCE, function_set="hcall-rdma", registers=5)
def put_rtce(partition: Partition, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
    """Copy `count` consecutive entries of the client's window into the table of one of the caller's adapters."""
    pane = _pane(partition, r_liobn, _PUT_RTCE)
    adapter = partition.physical.get(liobn)
    if pane is None or adapter is None:
        return _PARAMETER, 0
    if not (_inside(pane.size, r_ioba, count) and _inside(adapter.size, ioba, count)):
        return _PARAMETER, 0
    return _redirect(pane, adapter, ioba >> TCE_PAGE_SHIFT, None, r_ioba >> TCE_PAGE_SHIFT, count)


@hcall(Hcall.H_PUT_RTCE_INDIRECT, function_set="hcall-multi-tce", registers=5)
def put_rtce_indirect(
    partition: Partition, list_address: int, r_liobn: int, liobn: int, ioba: int, count: int
) -> tuple[int, int]:
    """As H_PUT_RTCE, with up to 512 big-endian addresses of the client's window from a page of the caller's memory."""
    pane = _pane(partition, r_liobn, _PUT_RTCE_INDIRECT)
    adapter = partition.physical.get(liobn)
    if pane is None or adapter is None:
        return _PARAMETER, 0
    if list_address % TCE_PAGE_SIZE or list_address >= len(partition.memory) or count > MULTI_TCE_LIMIT:
        return _PARAMETER, 0
    if not _inside(adapter.size, ioba, count):
        return _PARAMETER, 0
    # copied once: its owner can write to it at any moment
    addresses = bytearray(partition.memory[list_address : list_address + 8 * count])
    beyond = first_beyond(addresses, count, pane.size)
    if beyond < count:
        return _REMOTE_PARM, beyond
    return _redirect(pane, adapter, ioba >> TCE_PAGE_SHIFT, addresses, 0, count)


@hcall(Hcall.H_REMOVE_RTCE, function_set="hcall-rdma", registers=6)
def remove_rtce(partition: Partition, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int, tce: int) -> int:
    """End the copies in consecutive places and leave `tce` there, without access. What was no copy is no error.

    An operation in flight on such a page goes on, and the page stays in use until it ends.
    """
    pane = _pane(partition, r_liobn, _REMOVE_RTCE)
    adapter = partition.physical.get(liobn)
    if pane is None or adapter is None:
        return _PARAMETER
    if not (_inside(pane.size, r_ioba, count) and _inside(adapter.size, ioba, count)):
        return _PARAMETER
    first = ioba >> TCE_PAGE_SHIFT
    adapter.table.forget(first, count)
    adapter.own.stuff(ioba, tce & ~TCE_ACCESS, count)
    return _SUCCESS


@hcall(Hcall.H_LIOBN_ATTRIBUTES, function_set="hcall-liobn-attributes", registers=3)
def liobn_attributes(partition: Partition, liobn: int, reset: int, wanted: int) -> tuple[int, int]:
    """Bit Bucket Allowed of the caller's own table; r4 is what holds now. What is not implemented gives
    H_CONSTRAINED."""
    pane = partition.panes.get(liobn)
    adapter = partition.physical.get(liobn)
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
