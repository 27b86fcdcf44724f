"""hcall-rdma: remote DMA by copying (papr-vio 4). Redirected DMA registers its own calls.

A remote pane that is not linked behaves as one whose entries are all invalid: H_PERMISSION as soon as a byte is asked
for. An operation is on the account of the adapter whose remote pane is named, the source's if both are remote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.rdma import copy_pages, read_small, write_small
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

WRITE_LIMIT = 48
"""Bytes that H_WRITE_RDMA carries in r7..r12."""
READ_LIMIT = 72
"""Bytes that H_READ_RDMA returns in r4..r12."""

_SUCCESS = int(ReturnCode.H_SUCCESS)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_PERMISSION = int(ReturnCode.H_PERMISSION)
_SOURCE_PARM = int(ReturnCode.H_SOURCE_PARM)
_DEST_PARM = int(ReturnCode.H_DEST_PARM)

_COPY_RDMA = hcall_index("H_COPY_RDMA")
_WRITE_RDMA = hcall_index("H_WRITE_RDMA")
_READ_RDMA = hcall_index("H_READ_RDMA")


@hcall(Hcall.H_COPY_RDMA, function_set="hcall-rdma", registers=5)
def copy_rdma(partition: Partition, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
    """Copy between any two panes of the caller. All checks come before the first byte."""
    panes = partition.panes
    source = panes.get(s_liobn)
    target = panes.get(d_liobn)
    if source is None or (target is not None and target.remote and not source.remote):
        issuer = (partition if target is None else target).ledger
    else:
        issuer = source.ledger
    issuer.count(_COPY_RDMA)
    if length > partition.hypervisor.copy_limit:
        return _PARAMETER
    if source is None:
        return _SOURCE_PARM
    if target is None:
        return _DEST_PARM
    if s_ioba + length > source.size:
        return _SOURCE_PARM
    if d_ioba + length > target.size:
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


def write_bytes(partition: Partition, liobn: int, ioba: int, data: bytes) -> int:
    """H_WRITE_RDMA with its data as bytes."""
    pane = partition.panes.get(liobn)
    ledger = (partition if pane is None else pane).ledger
    ledger.count(_WRITE_RDMA)
    if len(data) > WRITE_LIMIT:
        return _PARAMETER
    if pane is None or not pane.remote or ioba + len(data) > pane.size:
        return _DEST_PARM
    if pane.table is None:
        return _PERMISSION if data else _SUCCESS
    code = write_small(pane.table, ioba, data)
    if code == 0:
        ledger.moved(len(data))
        if pane.peer_ledger is not None:
            pane.peer_ledger.touched(len(data))
    return code


@hcall(Hcall.H_WRITE_RDMA, function_set="hcall-rdma", registers=9)
def write_rdma(partition: Partition, length: int, liobn: int, ioba: int, *words: int) -> int:
    """Write up to 48 bytes, from the most significant byte of the first data register on, into a remote pane."""
    data = b"".join([word.to_bytes(8, "big") for word in words])
    # A length that is too long must still reach the check, in its place.
    return write_bytes(partition, liobn, ioba, data[:length] if length <= WRITE_LIMIT else bytes(WRITE_LIMIT + 1))


def read_bytes(partition: Partition, liobn: int, ioba: int, length: int) -> tuple[int, bytes]:
    """H_READ_RDMA with its data as bytes; no bytes unless it succeeds."""
    pane = partition.panes.get(liobn)
    ledger = (partition if pane is None else pane).ledger
    ledger.count(_READ_RDMA)
    if length > READ_LIMIT:
        return _PARAMETER, b""
    if pane is None or not pane.remote or ioba + length > pane.size:
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


@hcall(Hcall.H_READ_RDMA, function_set="hcall-rdma", registers=3)
def read_rdma(partition: Partition, length: int, liobn: int, ioba: int) -> tuple[int, ...]:
    """Read up to 72 bytes of a remote pane into r4..r12; what is beyond the length is zero."""
    code, data = read_bytes(partition, liobn, ioba, length)
    if code != _SUCCESS:
        return (code,)
    data = data.ljust(READ_LIMIT, b"\0")
    return (code, *(int.from_bytes(data[i : i + 8], "big") for i in range(0, READ_LIMIT, 8)))
