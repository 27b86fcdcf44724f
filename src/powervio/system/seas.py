"""The Shared Ethernet Adapters of a system, as the hypervisor's process has them."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from powervio.errors import LocalError
from powervio.native.lan import LanAdapter
from powervio.network.sea_report import SeaReport, entstat
from powervio.system import server_messages as say
from powervio.system.control import Handler
from powervio.system.lan import plug_lan
from powervio.system.sea_end import SeaEnd, control_options, end_at_switch, trunk_options
from powervio.system.sea_section import MODES, SeaPlan, plans

if TYPE_CHECKING:
    from powervio.system.system import System
    from powervio.vio.kernel import PartitionKernel

_LIMIT = 5.0
"""Seconds for a VIO server to answer."""


class Seas:
    """All of them, by name."""

    def __init__(self, system: System) -> None:
        self._system = system
        prefix = b"\x02" + hashlib.sha256(f"{system.config.name}\0sea".encode()).digest()[:3]
        self.plans: dict[str, SeaPlan] = {plan.name: plan for plan in plans(system.config.sea, prefix.hex())}
        self._adapters: dict[str, tuple[list[LanAdapter], LanAdapter | None]] = {}
        self._ends: dict[str, SeaEnd] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The requests of the control socket."""
        return {"sea": self._on_sea}

    def _of(self, vios: str) -> list[SeaPlan]:
        return [plan for plan in self.plans.values() if plan.declared.vios == vios]

    # -- life

    def make(self) -> None:
        """Give VIO servers their adapters, before they run. Raises `LocalError`."""
        for plan in self.plans.values():
            vios = plan.declared.vios
            if vios not in self._system.processes:
                self._make_end(plan, self._system.kernels[vios])
                continue
            switch = plan.declared.switch
            trunks = [
                plug_lan(self._system, vios, trunk_options(plan, number), switch=switch)
                for number in range(len(plan.trunks))
            ]
            control = None if plan.alone else plug_lan(self._system, vios, control_options(plan), switch=switch)
            self._adapters[plan.name] = trunks, control

    def _make_end(self, plan: SeaPlan, kernel: PartitionKernel) -> None:
        try:
            self._ends[plan.name] = end_at_switch(plan, kernel, self._system.switch(plan.declared.switch))
        except LocalError as error:
            raise LocalError(f"SEA {plan.name}: {error}") from error

    async def run(self, vios: str) -> None:
        """A VIO server runs, or is about to: its adapters begin. Raises `LocalError`."""
        process = self._system.processes.get(vios)
        for plan in self._of(vios):
            if process is None:
                self._system.kernels[vios].call_soon_threadsafe(self._ends[plan.name].start)
                continue
            trunks, control = self._adapters[plan.name]
            message = say.ServeSea(
                plan, [trunk.unit_address for trunk in trunks], None if control is None else control.unit_address
            )
            try:
                await asyncio.to_thread(process.call, message)
            except (LocalError, OSError) as error:
                raise LocalError(f"SEA {plan.name}: {error}") from error

    def stop(self, vios: str) -> None:
        """Those of a VIO server in this process end; in its thread."""
        for plan in self._of(vios):
            if plan.name in self._ends:
                self._ends[plan.name].stop()

    def server_died(self, vios: str) -> None:
        """A VIO server in this process has ended, with its thread."""
        for plan in self._of(vios):
            end = self._ends.pop(plan.name, None)
            if end is not None:
                end.close()

    def serve_anew(self, vios: str, kernel: PartitionKernel) -> None:
        """It boots, and does not run yet. Raises `LocalError`."""
        for plan in self._of(vios):
            self._make_end(plan, kernel)

    def close(self) -> None:
        """The VIO servers have ended: give all ports back."""
        for plan in self.plans.values():
            self.server_died(plan.declared.vios)

    # -- who looks, and operators

    async def _ask(self, plan: SeaPlan, mode: str | None = None) -> dict[str, Any]:
        """How one is, after a request. Raises `LocalError`, `TimeoutError`."""
        system, vios = self._system, plan.declared.vios
        system.servers.check_runs(vios)
        if vios in system.processes:
            message = say.AskSea(plan.name, mode)
            return await asyncio.to_thread(system.processes[vios].call, message, limit=_LIMIT)
        end = self._ends[plan.name]

        def work() -> dict[str, Any]:
            if mode is not None:
                end.request(mode)
            return end.facts()

        kernel = system.kernels[vios]
        if not kernel.threaded:
            return work()
        found = await asyncio.to_thread(kernel.call, work, _LIMIT)
        assert isinstance(found, dict)
        return found

    async def look(self) -> None:
        """Ask all how they are, for `entries`."""
        self._facts.clear()
        for name, plan in self.plans.items():
            with suppress(LocalError, OSError):  # TimeoutError is one
                self._facts[name] = await self._ask(plan)

    def entries(self) -> list[dict[str, Any]]:
        """What `powervio ps` shows; of one whose VIO server does not run no state."""
        return [
            {
                "name": name,
                "vios": plan.declared.vios,
                "switch": plan.declared.switch,
                "pvid": plan.declared.pvid,
                "vlans": plan.declared.vlans,
                "netns": plan.declared.netns,
                "facts": self._facts.get(name),
            }
            for name, plan in self.plans.items()
        ]

    async def _on_sea(self, arguments: dict[str, Any]) -> dict[str, Any]:
        name, mode = arguments.get("name"), arguments.get("mode")
        if name is not None and name not in self.plans:
            known = ", ".join(self.plans) or "none; [[sea]] declares one"
            raise LocalError(f'there is no Shared Ethernet Adapter "{name}"; there are: {known}')
        if mode is not None and (mode not in MODES or name is None):
            raise LocalError(f"mode {mode}; expected one of {', '.join(MODES)}, and the adapter that it is for")
        found = []
        for plan in self.plans.values():
            if name in (None, plan.name):
                try:
                    facts = await self._ask(plan, mode)
                except OSError as error:
                    raise LocalError(f"SEA {plan.name}: {error}") from error
                uplink = facts.pop("uplink")
                found.append({**facts, "uplink": uplink, "entstat": entstat(SeaReport(**facts))})
        return {"sea": found}
