# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A partition's port: `hcall` for registers, and the typed methods straight to the functions behind it.

Both ways run the same function under the hypervisor's lock. The typed ones skip the table because they are the hot
path of everything that runs in this process. No argument raises: registers are 64 bits, so what is wider or negative is
cut to that, and what is missing is 0.
This file is compiled (Cython pure mode) and also runs interpreted. The class is an ordinary one, so that methods can be
put in the place of others.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.phyp.hcall_crq import send_crq
from cython.cimports.powervio.phyp.hcall_interrupt import accept, cppr, eoi
from cython.cimports.powervio.phyp.hcall_rdma import copy_rdma, write_bytes
from cython.cimports.powervio.phyp.hcall_rtce import put_rtce, put_rtce_indirect, remove_rtce
from cython.cimports.powervio.phyp.hcall_tce import put_tce, put_tce_indirect, stuff_tce

from powervio.papr.codes import ReturnCode
from powervio.papr.port import HcallPort
from powervio.phyp import hcall_crq, hcall_rdma, hcall_rtce, hcall_subcrq, hcall_tce, hcall_vio, hcall_vioctl
from powervio.phyp import hcall_term as _hcall_term  # noqa: F401  the table alone leads there
from powervio.phyp.registry import TABLE

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FUNCTION = (int(ReturnCode.H_FUNCTION),)
_NO_REGISTERS = (0,) * 9


@cython.cfunc
@cython.inline
@cython.exceptval(-1)
def _register(value: Any) -> cython.ulonglong:
    """64 bits of an integer."""
    register: cython.ulonglong
    if cython.compiled:
        try:
            register = value
            return register
        except OverflowError:
            pass
    register = value & _MASK
    return register


class PartitionPort(HcallPort):
    """The port of one partition, usable from any thread; not from a signal handler or a finalizer, which may find the
    lock held by the very thread that they interrupt."""

    def __init__(self, partition: Partition) -> None:
        self.partition_id = partition.partition_id
        self.partition_name = partition.name
        self.memory = partition.memory
        self.nodes = MappingProxyType(partition.nodes)
        self.engines = partition.engines
        self.interrupt_fd = partition.interrupts.fd
        self.max_virtual_dma_size = partition.hypervisor.max_virtual_dma_size
        self.tree_source = partition.tree_source
        self._partition = partition
        self._lock = partition.hypervisor.lock

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

    def put_tce(self, liobn: int, ioba: int, tce: int) -> int:
        """H_PUT_TCE."""
        with self._lock:
            return put_tce(self._partition, liobn, _register(ioba), _register(tce))

    def stuff_tce(self, liobn: int, ioba: int, tce: int, count: int) -> int:
        """H_STUFF_TCE."""
        with self._lock:
            return stuff_tce(self._partition, liobn, _register(ioba), _register(tce), _register(count))

    def put_tce_indirect(self, liobn: int, ioba: int, list_address: int, count: int) -> int:
        """H_PUT_TCE_INDIRECT."""
        with self._lock:
            return put_tce_indirect(
                self._partition, _register(liobn), _register(ioba), _register(list_address), _register(count)
            )

    def reg_crq(self, unit_address: int, ioba: int, length: int) -> int:
        """H_REG_CRQ."""
        with self._lock:
            return hcall_crq.reg_crq(self._partition, unit_address, ioba & _MASK, length & _MASK)

    def free_crq(self, unit_address: int) -> int:
        """H_FREE_CRQ."""
        with self._lock:
            return hcall_crq.free_crq(self._partition, unit_address)

    def send_crq(self, unit_address: int, high: int, low: int) -> int:
        """H_SEND_CRQ."""
        with self._lock:
            return send_crq(self._partition, unit_address, _register(high), _register(low))

    def enable_crq(self, unit_address: int) -> int:
        """H_ENABLE_CRQ."""
        with self._lock:
            return hcall_crq.enable_crq(self._partition, unit_address)

    def vio_signal(self, unit_address: int, mode: int) -> int:
        """H_VIO_SIGNAL."""
        with self._lock:
            return hcall_vio.vio_signal(self._partition, unit_address, mode & _MASK)

    def send_sub_crq(self, unit_address: int, cookie: int, dw0: int, dw1: int, dw2: int, dw3: int) -> int:
        """H_SEND_SUB_CRQ."""
        with self._lock:
            return hcall_subcrq.send_sub_crq(
                self._partition, unit_address, cookie & _MASK, dw0 & _MASK, dw1 & _MASK, dw2 & _MASK, dw3 & _MASK
            )

    def vioctl(self, unit_address: int, function: int, p1: int = 0, p2: int = 0, p3: int = 0) -> tuple[int, ...]:
        """H_VIOCTL."""
        with self._lock:
            result = hcall_vioctl.vioctl(
                self._partition, unit_address, function & _MASK, p1 & _MASK, p2 & _MASK, p3 & _MASK
            )
        return result if isinstance(result, tuple) else (result,)

    def copy_rdma(self, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        """H_COPY_RDMA."""
        with self._lock:
            return copy_rdma(self._partition, _register(length), s_liobn, _register(s_ioba), d_liobn, _register(d_ioba))

    def write_rdma(self, d_liobn: int, d_ioba: int, data: bytes) -> int:
        """H_WRITE_RDMA."""
        with self._lock:
            return write_bytes(self._partition, d_liobn, _register(d_ioba), data)

    def read_rdma(self, s_liobn: int, s_ioba: int, length: int) -> tuple[int, bytes]:
        """H_READ_RDMA."""
        with self._lock:
            return hcall_rdma.read_bytes(self._partition, s_liobn, s_ioba & _MASK, length & _MASK)

    def put_rtce(self, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
        """H_PUT_RTCE."""
        with self._lock:
            result: tuple[int, int] = put_rtce(
                self._partition, r_liobn, _register(r_ioba), liobn, _register(ioba), _register(count)
            )
        return result

    def put_rtce_indirect(self, list_address: int, r_liobn: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
        """H_PUT_RTCE_INDIRECT."""
        with self._lock:
            result: tuple[int, int] = put_rtce_indirect(
                self._partition, _register(list_address), r_liobn, liobn, _register(ioba), _register(count)
            )
        return result

    def remove_rtce(self, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int, tce: int = 0) -> int:
        """H_REMOVE_RTCE."""
        with self._lock:
            return remove_rtce(
                self._partition, r_liobn, _register(r_ioba), liobn, _register(ioba), _register(count), _register(tce)
            )

    def liobn_attributes(self, liobn: int, reset: int, wanted: int) -> tuple[int, int]:
        """H_LIOBN_ATTRIBUTES."""
        with self._lock:
            return hcall_rtce.liobn_attributes(self._partition, liobn, reset & _MASK, wanted & _MASK)

    def xirr(self) -> int:
        """H_XIRR."""
        with self._lock:
            return accept(self._partition)

    def eoi(self, xirr: int) -> int:
        """H_EOI."""
        with self._lock:
            return eoi(self._partition, _register(xirr))

    def cppr(self, priority: int) -> int:
        """H_CPPR."""
        with self._lock:
            return cppr(self._partition, _register(priority))
