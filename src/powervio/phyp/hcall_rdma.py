# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""hcall-rdma: remote DMA by copying (papr-vio 4). Redirected DMA registers its own calls.

A remote pane that is not linked behaves as one whose entries are all invalid: H_PERMISSION as soon as a byte is asked
for. An operation is on the account of the adapter whose remote pane is named, the source's if both are remote.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.phyp.ledger import CostLedger
from cython.cimports.powervio.phyp.rdma import copy_pages, write_small
from cython.cimports.powervio.phyp.records import PartitionRecord, WindowPane

from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.rdma import read_small
from powervio.phyp.registry import hcall

WRITE_LIMIT = 48
"""Bytes that H_WRITE_RDMA carries in r7..r12."""
READ_LIMIT = 72
"""Bytes that H_READ_RDMA returns in r4..r12."""

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))
_PERMISSION = cython.declare(cython.int, int(ReturnCode.H_PERMISSION))
_SOURCE_PARM = cython.declare(cython.int, int(ReturnCode.H_SOURCE_PARM))
_DEST_PARM = cython.declare(cython.int, int(ReturnCode.H_DEST_PARM))

_COPY_RDMA = cython.declare(cython.int, hcall_index("H_COPY_RDMA"))
_WRITE_RDMA = cython.declare(cython.int, hcall_index("H_WRITE_RDMA"))
_READ_RDMA = cython.declare(cython.int, hcall_index("H_READ_RDMA"))

_WRITE_LIMIT = cython.declare(cython.ulonglong, WRITE_LIMIT)
_READ_LIMIT = cython.declare(cython.ulonglong, READ_LIMIT)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _beyond(pane: WindowPane, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.bint:
    """Whether a range is not all inside a pane; for no bytes, whether it begins behind its end."""
    return ioba > pane.size or length > pane.size - ioba


@cython.cfunc
def _account(partition: PartitionRecord, pane: WindowPane | None) -> CostLedger:
    return partition.ledger if pane is None else pane.ledger


@cython.ccall
@cython.exceptval(-1)
def copy_rdma(
    partition: PartitionRecord,
    length: cython.ulonglong,
    s_liobn: Any,
    s_ioba: cython.ulonglong,
    d_liobn: Any,
    d_ioba: cython.ulonglong,
) -> cython.int:
    """H_COPY_RDMA: copy between any two panes of the caller. All checks come before the first byte."""
    source: WindowPane | None = partition.pane(s_liobn)
    target: WindowPane | None = partition.pane(d_liobn)
    issuer: CostLedger
    code: cython.int
    if source is None or (target is not None and target.remote and not source.remote):
        issuer = _account(partition, target)
    else:
        issuer = source.ledger
    issuer.count(_COPY_RDMA)
    if length > partition.copy_limit:
        return _PARAMETER
    if source is None:
        return _SOURCE_PARM
    if target is None:
        return _DEST_PARM
    if _beyond(source, s_ioba, length):
        return _SOURCE_PARM
    if _beyond(target, d_ioba, length):
        return _DEST_PARM
    if source.table is None or target.table is None:
        return _PERMISSION if length else _SUCCESS
    code = copy_pages(source.table, s_ioba, target.table, d_ioba, length)
    if code == 0:
        issuer.moved(length)
        if source.peer_ledger is not None:
            source.peer_ledger.touched(length)
        if target.peer_ledger is not None:
            target.peer_ledger.touched(length)
    return code


@cython.ccall
@cython.exceptval(-1)
def write_bytes(partition: PartitionRecord, liobn: Any, ioba: cython.ulonglong, data: bytes) -> cython.int:
    """H_WRITE_RDMA with its data as bytes."""
    pane: WindowPane | None = partition.pane(liobn)
    ledger: CostLedger = _account(partition, pane)
    length: cython.ulonglong = len(data)
    code: cython.int
    ledger.count(_WRITE_RDMA)
    if length > _WRITE_LIMIT:
        return _PARAMETER
    if pane is None or not pane.remote or _beyond(pane, ioba, length):
        return _DEST_PARM
    if pane.table is None:
        return _PERMISSION if length else _SUCCESS
    code = write_small(pane.table, ioba, data)
    if code == 0:
        ledger.moved(length)
        if pane.peer_ledger is not None:
            pane.peer_ledger.touched(length)
    return code


def write_rdma(partition: PartitionRecord, length: int, liobn: int, ioba: int, *words: int) -> int:
    """H_WRITE_RDMA: up to 48 bytes, from the first data register's most significant byte on, into a remote pane."""
    data = b"".join([word.to_bytes(8, "big") for word in words])
    # A length that is too long must still reach the check, in its place.
    return write_bytes(partition, liobn, ioba, data[:length] if length <= WRITE_LIMIT else bytes(WRITE_LIMIT + 1))


def read_bytes(
    partition: PartitionRecord, liobn: Any, ioba: cython.ulonglong, length: cython.ulonglong
) -> tuple[int, bytes]:
    """H_READ_RDMA with its data as bytes; no bytes unless it succeeds."""
    pane: WindowPane | None = partition.pane(liobn)
    ledger: CostLedger = _account(partition, pane)
    ledger.count(_READ_RDMA)
    if length > _READ_LIMIT:
        return _PARAMETER, b""
    if pane is None or not pane.remote or _beyond(pane, ioba, length):
        return _SOURCE_PARM, b""
    if pane.table is None:
        return (_PERMISSION if length else _SUCCESS), b""
    data = read_small(pane.table, ioba, length)
    if data is None:
        return _PERMISSION, b""
    ledger.moved(length)
    if pane.peer_ledger is not None:
        pane.peer_ledger.touched(length)
    return _SUCCESS, data


def read_rdma(partition: PartitionRecord, length: int, liobn: int, ioba: int) -> tuple[int, ...]:
    """H_READ_RDMA: up to 72 bytes of a remote pane into r4..r12; what is beyond the length is zero."""
    code, data = read_bytes(partition, liobn, ioba, length)
    if code != _SUCCESS:
        return (code,)
    data = data.ljust(READ_LIMIT, b"\0")
    return (code, *[int.from_bytes(data[i : i + 8], "big") for i in range(0, READ_LIMIT, 8)])


hcall(Hcall.H_COPY_RDMA, function_set="hcall-rdma", registers=5)(copy_rdma)
hcall(Hcall.H_WRITE_RDMA, function_set="hcall-rdma", registers=9)(write_rdma)
hcall(Hcall.H_READ_RDMA, function_set="hcall-rdma", registers=3)(read_rdma)
