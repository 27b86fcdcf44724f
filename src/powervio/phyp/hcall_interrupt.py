"""hcall-interrupt: H_XIRR, H_EOI and H_CPPR of a partition with one processor (see `powervio.phyp.interrupts`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_SUCCESS = int(ReturnCode.H_SUCCESS)
_PARAMETER = int(ReturnCode.H_PARAMETER)

_EOI = hcall_index("H_EOI")
_CPPR = hcall_index("H_CPPR")
_XIRR = hcall_index("H_XIRR")

_SOURCE = 0xFF_FFFF


@hcall(Hcall.H_XIRR, function_set="hcall-interrupt", registers=0)
def xirr(partition: Partition) -> tuple[int, int]:
    """Accept the oldest presentable interrupt: CPPR before in the top byte of 32 bits, its source below, 0 for none."""
    value = partition.interrupts.accept()
    adapter = partition.sources.get(value & _SOURCE)
    (partition if adapter is None else adapter).ledger.count(_XIRR)
    return _SUCCESS, value


@hcall(Hcall.H_EOI, function_set="hcall-interrupt", registers=1)
def eoi(partition: Partition, value: int) -> int:
    """End an interrupt: its source may pulse again, and the CPPR of before is back. H_PARAMETER for no such source."""
    adapter = partition.sources.get(value & _SOURCE)
    (partition if adapter is None else adapter).ledger.count(_EOI)
    return _SUCCESS if partition.interrupts.end(value) else _PARAMETER


@hcall(Hcall.H_CPPR, function_set="hcall-interrupt", registers=1)
def cppr(partition: Partition, priority: int) -> int:
    """Set the processor's priority from the low byte; 0xFF lets everything through, 0 nothing."""
    partition.ledger.count(_CPPR)
    partition.interrupts.set_priority(priority & 0xFF)
    return _SUCCESS
