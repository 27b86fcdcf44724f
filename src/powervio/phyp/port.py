# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A partition's port: `hcall` for registers, and the typed methods straight to the functions behind it.

Both ways run the same function under the hypervisor's lock. The typed ones skip the table because they are the hot
path of everything that runs in this process. No argument raises: registers are 64 bits, so what is wider or negative is
cut to that, and what is missing is 0.
This file is compiled (Cython pure mode) and also runs interpreted. The class is an ordinary one, so that methods can be
put in the place of others; in those of the hot path `self` has a type, which saves the compiled ones the look-ups.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import cython  # noqa: F401  it provides cython.cimports
from cython.cimports.powervio.memory.hw import low64
from cython.cimports.powervio.phyp.hcall_crq import send_crq
from cython.cimports.powervio.phyp.hcall_interrupt import accept, cppr, eoi
from cython.cimports.powervio.phyp.hcall_rdma import copy_rdma, write_bytes
from cython.cimports.powervio.phyp.hcall_rtce import put_rtce, put_rtce_indirect, remove_rtce
from cython.cimports.powervio.phyp.hcall_subcrq import send_sub_crq
from cython.cimports.powervio.phyp.hcall_tce import put_tce, put_tce_indirect, stuff_tce
from cython.cimports.powervio.phyp.records import PortRecord

from powervio.papr.codes import ReturnCode
from powervio.papr.port import HcallPort
from powervio.phyp import hcall_crq, hcall_rdma, hcall_rtce, hcall_tce, hcall_vio, hcall_vioctl
from powervio.phyp import hcall_term as _hcall_term  # noqa: F401  the table alone leads there
from powervio.phyp.registry import TABLE

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FUNCTION = (int(ReturnCode.H_FUNCTION),)
_NO_REGISTERS = (0,) * 9


