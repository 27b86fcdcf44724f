"""hcall-vio: H_VIO_SIGNAL, which says whether a virtual adapter may interrupt (papr-vio 1.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.ledger import hcall_index
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_SUCCESS = int(ReturnCode.H_SUCCESS)
_PARAMETER = int(ReturnCode.H_PARAMETER)

_VIO_SIGNAL = hcall_index("H_VIO_SIGNAL")

_FIRST_INTERRUPT = 1
"""Bit 63 of the mode in PAPR's numbering: the adapter's first interrupt specifier."""


@hcall(Hcall.H_VIO_SIGNAL, function_set="hcall-vio", registers=2)
def vio_signal(partition: Partition, unit_address: int, mode: int) -> int:
    """Enable or disable the interrupt. Enabling raises none for what is queued already: the owner looks itself."""
    adapter = partition.adapters.get(unit_address)
    if adapter is None:
        partition.ledger.count(_VIO_SIGNAL)
        return _PARAMETER
    adapter.ledger.count(_VIO_SIGNAL)
    if mode & ~_FIRST_INTERRUPT and partition.hypervisor.policy.reject_undefined_signal_bits:
        return _PARAMETER
    adapter.interrupt_enabled = mode & _FIRST_INTERRUPT != 0
    return _SUCCESS
