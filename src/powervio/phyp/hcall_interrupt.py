# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""hcall-interrupt: H_XIRR, H_EOI and H_CPPR of a partition with one processor (see `powervio.phyp.interrupts`).

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.phyp.records import PartitionRecord

from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

_SUCCESS = cython.declare(cython.int, int(ReturnCode.H_SUCCESS))
_PARAMETER = cython.declare(cython.int, int(ReturnCode.H_PARAMETER))

_EOI = cython.declare(cython.int, hcall_index("H_EOI"))
_CPPR = cython.declare(cython.int, hcall_index("H_CPPR"))
_XIRR = cython.declare(cython.int, hcall_index("H_XIRR"))


@cython.ccall
@cython.exceptval(-1)
def accept(partition: PartitionRecord) -> cython.uint:
    """H_XIRR: accept the oldest presentable interrupt; CPPR before in the top byte, its source below, 0 for none."""
    return partition.interrupts.accept(_XIRR, partition.ledger)


def xirr(partition: PartitionRecord) -> tuple[int, int]:
    """H_XIRR, with its return code."""
    return _SUCCESS, accept(partition)


@cython.ccall
@cython.exceptval(-1)
def eoi(partition: PartitionRecord, value: cython.ulonglong) -> cython.int:
    """H_EOI: end an interrupt: its source may pulse again, and the CPPR of before is back. H_PARAMETER for no such
    source."""
    return _SUCCESS if partition.interrupts.end(value, _EOI, partition.ledger) else _PARAMETER


@cython.ccall
@cython.exceptval(-1)
def cppr(partition: PartitionRecord, priority: cython.ulonglong) -> cython.int:
    """H_CPPR: set the processor's priority from the low byte; 0xFF lets everything through, 0 nothing."""
    partition.ledger.count(_CPPR)
    partition.interrupts.set_priority(cython.cast(cython.uint, priority & 0xFF))
    return _SUCCESS


hcall(Hcall.H_XIRR, function_set="hcall-interrupt", registers=0)(xirr)
hcall(Hcall.H_EOI, function_set="hcall-interrupt", registers=1)(eoi)
hcall(Hcall.H_CPPR, function_set="hcall-interrupt", registers=1)(cppr)
