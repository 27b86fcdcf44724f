"""A Shared Ethernet Adapter at its VIO server: its ports, and what runs it in the partition's thread.

The same for a VIO server in the hypervisor's process, whose trunk adapters are ports of the switch, and for one in a
process of its own, which has logical LAN adapters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from powervio.errors import LocalError
from powervio.native.lan_client import LARGEST, BufferPool, LanPort
from powervio.native.lan_trunk import LanTrunk
from powervio.network.bond import BondOptions, BondPort, make_members
from powervio.network.link import InterfaceLink
from powervio.network.packet import PacketPort
from powervio.network.port import Port
from powervio.network.sea import Sea, SeaOptions, TrunkAdapter
from powervio.network.sea_failover import FailoverOptions
from powervio.network.sea_report import report
from powervio.network.sea_runner import SeaRunner
from powervio.network.sea_wire import Mode
from powervio.network.switch import PortOptions, Switch
from powervio.network.switch_trunk import SwitchTrunk, clients_of
from powervio.system.lan import memory_of, open_lan
from powervio.system.sea_section import SeaPlan
from powervio.vio.kernel import PartitionKernel

TRUNK_POOLS = (BufferPool(512, 256), BufferPool(2048, 512), BufferPool(LARGEST, 64))
CONTROL_POOLS = (BufferPool(2048, 64),)
_TRUNK_QUEUE = 2048
"""Frames."""


def adapter_memory(plan: SeaPlan) -> int:
    """Bytes of its partition's memory for its logical LAN adapters."""
    control = 0 if plan.alone else memory_of(CONTROL_POOLS)
    return len(plan.trunks) * memory_of(TRUNK_POOLS) + control


def trunk_options(plan: SeaPlan, number: int) -> PortOptions:
    """The port of a trunk adapter. The switch makes it the active one when the other's is gone, without a delay."""
    trunk = plan.trunks[number]
    return PortOptions(
        name=f"{plan.name}.{trunk.pvid}",
        pvid=trunk.pvid,
        vlans=tuple(trunk.vlans),
        trunk=plan.declared.priority,
        queue=_TRUNK_QUEUE,
    )


def control_options(plan: SeaPlan) -> PortOptions:
    """The port of a control channel."""
    return PortOptions(name=f"{plan.name}.control", pvid=plan.declared.control, mac=bytes.fromhex(plan.address))


class SeaEnd:
    """One adapter. All but `close` is for the partition's thread, or for before it runs."""

    def __init__(
        self,
        plan: SeaPlan,
        kernel: PartitionKernel,
        trunks: list[tuple[Port, SwitchTrunk | LanTrunk]],
        control: Port | None,
        clients: Callable[[], Iterable[tuple[int, bytes]]],
    ) -> None:
        """Take the ports over. Raises `LocalError`; they are closed then."""
        declared = plan.declared
        self.plan = plan
        self._kernel = kernel
        self._ports = [port for port, _ in trunks] + ([] if control is None else [control])
        try:
            self.uplink = _make_uplink(plan, kernel)
        except LocalError:
            self._close_ports()
            raise
        self._ports.append(self.uplink)
        adapters = [
            TrunkAdapter(port, trunk.pvid, tuple(trunk.vlans), ask)
            for (port, ask), trunk in zip(trunks, plan.trunks, strict=True)
        ]
        failover = FailoverOptions(
            address=bytes.fromhex(plan.address),
            pair=plan.pair,
            priority=declared.priority,
            mode=Mode[declared.mode.upper()],
            alone=plan.alone,
        )
        options = SeaOptions(name=plan.name, pvid=declared.pvid)
        self.sea = Sea(options, adapters, self.uplink, failover, control, clients=clients, clock=kernel.clock)
        self.uplink.on_move = self.sea.announce
        self.runner = SeaRunner(self.sea, self._ports, lambda: self.uplink.up, kernel)
        for adapter, (_, ask) in zip(adapters, trunks, strict=True):
            ask.on_change = self._teller(adapter.pvid)

    def _teller(self, pvid: int) -> Callable[[], None]:
        def changed() -> None:
            self.sea.note(pvid)
            self.runner.wake()

        return changed

    def start(self) -> None:
        """Bridge, when it is its turn."""
        self.uplink.run(self._kernel)
        self.runner.start()

    def stop(self) -> None:
        """End that."""
        self.runner.stop()

    def close(self) -> None:
        """Give the ports back, after `stop` or when the partition does not run any more."""
        self._close_ports()

    def _close_ports(self) -> None:
        for port in self._ports:
            port.close()

    def request(self, mode: str) -> None:
        """What the operator wants: one of `sea_section.MODES`."""
        self.sea.request(Mode[mode.upper()])
        self.runner.wake()

    def facts(self) -> dict[str, Any]:
        """What `powervio ps` shows, as plain values."""
        facts = dataclasses.asdict(report(self.sea))
        facts["uplink"] = [dataclasses.asdict(member) for member in self.uplink.report()]
        return facts


def _make_uplink(plan: SeaPlan, kernel: PartitionKernel) -> BondPort:
    declared = plan.declared
    names = declared.uplinks
    mode = "active-backup" if len(names) == 1 else declared.bond or "802.3ad"
    members = make_members(
        names, lambda name: PacketPort(name, declared.netns), lambda name: InterfaceLink(name, declared.netns)
    )
    return BondPort(plan.name, members, BondOptions(mode=mode, primary=declared.primary or ""), kernel.clock)


def end_at_switch(plan: SeaPlan, kernel: PartitionKernel, switch: Switch) -> SeaEnd:
    """One of a VIO server in the hypervisor's process. Raises `LocalError`."""
    trunks: list[tuple[Port, SwitchTrunk | LanTrunk]] = []
    control = None
    try:
        for number in range(len(plan.trunks)):
            trunk = switch.add(trunk_options(plan, number))
            trunks.append((trunk, SwitchTrunk(trunk)))
        control = None if plan.alone else switch.add(control_options(plan))
    except LocalError:
        for port, _ in trunks:
            port.close()
        raise
    return SeaEnd(plan, kernel, trunks, control, lambda: clients_of(switch))


def end_at_adapters(plan: SeaPlan, kernel: PartitionKernel, trunks: list[int], control: int | None) -> SeaEnd:
    """One of a VIO server in a process of its own, with adapters of these unit addresses. Raises `LocalError`."""
    ports: list[LanPort] = []
    try:
        for unit_address in trunks:
            ports.append(open_lan(kernel, unit_address, pools=TRUNK_POOLS))
        channel = None
        if control is not None:
            channel = open_lan(kernel, control, pools=CONTROL_POOLS)
    except LocalError:
        for port in ports:
            port.close()
        raise

    asks = [LanTrunk(port) for port in ports]

    def clients() -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for ask in asks:
            with suppress(LocalError):  # of an adapter that has just been unplugged
                found += ask.clients()
        return found

    return SeaEnd(plan, kernel, list(zip(ports, asks, strict=True)), channel, clients)
