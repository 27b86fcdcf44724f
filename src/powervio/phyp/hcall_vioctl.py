"""hcall-vioctl: H_VIOCTL, one call with many sub-functions (papr-vio 1.6).

Checks in PAPR's order: the sub-function exists (H_NOT_FOUND), the unit address does, the sub-function is for this kind
of device, parameters that it does not use are zero (each H_PARAMETER); then its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.tce import TCE_WRITE
from powervio.papr.vioctl import MAX_PREPARE_MSEC, Vioctl
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.ledger import hcall_index
from powervio.phyp.rdma import write_small
from powervio.phyp.registry import hcall

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

PREPARE_VERSION = 1
"""What ENABLE_PREPARE_FOR_SUSPEND returns in r4; opaque."""

_SUCCESS = int(ReturnCode.H_SUCCESS)
_CLOSED = int(ReturnCode.H_CLOSED)
_CONSTRAINED = int(ReturnCode.H_CONSTRAINED)
_PARAMETER = int(ReturnCode.H_PARAMETER)
_NOT_FOUND = int(ReturnCode.H_NOT_FOUND)

_VIOCTL = hcall_index("H_VIOCTL")

Result: TypeAlias = int | tuple[int, ...]
_F = TypeVar("_F", bound=Callable[..., Result])


def _server(adapter: VirtualAdapter) -> bool:
    return isinstance(adapter, VioAdapter) and adapter.remote_pane is not None


def _has_sub_crqs(adapter: VirtualAdapter) -> bool:
    return isinstance(adapter, VioAdapter) and bool(adapter.sub_crqs.sources)


def _has_crq(adapter: VirtualAdapter) -> bool:
    return isinstance(adapter, VioAdapter)


@dataclass(frozen=True, slots=True)
class _SubFunction:
    function: Callable[..., Result]
    parameters: int
    """How many of p1.. it uses."""
    applies: Callable[[VirtualAdapter], bool]


_TABLE: dict[int, _SubFunction] = {}


def sub_function(
    number: Vioctl, *, parameters: int = 0, applies: Callable[[VirtualAdapter], bool]
) -> Callable[[_F], _F]:
    """Make a function a sub-function, of the adapters that `applies` says; it gets the adapter and p1.. ."""

    def enter(function: _F) -> _F:
        _TABLE[int(number)] = _SubFunction(function, parameters, applies)
        return function

    return enter


@hcall(Hcall.H_VIOCTL, function_set="hcall-vioctl", registers=5)
def vioctl(partition: Partition, unit_address: int, number: int, *parameters: int) -> Result:
    """One of the sub-functions below, on one adapter."""
    adapter = partition.adapters.get(unit_address)
    (partition if adapter is None else adapter).ledger.count(_VIOCTL)
    entry = _TABLE.get(number)
    if entry is None:
        return _NOT_FOUND
    if adapter is None or not entry.applies(adapter) or any(parameters[entry.parameters :]):
        return _PARAMETER
    return entry.function(adapter, *parameters[: entry.parameters])


# -- migration


@sub_function(Vioctl.DISABLE_MIGRATION, applies=_server)
def disable_migration(adapter: VioAdapter) -> Result:
    """The client must not be suspended until ENABLE_MIGRATION or H_FREE_CRQ."""
    if adapter.partner is None or not (adapter.registered and adapter.partner.registered):
        return _CLOSED
    adapter.migration_disabled = True
    return _SUCCESS


@sub_function(Vioctl.ENABLE_MIGRATION, applies=_server)
def enable_migration(adapter: VioAdapter) -> Result:
    """Takes DISABLE_MIGRATION back; without one it is H_PARAMETER."""
    if not adapter.migration_disabled:
        return _PARAMETER
    adapter.migration_disabled = False
    return _SUCCESS


@sub_function(Vioctl.ENABLE_PREPARE_FOR_SUSPEND, parameters=1, applies=_server)
def enable_prepare_for_suspend(adapter: VioAdapter, timeout: int) -> Result:
    """FF09 is to come before the client is suspended, which then waits up to `timeout` ms for READY_FOR_SUSPEND."""
    if timeout > MAX_PREPARE_MSEC:
        return _PARAMETER
    adapter.prepare_msec = timeout
    return _SUCCESS, PREPARE_VERSION


@sub_function(Vioctl.READY_FOR_SUSPEND, applies=_server)
def ready_for_suspend(adapter: VioAdapter) -> Result:
    """The answer to FF09. H_CONSTRAINED unless ENABLE_PREPARE_FOR_SUSPEND followed the last H_REG_CRQ."""
    if adapter.prepare_msec is None:
        return _CONSTRAINED
    adapter.partition.hypervisor.suspensions.ready(adapter)
    return _SUCCESS


# -- the partner


@sub_function(Vioctl.GET_PARTNER_INFO, parameters=1, applies=_server)
def get_partner_info(adapter: VioAdapter, descriptor: int) -> Result:
    """Partition id and unit address (u64 each) and location code of the partner, into a buffer of the caller's."""
    partner = adapter.partner
    code = b"" if partner is None else partner.node.location_code.encode()
    room, ioba = descriptor >> 32 & 0xFF_FFFF, descriptor & 0xFFFF_FFFF
    if room < 16 + len(code) + 1:
        return _CONSTRAINED
    if not writable(adapter, descriptor):
        return _PARAMETER
    if partner is None:
        return _CLOSED
    head = partner.partition.partition_id.to_bytes(8, "big") + partner.unit_address.to_bytes(8, "big")
    info = head + code + bytes(room - 16 - len(code))
    assert adapter.table is not None
    if write_small(adapter.table, ioba, info):
        return _PARAMETER
    return _SUCCESS