class PartitionPort(PortRecord, HcallPort):
    """The port of one partition, usable from any thread; not from a signal handler or a finalizer, which may find the
    lock held by the very thread that they interrupt."""

    _partition: Partition

    def __init__(self, partition: Partition) -> None:
        super().__init__(partition)
        self.partition_id = partition.partition_id
        self.partition_name = partition.name
        self.memory = partition.memory
        self.nodes = MappingProxyType(partition.nodes)
        self.engines = partition.engines
        self.interrupt_fd = partition.interrupts.fd
        self.max_virtual_dma_size = partition.hypervisor.max_virtual_dma_size
        self.tree_source = partition.tree_source

    def watch_tree(self) -> int:
        """See `HcallPort.watch_tree`."""
        with self._lock:
            return self._partition.watch_tree()

    def hcall(self, token: int, *registers: int) -> tuple[int, ...]:
        """See `HcallPort.hcall`; H_FUNCTION for a token that nothing implements."""
        entry = TABLE.get(token)
        if entry is None:
            return _FUNCTION
        if len(registers) != entry.registers:
            registers = (registers + _NO_REGISTERS)[: entry.registers]
        values = [value & _MASK for value in registers]
        with self._lock:
            result = entry.function(self._partition, *values)
        return result if isinstance(result, tuple) else (result,)

    def get_tce(self, liobn: int, ioba: int) -> tuple[int, int]:
        """H_GET_TCE."""
        with self._lock:
            return hcall_tce.get_tce(self._partition, liobn, ioba & _MASK)

    def put_tce(self: PortRecord, liobn: int, ioba: int, tce: int) -> int:
        """H_PUT_TCE."""
        self._lock.acquire()
        try:
            return put_tce(self._partition, liobn, low64(ioba), low64(tce))
        finally:
            self._lock.release()

    def stuff_tce(self: PortRecord, liobn: int, ioba: int, tce: int, count: int) -> int:
        """H_STUFF_TCE."""
        self._lock.acquire()
        try:
            return stuff_tce(self._partition, liobn, low64(ioba), low64(tce), low64(count))
        finally:
            self._lock.release()

    def put_tce_indirect(self: PortRecord, liobn: int, ioba: int, list_address: int, count: int) -> int:
        """H_PUT_TCE_INDIRECT."""
        self._lock.acquire()
        try:
            return put_tce_indirect(self._partition, liobn, low64(ioba), low64(list_address), low64(count))
        finally:
            self._lock.release()

    def reg_crq(self, unit_address: int, ioba: int, length: int) -> int:
        """H_REG_CRQ."""
        with self._lock:
            return hcall_crq.reg_crq(self._partition, unit_address, ioba & _MASK, length & _MASK)

    def free_crq(self, unit_address: int) -> int:
        """H_FREE_CRQ."""
        with self._lock:
            return hcall_crq.free_crq(self._partition, unit_address)

    def send_crq(self: PortRecord, unit_address: int, high: int, low: int) -> int:
        """H_SEND_CRQ."""
        self._lock.acquire()
        try:
            return send_crq(self._partition, unit_address, low64(high), low64(low))
        finally:
            self._lock.release()

    def enable_crq(self, unit_address: int) -> int:
        """H_ENABLE_CRQ."""
        with self._lock:
            return hcall_crq.enable_crq(self._partition, unit_address)

    def vio_signal(self, unit_address: int, mode: int) -> int:
        """H_VIO_SIGNAL."""
        with self._lock:
            return hcall_vio.vio_signal(self._partition, unit_address, mode & _MASK)

    def send_sub_crq(self: PortRecord, unit_address: int, cookie: int, dw0: int, dw1: int, dw2: int, dw3: int) -> int:
        """H_SEND_SUB_CRQ."""
        self._lock.acquire()
        try:
            return send_sub_crq(self._partition, unit_address, cookie, low64(dw0), low64(dw1), low64(dw2), low64(dw3))
        finally:
            self._lock.release()

    def vioctl(self, unit_address: int, function: int, p1: int = 0, p2: int = 0, p3: int = 0) -> tuple[int, ...]:
        """H_VIOCTL."""
        with self._lock:
            result = hcall_vioctl.vioctl(
                self._partition, unit_address, function & _MASK, p1 & _MASK, p2 & _MASK, p3 & _MASK
            )
        return result if isinstance(result, tuple) else (result,)

    def copy_rdma(self: PortRecord, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        """H_COPY_RDMA."""
        self._lock.acquire()
        try:
            return copy_rdma(self._partition, low64(length), s_liobn, low64(s_ioba), d_liobn, low64(d_ioba))
        finally:
            self._lock.release()

    def write_rdma(self: PortRecord, d_liobn: int, d_ioba: int, data: bytes) -> int:
        """H_WRITE_RDMA."""
        self._lock.acquire()
        try:
            return write_bytes(self._partition, d_liobn, low64(d_ioba), data)
        finally:
            self._lock.release()

    def read_rdma(self, s_liobn: int, s_ioba: int, length: int) -> tuple[int, bytes]:
        """H_READ_RDMA."""
        with self._lock:
            return hcall_rdma.read_bytes(self._partition, s_liobn, s_ioba & _MASK, length & _MASK)

    def put_rtce(self: PortRecord, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
        """H_PUT_RTCE."""
        self._lock.acquire()
        try:
            result: tuple[int, int] = put_rtce(
                self._partition, r_liobn, low64(r_ioba), liobn, low64(ioba), low64(count)
            )
            return result
        finally:
            self._lock.release()

    def put_rtce_indirect(
        self: PortRecord, list_address: int, r_liobn: int, liobn: int, ioba: int, count: int
    ) -> tuple[int, int]:
        """H_PUT_RTCE_INDIRECT."""
        self._lock.acquire()
        try:
            result: tuple[int, int] = put_rtce_indirect(
                self._partition, low64(list_address), r_liobn, liobn, low64(ioba), low64(count)
            )
            return result
        finally:
            self._lock.release()

    def remove_rtce(
        self: PortRecord, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int, tce: int = 0
    ) -> int:
        """H_REMOVE_RTCE."""
        self._lock.acquire()
        try:
            return remove_rtce(self._partition, r_liobn, low64(r_ioba), liobn, low64(ioba), low64(count), low64(tce))
        finally:
            self._lock.release()

    def liobn_attributes(self, liobn: int, reset: int, wanted: int) -> tuple[int, int]:
        """H_LIOBN_ATTRIBUTES."""
        with self._lock:
            return hcall_rtce.liobn_attributes(self._partition, liobn, reset & _MASK, wanted & _MASK)

    def xirr(self: PortRecord) -> int:
        """H_XIRR."""
        self._lock.acquire()
        try:
            return accept(self._partition)
        finally:
            self._lock.release()

    def eoi(self: PortRecord, xirr: int) -> int:
        """H_EOI."""
        self._lock.acquire()
        try:
            return eoi(self._partition, low64(xirr))
        finally:
            self._lock.release()

    def cppr(self: PortRecord, priority: int) -> int:
        """H_CPPR."""
        self._lock.acquire()
        try:
            return cppr(self._partition, low64(priority))
        finally:
            self._lock.release()
