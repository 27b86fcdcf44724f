"""A partition's port: `hcall` for registers, and the typed methods straight to the functions behind it.

Both ways run the same function under the hypervisor's lock. The typed ones skip the table because they are the hot
path of everything that runs in this process. No argument raises: registers are 64 bits, so what is wider or negative is
cut to that, and what is missing is 0.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from powervio.papr.codes import ReturnCode
from powervio.papr.port import HcallPort
from powervio.phyp import hcall_crq, hcall_interrupt, hcall_rdma, hcall_tce, hcall_vio
from powervio.phyp import hcall_term as _hcall_term  # noqa: F401  the table alone leads there
from powervio.phyp.registry import TABLE

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FUNCTION = (int(ReturnCode.H_FUNCTION),)
_NO_REGISTERS = (0,) * 9


class PartitionPort(HcallPort):
    """The port of one partition, usable from any thread; not from a signal handler or a finalizer, which may find the
    lock held by the very thread that they interrupt."""

    def __init__(self, partition: Partition) -> None:
        self.partition_id = partition.partition_id
        self.partition_name = partition.name
        self.memory = partition.memory
        self.nodes = MappingProxyType(partition.nodes)
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
            return hcall_tce.put_tce(self._partition, liobn, ioba & _MASK, tce & _MASK)

    def stuff_tce(self, liobn: int, ioba: int, tce: int, count: int) -> int:
        """H_STUFF_TCE."""
        with self._lock:
            return hcall_tce.stuff_tce(self._partition, liobn, ioba & _MASK, tce & _MASK, count & _MASK)

    def put_tce_indirect(self, liobn: int, ioba: int, list_address: int, count: int) -> int:
        """H_PUT_TCE_INDIRECT."""
        with self._lock:
            return hcall_tce.put_tce_indirect(
                self._partition, liobn & _MASK, ioba & _MASK, list_address & _MASK, count & _MASK
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
            return hcall_crq.send_crq(self._partition, unit_address, high & _MASK, low & _MASK)

    def enable_crq(self, unit_address: int) -> int:
        """H_ENABLE_CRQ."""
        with self._lock:
            return hcall_crq.enable_crq(self._partition, unit_address)

    def vio_signal(self, unit_address: int, mode: int) -> int:
        """H_VIO_SIGNAL."""
        with self._lock:
            return hcall_vio.vio_signal(self._partition, unit_address, mode & _MASK)

    def copy_rdma(self, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        """H_COPY_RDMA."""
        with self._lock:
            return hcall_rdma.copy_rdma(
                self._partition, length & _MASK, s_liobn, s_ioba & _MASK, d_liobn, d_ioba & _MASK
            )

    def write_rdma(self, d_liobn: int, d_ioba: int, data: bytes) -> int:
        """H_WRITE_RDMA."""
        with self._lock:
            return hcall_rdma.write_bytes(self._partition, d_liobn, d_ioba & _MASK, data)

    def read_rdma(self, s_liobn: int, s_ioba: int, length: int) -> tuple[int, bytes]:
        """H_READ_RDMA."""
        with self._lock:
            return hcall_rdma.read_bytes(self._partition, s_liobn, s_ioba & _MASK, length & _MASK)

    def xirr(self) -> int:
        """H_XIRR."""
        with self._lock:
            return hcall_interrupt.xirr(self._partition)[1]

    def eoi(self, xirr: int) -> int:
        """H_EOI."""
        with self._lock:
            return hcall_interrupt.eoi(self._partition, xirr & _MASK)

    def cppr(self, priority: int) -> int:
        """H_CPPR."""
        with self._lock:
            return hcall_interrupt.cppr(self._partition, priority & _MASK)