def writable(adapter: VirtualAdapter, descriptor: int) -> bool:
    """Whether an output descriptor names memory of the first pane that may be written (papr-vio 1.6)."""
    if descriptor >> 56 or adapter.table is None:
        return False
    allowed = adapter.table.allows(descriptor & 0xFFFF_FFFF, descriptor >> 32 & 0xFF_FFFF, TCE_WRITE)
    adapter.table.end_use()
    return bool(allowed)


@sub_function(Vioctl.GET_PARTNER_UUID, applies=_has_crq)
def get_partner_uuid(adapter: VioAdapter) -> Result:
    """The partner partition's UUID: its high half in r4, its low half in r5."""
    if adapter.partner is None:
        return _CLOSED
    value = adapter.partner.partition.uuid.int
    return _SUCCESS, value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


@sub_function(Vioctl.GET_MAX_REDIRECTED_MAPPINGS, applies=_server)
def get_max_redirected_mappings(adapter: VioAdapter) -> Result:
    """Redirected mappings beyond the one that PAPR guarantees: r4 for each LIOBN, r5 for each client I/O address."""
    extra = adapter.partition.hypervisor.policy.max_redirected_mappings - 1
    return _SUCCESS, extra, extra


# -- interrupts


@sub_function(Vioctl.DISABLE_ALL_VIO_INTERRUPTS, applies=_has_sub_crqs)
def disable_all_vio_interrupts(adapter: VioAdapter) -> Result:
    """Those of the CRQ and of every Sub-CRQ."""
    adapter.interrupt_enabled = False
    adapter.sub_crqs.disable_interrupts()
    return _SUCCESS


@sub_function(Vioctl.DISABLE_VIO_INTERRUPT, parameters=1, applies=_has_sub_crqs)
def disable_vio_interrupt(adapter: VioAdapter, source: int) -> Result:
    """One of them, by its number."""
    return _switch(adapter, source, enabled=False)


@sub_function(Vioctl.ENABLE_VIO_INTERRUPT, parameters=1, applies=_has_sub_crqs)
def enable_vio_interrupt(adapter: VioAdapter, source: int) -> Result:
    """One of them, by its number. As with H_VIO_SIGNAL, none is raised for what is queued already."""
    return _switch(adapter, source, enabled=True)


def _switch(adapter: VioAdapter, source: int, *, enabled: bool) -> int:
    if source == adapter.interrupt:
        adapter.interrupt_enabled = enabled
        return _SUCCESS
    sub = adapter.sub_crqs.of_source(source)
    if sub is None:
        return _PARAMETER
    sub.interrupt_enabled = enabled
    return _SUCCESS
